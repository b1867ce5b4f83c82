"""The server's side of a connection: slow and endless requests end here, and what is too much is refused cheaply.

uvicorn makes a task as soon as a request's head is there, and has no limit on how long head and body may take or how
large a head may be. Here a request becomes work once it is whole: one that trickles in holds a socket and its bytes,
no place at the door (`admission.Door`). A request that came in one packet, as nearly all do, costs a few attribute
reads more. tests/test_protocol.py holds what this takes from uvicorn's private parts.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NamedTuple, cast

import httptools
from prometheus_client import Counter
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.admission import ADMITTED, OVERLOADED, Door, overloaded, route_of
from serving.http import ARRIVED
from serving.loop_metrics import Observed
from serving.metrics import Metrics
from serving.one_write import OneWrite
from serving.problems import RETRY_AFTER_S, TOO_LARGE, TOO_LARGE_HINT, TOO_LARGE_TEXT, encode_problem
from serving.request_id import HEADER, chosen_request_id
from serving.schemas import MAX_BODY_BYTES

#: Where the lifespan's state has the `Edge`.
EDGE: Final = "larder.edge"
MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 100
#: Requests of one connection that wait for the one before them. uvicorn reads on after every answer, a packet of
#: thousands at a time: a client that reads nothing had a million of them in memory after ten seconds.
MAX_PIPELINED: Final = 100
#: Bodies on their way of all connections together.
MAX_ARRIVING_BYTES: Final = 64 * MAX_BODY_BYTES
#: A request's bytes with its head and the framing of chunks.
_MAX_REQUEST_BYTES: Final = 2 * MAX_BODY_BYTES + MAX_HEAD_BYTES
#: After a refusal the rest of a request is thrown away for so long and so far, so that the client hears the answer.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 10 * MAX_BODY_BYTES
_RETRY_AFTER: Final = (b"retry-after", str(RETRY_AFTER_S).encode())


class Edge:
    """What all connections of a process share.

    Parameters
    ----------
    receive_timeout_s
        Seconds a request may take to arrive, and an answer to be taken.
    refuse_early
        Whether the door is asked here; without it, by the middleware alone.
    """

    def __init__(self, door: Door, metrics: Metrics, receive_timeout_s: float, *, refuse_early: bool = True) -> None:
        self.door = door
        self.receive_timeout_s = receive_timeout_s
        self.refuse_early = refuse_early
        self.arriving_bytes = 0
        self._metrics = metrics
        # Kept, because finding a label takes longer than all else of a refusal.
        self._counters: dict[tuple[str, int], tuple[Counter, Observed]] = {}

    def count(self, route: str, status: int) -> None:
        """Count an answer that no application gave."""
        if (known := self._counters.get((route, status))) is None:
            requests, seconds = self._metrics.requests, self._metrics.request_seconds
            known = requests.labels(route, str(status), "none", "none"), seconds.labels(route)
            self._counters[route, status] = known
        known[0].inc()
        known[1].observe(0.0)


class _Refusal(Exception):  # noqa: N818 - an answer on its way out of the parser's callbacks
    def __init__(self, status: int, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint


def _too_large() -> _Refusal:
    return _Refusal(TOO_LARGE, "too_large", TOO_LARGE_TEXT, TOO_LARGE_HINT)


def _head_too_large() -> _Refusal:
    text = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes or has more than {MAX_HEADERS} headers"
    return _Refusal(431, "headers_too_large", text, "send fewer or shorter headers, or a shorter path")


_NOT_HTTP: Final = _Refusal(
    400, "bad_input", "this is not a request of HTTP/1.1", "check method, path, names of headers and Content-Length"
)
_LATE: Final = _Refusal(
    408, "request_timeout", "the request did not arrive in time", "send it again, whole; large batches in parts"
)


class _Held(NamedTuple):
    """A request whose body is on its way, and who will answer it."""

    cycle: RequestResponseCycle
    app: Any


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's protocol for HTTP/1.1 with limits on time and size; given to uvicorn as `http=EdgeProtocol`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._edge: Edge = app_state[EDGE]
        self._held: _Held | None = None
        self._receiving = False  # a request has begun and is not whole
        self._in_head = False
        self._arrived_bytes = 0  # of the request on its way
        self._counted_bytes = 0  # of its body, in `Edge.arriving_bytes`
        self._lingered_bytes = 0
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Give the first request its time."""
        super().connection_made(cast("asyncio.Transport", OneWrite(transport, self.loop)))
        self._deadline = self.loop.call_later(self._edge.receive_timeout_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what was held for the connection."""
        super().connection_lost(exc)
        self._forget_held()
        self._cancel_deadline()
        self.resume_writing()

    def shutdown(self) -> None:
        """Close; an answer under way is waited for, a request on its way is not."""
        if self._held is not None:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse what came; where a request is not whole after it, look at its size and give it its time."""
        if self._refused:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._arrived_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if self._receiving:
                self._check_what_arrives()
        except _Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserUpgrade:
            pass  # to something else than HTTP/1.1: the request is answered as one of HTTP/1.1
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, _Refusal) else _NOT_HTTP)
        if self._refused:
            return
        if self._receiving or self._idle_without_limit():
            if self._deadline is None:
                self._deadline = self.loop.call_later(self._edge.receive_timeout_s, self._late)
        elif self._deadline is not None:
            self._cancel_deadline()

    def _idle_without_limit(self) -> bool:
        """Whether nothing is asked, and uvicorn's own limit of idle connections is off, as after empty lines."""
        idle = self.cycle is None or self.cycle.response_complete
        return idle and self.timeout_keep_alive_task is None

    def _check_what_arrives(self) -> None:
        """Look at a request that did not come in one packet."""
        if self._in_head:
            if self._arrived_bytes > MAX_HEAD_BYTES:
                raise _head_too_large()
            return
        if self._arrived_bytes > _MAX_REQUEST_BYTES:
            raise _too_large()
        if self._held is None:
            return
        cycle, edge = self._held.cycle, self._edge
        size = len(cycle.body)
        if not self._counted_bytes:  # the first look
            declared = next((value for name, value in self.headers if name == b"content-length"), b"0")
            if int(declared) > MAX_BODY_BYTES:
                raise _too_large()
            if cycle.waiting_for_100_continue:
                cycle.waiting_for_100_continue = False
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if size > MAX_BODY_BYTES:
            raise _too_large()
        edge.arriving_bytes += size - self._counted_bytes
        self._counted_bytes = size
        if edge.arriving_bytes > MAX_ARRIVING_BYTES:
            raise _Refusal(OVERLOADED, "overloaded", "there are too many bodies on their way", "try again later")
        self.flow.resume_reading()  # uvicorn stops at 64 kB until somebody reads; nobody does before it is whole

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._receiving = self._in_head = True

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large, else let uvicorn make the request's cycle."""
        if len(self.headers) > MAX_HEADERS or (
            self._arrived_bytes > MAX_HEAD_BYTES
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES
        ):
            raise _head_too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refusal(400, "bad_input", "too many requests wait on one connection", "wait for answers first")
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Start a request that was held: it is whole now."""
        super().on_message_complete()
        self._receiving, self._arrived_bytes = False, 0
        held = self._held
        if held is not None:
            self._forget_held()
            self._start_asgi_task(held.cycle, held.app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Hold a request until it is whole; then refuse it, or let the application answer it."""
        if cycle.more_body:
            self._held = _Held(cycle, app)
            return
        self._unset_keepalive_if_required()  # a refusal before it, in the same packet, has set it
        edge, scope = self._edge, cycle.scope
        scope[ARRIVED] = time.perf_counter()  # type: ignore[literal-required] # servers may add keys
        # Behind others of a pipeline the middleware asks the door: refusals here would nest as deep as it is long.
        kind = edge.door.kind_of(scope["path"]) if edge.refuse_early and not self.pipeline else None
        if kind is None or scope["method"] == "HEAD":
            super()._start_asgi_task(cycle, app)
        elif edge.door.refuses(kind):
            self._refuse_work(cycle)
        else:
            edge.door.under_way += 1
            scope[ADMITTED] = True  # type: ignore[typeddict-unknown-key] # servers may add keys
            super()._start_asgi_task(cycle, self._admitted)

    async def _admitted(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            self._edge.door.under_way -= 1

    def _refuse_work(self, cycle: RequestResponseCycle) -> None:
        """Answer that there is too much to do; the connection stays."""
        request_id = chosen_request_id(cycle.scope["headers"])[0]
        self._edge.count(route_of(cycle.scope["path"]), OVERLOADED)
        cycle.response_started = cycle.response_complete = True
        self._write(OVERLOADED, overloaded(request_id), request_id, close=not cycle.keep_alive)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer a request that is not taken, and close the connection once the client had time to hear it."""
        self._refused = True
        busy = self.cycle is not None and not self.cycle.response_complete and self._held is None
        if self._held is not None:
            self._held.cycle.response_complete = True
        self._forget_held()
        self._cancel_deadline()
        self._edge.count("unmatched", refusal.status)
        if busy:  # an earlier request of the connection has not been answered: this answer would pass for its own
            if self.pipeline:
                self._close()
            self.cycle.keep_alive = False  # closes after its answer
            return
        request_id = chosen_request_id(self.headers or ())[0]
        body = encode_problem(refusal.code, refusal.message, hint=refusal.hint, request_id=request_id)
        self._write(refusal.status, body, request_id, close=True)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _write(self, status: int, body: bytes, request_id: str, *, close: bool) -> None:
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (HEADER, request_id.encode()),
        ]
        if status == OVERLOADED:
            headers.append(_RETRY_AFTER)
        if close:
            headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))

    def _late(self) -> None:
        """End a connection whose request did not come in time."""
        self._deadline = None
        if self._receiving:
            self._refuse(_LATE)
        else:
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing was asked for a while."""
        self._close()

    def _close(self) -> None:
        """Close, and do not wait long for a client that does not take what was written."""
        self.transport.close()
        self._cancel_deadline()
        self._deadline = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _forget_held(self) -> None:
        self._held = None
        self._edge.arriving_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever: the request under way holds a place at the door."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self._edge.receive_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
