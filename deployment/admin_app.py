"""The control plane's own API, `/admin/...`: for operators and programs on this machine that have the token.

It runs beside the rollout controller, not in the API that answers users: nobody who can ask for recommendations can
reach it, and a busy API does not delay a rollback.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.admin_token import admin_token
from deployment.ledger_check import verify_ledger
from deployment.promotion import ControlPlane
from deployment.store.records import MAX_WHY, LedgerBrokenError, LedgerEntry
from feature_repo.errors import ConflictError, LarderError, NotFoundError
from feature_repo.settings import Settings
from serving import problems
from serving.loopback import require_loopback
from serving.plan import Plan
from serving.signature import signing_key

#: Kept in the ledger: who has the token cannot be told apart until there are accounts.
WHO = "admin API"
#: Nothing that is asked for here is longer.
MAX_BODY_BYTES = 20_000
_TOO_LARGE = "the body is larger than 20 kB"


class UnauthorizedError(LarderError):
    """The token is missing or wrong."""

    status = 401
    code = "unauthorized"


class _Body(BaseModel):
    """A JSON body: exact types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    why: Annotated[str, Field(min_length=1, max_length=MAX_WHY, description="Reason, kept in the ledger.")]
    expected_epoch: Annotated[
        int | None, Field(ge=0, le=2**31 - 1, description="Epoch of the plan the decision was made on.")
    ] = None


class RollbackRequest(_Body):
    """Return to the champion before the current one."""


class PromoteRequest(_Body):
    """Make a version with a passing verdict the champion."""

    version: Annotated[str, Field(pattern=r"^[0-9]{1,18}$", description="Registered version.")]


def create_admin_app(settings: Settings, plane: ControlPlane | None = None) -> FastAPI:
    """Make the app.

    Parameters
    ----------
    settings
        Project; the token is read now (`LARDER_ADMIN_TOKEN`, else `<home>/admin.token`).
    plane
        The control plane to use, one of its own if None.

    Raises
    ------
    SigningKeyError
        If there is no token of at least 32 characters.
    """
    token = admin_token(settings)
    plane = plane or ControlPlane(settings)
    app = FastAPI(title="Larder control plane", docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)
    app.add_middleware(GuardedApp, token=token)
    _reading(app, settings, plane)
    _moving(app, plane)
    return app


def _reading(app: FastAPI, settings: Settings, plane: ControlPlane) -> None:
    key = signing_key(settings)

    @app.get("/admin/models")
    def models() -> Response:
        """List versions with verdict and aliases, and the champion of the plan in force."""
        plan = plane.store.plan()
        return _answer({"champion": plan.stable if plan else None, "versions": plane.registry.versions()})

    @app.get("/admin/models/history")
    def history(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """List every move of the plan, newest first."""
        moves = [entry for entry in plane.store.ledger() if entry.moved]
        return _answer({"moves": [_line(entry) for entry in moves[:limit]]})

    @app.get("/admin/plan")
    def plan() -> Response:
        """Show the plan in force."""
        found = plane.store.plan()
        if found is None:
            raise NotFoundError("there is no plan yet; promote a version first")
        return _answer(_plan(found))

    @app.get("/admin/ledger/verify")
    def verify() -> Response:
        """Say whether the ledger is what was written; if not, which entry is the first that is not."""
        try:
            return _answer({"intact": True, "entries": verify_ledger(settings, plane.store, key)})
        except LedgerBrokenError as error:
            return _answer({"intact": False, "problem": str(error)})


def _moving(app: FastAPI, plane: ControlPlane) -> None:
    @app.post("/admin/models/promote")
    def promote(body: PromoteRequest) -> Response:
        """Promote a version whose verdict is in the ledger; judging takes minutes and is not done here."""
        done = plane.promote(body.version, why=body.why, who=WHO, expected_epoch=body.expected_epoch, judge=False)
        if done.plan is None:
            raise ConflictError(f"the verdict on version {body.version} is not a pass: see its report in MLflow")
        return _answer({"plan": _plan(done.plan), "unpublished": done.unpublished})

    @app.post("/admin/models/rollback")
    def rollback(body: RollbackRequest) -> Response:
        """Roll back."""
        plan, unpublished = plane.rollback(why=body.why, who=WHO, expected_epoch=body.expected_epoch)
        return _answer({"plan": _plan(plan), "unpublished": unpublished})


class GuardedApp:
    """ASGI middleware: lets in who is on this machine and has the token, before anything of the request is read."""

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with what was wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            require_loopback(Request(scope))
            self._require_token(Request(scope))
            body = await _read(receive)
        except UnauthorizedError as error:
            refusal = problems.problem(error.status, error.code, str(error))
            refusal.headers["WWW-Authenticate"] = "Bearer"
        except LarderError as error:
            refusal = problems.problem(error.status, error.code, str(error))
        else:
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)
                return
            refusal = problems.problem(problems.TOO_LARGE, "too_large", _TOO_LARGE)
        await refusal(scope, receive, send)

    def _require_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Both sides are compared as bytes and in constant time: how long it takes says nothing of the token.
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise UnauthorizedError("this needs the header `Authorization: Bearer TOKEN` with the admin token")


async def _read(receive: Receive) -> bytes | None:
    """Read a body; None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            return None
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hand a body that was read to the app, and then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _plan(plan: Plan) -> dict[str, Any]:
    """Return a plan without its salt, which would say who is in which arm."""
    return {name: value for name, value in msgspec.to_builtins(plan).items() if name != "salt"}


def _line(entry: LedgerEntry) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(entry).items() if name != "body"}


def _answer(content: Any, encode: Callable[[Any], bytes] = msgspec.json.encode) -> Response:
    return Response(encode(content), media_type="application/json")
