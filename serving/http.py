"""HTTP plumbing: strict JSON bodies, encoded answers, and a middleware that measures requests and caps their size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import LEVELS
from serving.drain import Drain
from serving.metrics import Metrics
from serving.problems import TOO_LARGE
from serving.request_id import HEADER, begin_request
from serving.schemas import MAX_BODY_BYTES

#: Where a request's scope says on which rung of the ladder its answer stands, and which arm the user belongs to.
LEVEL = "larder.level"
ARM = "larder.arm"
#: When it was whole, by `time.perf_counter`.
ARRIVED = "larder.arrived"
_ENCODE = msgspec.json.Encoder().encode
#: A body that is too large is read and thrown away up to here, so that the client hears the answer.
_DRAINED_BYTES = 10 * MAX_BODY_BYTES


class Route:
    """What the framework puts into the scope of a request it has routed; for those answered before, as metrics ask."""

    def __init__(self, path_format: str) -> None:
        self.path_format = path_format


def require_unique_names(body: bytes) -> None:
    """Refuse an object that has a name twice: of two readers of it, a proxy and we, each might take another one.

    Raises
    ------
    ValueError
        If a name is there twice, or the body is no JSON.
    """
    _READ_UNIQUE(body.decode())


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        raise ValueError("an object has the same name twice")


_READ_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique).decode


class _StrictRequest(Request):
    """Reads JSON as RFC 8259 has it: no NaN, 1e999, lone surrogates, bottomless nesting, or names that come twice."""

    async def json(self) -> Any:
        try:
            body = await self.body()
            decoded = msgspec.json.decode(body)
            require_unique_names(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            raise json.JSONDecodeError(str(error), "", 0) from None
        return decoded


class StrictRoute(APIRoute):
    """A route with strict JSON bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler so that it gets a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def answer(request: Request, content: Any, status: int = 200) -> Response:
    """Encode an answer, and note its rung of the ladder and its arm for the metrics."""
    level = getattr(content, "level", None)
    if level is not None:
        request.scope[LEVEL] = level
        request.scope[ARM] = getattr(content, "arm", None)
    return Response(_ENCODE(content), status, media_type="application/json")


class MeasuredApp:
    """ASGI middleware: names, counts and times requests, caps their bodies, lets go of clients when it drains."""

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and measure it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = begin_request(scope["headers"]).encode()
        status, size = 500, 0

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                while message.get("more_body") and size < _DRAINED_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                raise HTTPException(TOO_LARGE)
            return message

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (HEADER, request_id)]
                if self._drain.draining:
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive_some, note_status)
        finally:
            route = getattr(scope.get("route"), "path_format", None) or "unmatched"
            level = scope.get(LEVEL)
            self._metrics.requests_of.of(
                route, str(status), level if level in LEVELS else "none", scope.get(ARM) or "none"
            ).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
