"""Overload: what would only wait is refused at once, the least important first; health and metrics never are."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import Route
from serving.metrics import Metrics
from serving.problems import RETRY_AFTER_S

#: Kind of work to its share of the limit. The shadow goes first of all (shadow.py), then what can be sent again later.
SHARES: Final = {"events": 0.5, "lists": 1.0}
_KINDS: Final = {
    "/v1/events": "events",
    "/v1/items": "events",
    "/v1/feedback": "events",
    "/v1/recommendations": "lists",
    "/v1/score": "lists",
    "/v1/items/popular": "lists",
}
_BODY: Final = msgspec.json.encode(
    {
        "error": {
            "code": "overloaded",
            "message": "there is more to do than can be done in time",
            "hint": f"try again after {RETRY_AFTER_S} s, later each time",
        }
    }
)
_START: Final = {
    "type": "http.response.start",
    "status": 503,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_BODY)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
    ],
}


_ROUTES: Final = {path: Route(path) for path in _KINDS}


class Admission:
    """ASGI middleware with a limit on requests under way.

    One process works on one request at a time: each one more makes all of them later. Above the limit a refusal takes
    a fraction of a millisecond, and those who are in keep their time.

    Parameters
    ----------
    limit
        Requests under way at most; 0: no limit.
    """

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        self._app = app
        self._limits = {kind: max(1, round(limit * share)) for kind, share in SHARES.items()} if limit else {}
        self._shed = {kind: metrics.shed.labels(kind) for kind in SHARES}
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        kind = _kind(scope) if self._limits else None
        if kind is None:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limits[kind]:
            self._shed[kind].inc()
            scope["route"] = _ROUTES.get(scope["path"])
            await send(_START)
            await send({"type": "http.response.body", "body": _BODY})
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


def _kind(scope: Scope) -> str | None:
    """Return what a request is, None for what is never refused."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    return _KINDS.get(path) or ("lists" if path.startswith("/v1/items/") else None)
