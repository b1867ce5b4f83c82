"""Traces of requests: what a request did is noted as numbers while it is answered, and made into spans afterwards.

A span is never opened in the middle of a request. The service hands over the times it took anyway, the middleware the
beginning and the end; a thread of its own makes spans of them and sends them (trace_export.py). Where tracing is off
there is no middleware, and the service asks one `is None`.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import Recommendations
from serving.http import ARM, ARRIVED, LEVEL
from serving.request_id import current_request_id

HEADER: Final = b"traceparent"
#: Only what clients of a shop ask for: a probe every second would be most of what a collector sees.
_TRACED: Final = "/v1/"
#: https://www.w3.org/TR/trace-context/: version ff is forbidden, later versions may be longer.
_PARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = b"0" * 16

_BY_CANARY: Final = 3
_BY_STABLE: Final = 6
#: Between the user's rows and the candidates nothing takes so long but a canary that did not answer.
_ASKED_CANARY_S: Final = 0.001
#: A stage of a request: its name, when it began and when it ended, by `time.perf_counter`.
Stage = tuple[str, float, float]


@dataclass(frozen=True, slots=True)
class Parent:
    """What a caller's `traceparent` says: its trace, its span, and whether it samples."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """Return the caller's span; None where there is no header, several, or one that the standard tells to ignore."""
    sent = [value for name, value in headers if name == HEADER]
    found = _PARENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if trace_id.decode() == _NO_TRACE or span_id == _NO_SPAN or (version == b"00" and rest is not None):
        return None
    return Parent(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1))


def trace_id_of(request_id: str) -> str:
    """Return the id of the trace of a request that no caller traces.

    The request id itself where it is one: ids made here are, so a list's trace is found by the id in its answer.
    """
    if _HEX_ID.fullmatch(request_id) and request_id != _NO_TRACE:
        return request_id
    return hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()


def samples(trace_id: str, share: float) -> bool:
    """Whether a trace is sampled: the same answer for the same trace in every process (its last 56 bits are random)."""
    return int(trace_id[-14:], 16) < share * 2**56


@dataclass(slots=True)
class Trace:
    """One sampled request, as numbers; times by `time.perf_counter`.

    Attributes
    ----------
    wall_ns
        Unix time in ns at which `perf_counter` is 0.
    recorded
        When the record of a list was handed to the log; None where the service was not asked.
    answer
        What was answered to a request for recommendations.
    k, candidates
        Length asked for; candidates ranked in this process.
    stages
        Of the service.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    request_id: str
    method: str
    path: str
    arrived: float
    wall_ns: int
    recorded: float | None = None
    responded: float | None = None
    ended: float = 0.0
    status: int = 500
    route: str = "unmatched"
    level: str | None = None
    arm: str | None = None
    answer: Recommendations | None = None
    k: int = 0
    candidates: int = 0
    stages: tuple[Stage, ...] = ()


def stages_between(marks: tuple[float, ...], explained: float | None) -> tuple[Stage, ...]:
    """Name the stages of the service.

    Parameters
    ----------
    marks
        Nothing (no model was asked); the read of the user's rows, begun and done, and then nothing (the model failed),
        the canary's answer, or of the stable model: its beginning, candidates, pair rows, and the list.
    explained
        When the list was explained.

    Examples
    --------
    >>> [name for name, _, _ in stages_between((1.0, 2.0, 2.0, 3.0, 4.0, 5.0), 6.0)]
    ['user_read', 'retrieve', 'pair_read', 'rank', 'explain']
    >>> [name for name, _, _ in stages_between((1.0, 2.0, 5.0), None)]
    ['user_read', 'canary']
    """
    if not marks:
        return ()
    found: list[Stage] = [("user_read", marks[0], marks[1])]
    if len(marks) == _BY_CANARY:
        found.append(("canary", marks[1], marks[2]))
    elif len(marks) == _BY_STABLE:
        _, read, begun, drafted, paired, ranked = marks
        if begun - read > _ASKED_CANARY_S:
            found.append(("canary", read, begun))
        found += [("retrieve", begun, drafted), ("pair_read", drafted, paired), ("rank", paired, ranked)]
    if explained is not None:
        found.append(("explain", marks[-1], explained))
    return tuple(found)


_CURRENT: ContextVar[Trace | None] = ContextVar("larder_trace", default=None)


def note_served(
    answer: Recommendations, k: int, candidates: int, marks: tuple[float, ...], explained: float | None
) -> None:
    """Note what the service did for the request of this task, if it is sampled.

    Parameters
    ----------
    marks, explained
        See `stages_between`.
    """
    trace = _CURRENT.get()
    if trace is not None:
        trace.answer, trace.k, trace.candidates = answer, k, candidates
        trace.stages, trace.recorded = stages_between(marks, explained), time.perf_counter()


class TracedApp:
    """ASGI middleware: decides which requests are sampled, and hands their traces over once they are answered.

    Parameters
    ----------
    take
        Takes a finished trace; must not wait.
    share
        Share of the requests without a `traceparent` that are sampled; a caller that sends one decides itself.
    """

    def __init__(self, app: ASGIApp, take: Callable[[Trace], None], share: float) -> None:
        self._app = app
        self._take = take
        self._share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, traced if it is sampled."""
        trace = self._sampled(scope)
        # Also where it is None: the next request of a pipeline begins inside of the one before it.
        _CURRENT.set(trace)
        if trace is None:
            await self._app(scope, receive, send)
            return

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status, trace.responded = message["status"], time.perf_counter()
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            trace.ended = time.perf_counter()
            trace.route = getattr(scope.get("route"), "path_format", None) or "unmatched"
            trace.level, trace.arm = scope.get(LEVEL), scope.get(ARM)
            self._take(trace)

    def _sampled(self, scope: Scope) -> Trace | None:
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            return None
        parent, request_id = parent_of(scope["headers"]), current_request_id() or ""
        trace_id = trace_id_of(request_id) if parent is None else parent.trace_id
        if not (samples(trace_id, self._share) if parent is None else parent.sampled):
            return None
        now = time.perf_counter()
        return Trace(
            trace_id,
            f"{random.getrandbits(64) or 1:016x}",
            None if parent is None else parent.span_id,
            request_id,
            scope["method"],
            scope["path"],
            scope.get(ARRIVED, now),
            time.time_ns() - round(now * 1e9),
        )
