"""Overload: what would only wait is refused at once, the least important first; health and metrics never are."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import Route
from serving.metrics import Metrics
from serving.problems import RETRY_AFTER_S, encode_problem
from serving.request_id import current_request_id, new_request_id

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
_ROUTES: Final = {path: Route(path) for path in _KINDS}
OVERLOADED: Final = 503
#: In the scope of a request that was let in before, by the protocol.
ADMITTED: Final = "larder.admitted"


def route_of(path: str) -> str:
    """Return what metrics call a path that is refused without being routed."""
    return path if path in _KINDS else "unmatched"


_BEFORE_ID, _AFTER_ID = encode_problem(
    "overloaded",
    "there is more to do than can be done in time",
    hint=f"try again after {RETRY_AFTER_S} s, later each time",
    request_id="ID",
).split(b"ID")


def overloaded(request_id: str) -> bytes:
    """Return the body of a refusal; an id has no letter that JSON would escape."""
    return b"%b%b%b" % (_BEFORE_ID, request_id.encode(), _AFTER_ID)


class Door:
    """How many requests are under way, and who is refused.

    One process works on one request at a time: each one more makes all of them later. Above the limit a refusal takes
    a fraction of a millisecond, and those who are in keep their time. Shared by `Admission`, which counts, and
    `protocol.EdgeProtocol`, which refuses before a task is made.

    Parameters
    ----------
    limit
        Requests under way at most; 0: no limit.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limits = {kind: max(1, round(limit * share)) for kind, share in SHARES.items()} if limit else {}
        self._shed = {kind: metrics.shed.labels(kind) for kind in SHARES}
        self.under_way = 0

    def kind_of(self, path: str) -> str | None:
        """Return what kind of work a path is; None for what is never refused."""
        if not self._limits:
            return None
        return _KINDS.get(path) or ("lists" if path.startswith("/v1/items/") else None)

    def refuses(self, kind: str) -> bool:
        """Whether one more of a kind would be too many; counts it if so."""
        if self.under_way < self._limits[kind]:
            return False
        self._shed[kind].inc()
        return True


class Admission:
    """ASGI middleware: lets requests in through the door and counts them."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        door = self._door
        asked = scope["type"] == "http" and ADMITTED not in scope
        kind = door.kind_of(scope["path"]) if asked else None
        if kind is None:
            await self._app(scope, receive, send)
            return
        if door.refuses(kind):
            scope["route"] = _ROUTES.get(scope["path"])
            body = overloaded(current_request_id() or new_request_id())
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"retry-after", str(RETRY_AFTER_S).encode()),
            ]
            await send({"type": "http.response.start", "status": OVERLOADED, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        door.under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            door.under_way -= 1
