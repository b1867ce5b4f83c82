"""The short way to `POST /v1/recommendations`: what is plainly right goes from the socket to the service.

The framework's routing, dependency solving and validation take as long as a recommendation does. This middleware
decodes the body once, into exact types, and answers. Whatever is not plainly right (another method, a wrong field, a
large body) goes on to the framework's route, untouched, which knows how to say what is wrong: the two cannot differ in
what they accept, and a test compares what they answer.
"""

from __future__ import annotations

import time
from typing import Annotated, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.errors import LarderError
from feature_repo.events import Repeats
from serving.cascade.rerank import DiversityKind
from serving.http import ARM, ARRIVED, LEVEL, Route, require_unique_names
from serving.metrics import Metrics
from serving.problems import larder_problem
from serving.recommend import RecommendationService, Wish
from serving.schemas import MAX_K, checked_id

PATH: Final = "/v1/recommendations"
#: Larger bodies are read by the framework, which caps them.
_MAX_BYTES: Final = 65_536
_JSON: Final = b"application/json"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schemas.RecommendationRequest`."""

    user_id: str
    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_K)] = 20
    exclude: Annotated[list[str], msgspec.Meta(max_length=1000)] = msgspec.field(default_factory=list)
    repeats: Repeats | None = None
    request_id: str | None = None
    diversity: DiversityKind | None = None
    explain: bool = False


_ROUTE: Final = Route(PATH)
_DECODE = msgspec.json.Decoder(_Body).decode
_ENCODE = msgspec.json.Encoder().encode


class HotPath:
    """ASGI middleware; the innermost, so that requests are measured and errors are caught around it."""

    def __init__(self, app: ASGIApp, service: RecommendationService, metrics: Metrics) -> None:
        self._app = app
        self._service = service
        self._encode = metrics.stage["encode"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is plainly right; pass all others on."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or not _is_small_json(scope):
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        wish = _wish(b"".join(message.get("body", b"") for message in messages))
        if wish is None:
            await self._app(scope, _replayed(messages, receive), send)
            return
        scope["route"] = _ROUTE
        try:
            answer = await self._service.recommend(wish, scope.get(ARRIVED))
        except LarderError as error:
            await larder_problem(error)(scope, receive, send)
            return
        scope[LEVEL], scope[ARM] = answer.level, answer.arm
        start = time.perf_counter()
        body = _ENCODE(answer)
        self._encode.observe(time.perf_counter() - start)
        length = str(len(body)).encode()
        headers = [(b"content-type", _JSON), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_small_json(scope: Scope) -> bool:
    """Whether the headers promise a JSON body of known, moderate length."""
    length, kind = 0, b""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            length = int(value)
        elif name == b"content-type":
            kind = value
    return 0 < length <= _MAX_BYTES and kind == _JSON


def _wish(body: bytes) -> Wish | None:
    """Read a body; None where anything is not as it should be."""
    try:
        found = _DECODE(body)
        require_unique_names(body)
        request_id = None if found.request_id is None else checked_id(found.request_id)
        exclude = [checked_id(item) for item in found.exclude]
        return Wish(
            checked_id(found.user_id), found.k, exclude, found.repeats, request_id, found.diversity, found.explain
        )
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives what was read already, then the rest."""
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return again
