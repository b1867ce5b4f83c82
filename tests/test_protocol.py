"""The edge's protocol on real sockets: limits of time and size, cheap refusals, and what it takes from uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from uvicorn.protocols.http import flow_control, httptools_impl

from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.protocol import EDGE, EdgeProtocol
from tests.raw_http import Connection, exchange, request
from tests.running_api import RunningApi, open_shop, wait_until

TIMEOUT_S = 0.5
BODY = b'{"user_id": "u00001", "k": 3}'
ASK = request("/v1/recommendations", BODY)
#: sha256 of the two modules of uvicorn whose private parts `EdgeProtocol` uses, as they were read.
READ = "ea814cf42e50628dba76b72e12900943da6801b4bcf097f11dff4ea2cdc99455"


def test_uvicorn_is_the_one_that_was_read() -> None:
    """Where this fails, uvicorn changed: read its diff against serving/protocol.py, then set the new hash."""
    text = inspect.getsource(httptools_impl) + inspect.getsource(flow_control)
    assert hashlib.sha256(text.encode()).hexdigest() == READ


@pytest.fixture(scope="module")
def api(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    settings = Settings(
        home=tmp_path_factory.mktemp("protocol"), project="protocol", redis_port=redis_server.port,
        redis_timeout_ms=1000, receive_timeout_s=TIMEOUT_S, max_under_way=4,
    )  # fmt: skip
    with redis.Redis(HOST, redis_server.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api


@pytest.fixture
def port(api: RunningApi) -> int:
    return api.settings.api_port


def full(api: RunningApi) -> Any:
    """The door, with nobody else's place free."""
    door = api.app.state.edge.door
    door.under_way += 4
    return door


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v1/rec", 408),
        (b"POST /v1/recommendations HTTP/1.1\r\nHost: larder\r\nX-Slow: ", 408),
        (ASK[:-1], 408),
        (ASK.replace(b"Content-Length: 29", b"Transfer-Encoding: chunked")[: -len(BODY)] + b'5\r\n{"use\r\n', 408),
        (b"", None),
        (b"\r\n", None),
    ],
)
def test_what_does_not_come_in_time_is_cut_off(port: int, data: bytes, status: int | None) -> None:
    with Connection(port) as connection:
        began = time.monotonic()
        connection.send(data)
        answer = connection.answer()
        assert (answer.status if answer else None) == status
        if answer is not None and status == 408:
            assert answer.error["code"] == "request_timeout"
            assert answer.headers["connection"] == "close"
            assert time.monotonic() - began > TIMEOUT_S * 0.8
        assert connection.closed_within(10)


def test_bytes_now_and_then_gain_no_time(port: int) -> None:
    """The clock runs from a request's first byte, whatever trickles in."""
    with Connection(port) as connection:
        began = time.monotonic()
        for byte in ASK:
            if not connection.send(bytes([byte])) or time.monotonic() - began > 10 * TIMEOUT_S:
                break
            time.sleep(TIMEOUT_S / 20)
        assert connection.closed_within(5)
        assert time.monotonic() - began < 10 * TIMEOUT_S


def test_empty_lines_gain_no_time_either(port: int) -> None:
    with Connection(port) as connection:
        began = time.monotonic()
        while connection.send(b"\r\n") and time.monotonic() - began < 10 * TIMEOUT_S:
            time.sleep(TIMEOUT_S / 10)
        assert time.monotonic() - began < 10 * TIMEOUT_S


def test_a_request_in_pieces_is_answered_and_the_connection_goes_on(port: int) -> None:
    with Connection(port) as connection:
        for _ in range(3):
            for at in range(0, len(ASK), 40):
                connection.send(ASK[at : at + 40])
                time.sleep(TIMEOUT_S / 50)
            answer = connection.answer()
            assert answer is not None
            assert (answer.status, len(json.loads(answer.body)["items"])) == (200, 3)
            time.sleep(TIMEOUT_S * 1.2)  # between requests there is more time than for one


def test_a_large_body_in_pieces_and_one_that_waits_to_be_asked(port: int) -> None:
    body = json.dumps({"user_id": "u00001", "exclude": [f"{n:0120d}" for n in range(1000)]}).encode()
    assert len(body) > 100_000
    answer = exchange(port, request("/v1/recommendations", body))
    assert answer.status == 200
    with Connection(port) as connection:
        connection.send(request("/v1/recommendations", b"", "Expect: 100-continue", length=len(body)))
        assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(body)
        answer = connection.answer()
        assert answer is not None
        assert answer.status == 200


def test_who_is_still_sending_takes_no_place(api: RunningApi, port: int) -> None:
    """Ten bodies on their way, and a door for four: others are let in as if nobody was there."""
    with contextlib.ExitStack() as open_:
        waiting = [open_.enter_context(Connection(port, timeout_s=5)) for _ in range(10)]
        for connection in waiting:
            connection.send(ASK[:-5])
        assert [exchange(port, ASK).status for _ in range(5)] == [200] * 5
        for connection in waiting:
            connection.send(ASK[-5:])
            answer = connection.answer()
            assert answer is not None
            assert answer.status == 200
    assert api.app.state.edge.arriving_bytes == 0


def test_bodies_on_their_way_are_bounded_together(api: RunningApi, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.protocol.MAX_ARRIVING_BYTES", 1_000_000)
    waiting = [Connection(port) for _ in range(5)]
    for connection in waiting:
        connection.send(request("/v1/events", b" " * 400_000, length=500_000))
    answers = [connection.answer() for connection in waiting]
    statuses = [answer.status for answer in answers if answer is not None]
    assert {503, 408} == set(statuses), "some are too many, the others are late"
    for connection in waiting:
        connection.socket.close()
    wait_until(lambda: api.app.state.edge.arriving_bytes == 0)


def test_a_full_door_refuses_before_a_task_is_made(api: RunningApi, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []
    whole = httptools_impl.HttpToolsProtocol._start_asgi_task
    monkeypatch.setattr(
        httptools_impl.HttpToolsProtocol, "_start_asgi_task", lambda *args: (tasks.append(args), whole(*args))
    )
    shed, answered = (
        'larder_shed_total{kind="lists"}',
        'larder_requests_total{arm="none",level="none",route="/v1/recommendations"',
    )
    before = [api.metric(name) for name in (shed,)]
    door = full(api)
    try:
        tasks.clear()
        with Connection(port) as connection:
            for _ in range(3):
                connection.send(request("/v1/recommendations", BODY, "X-Request-Id: page-1"))
                answer = connection.answer()
                assert answer is not None
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert answer.headers["x-request-id"] == answer.error["request_id"] == "page-1"
                assert (answer.error["code"], bool(answer.error["hint"])) == ("overloaded", True)
                assert "connection" not in answer.headers
            assert not tasks, "nothing was started"
            connection.send(request("/v1/items/popular", method="GET") + request("/v1/score", b"{}"))
            assert [connection.answer().status for _ in range(2)] == [503, 503]
            connection.send(request("/livez", method="GET"))
            assert connection.answer().status == 200, "health is never refused"
        with Connection(port) as connection:
            connection.send(request("/v1/events", b"{}", "Connection: close"))
            assert connection.answer().headers["connection"] == "close"
            assert connection.closed_within(2)
    finally:
        door.under_way -= 4
    assert api.metric(shed) == before[0] + 5
    assert api.metric(answered + ',status="503"}') >= 3
    assert exchange(port, ASK).status == 200


def test_events_are_refused_from_half_of_the_limit_on(api: RunningApi, port: int) -> None:
    door = api.app.state.edge.door
    door.under_way += 2
    try:
        assert exchange(port, request("/v1/events", b'{"events": []}')).status == 503
        assert exchange(port, ASK).status == 200
    finally:
        door.under_way -= 2


def test_a_pipeline_before_a_full_door_does_not_nest(api: RunningApi, port: int) -> None:
    """Thousands of refusals in one packet: all are answered, in order, however many there are."""
    count, door = 3_000, full(api)
    try:
        with Connection(port) as connection:
            threading.Thread(target=connection.send, args=(ASK * count,)).start()
            assert [connection.answer().status for _ in range(count)] == [503] * count
    finally:
        door.under_way -= 4


def test_who_is_let_in_leaves_again(api: RunningApi, port: int) -> None:
    """Whatever becomes of a request: answered, wrong, or its client gone."""
    for data in (ASK, request("/v1/recommendations", b"{"), request("/v1/items/a/similar?k=0", method="GET")):
        for _ in range(10):
            exchange(port, data)
            with Connection(port) as gone:
                gone.send(data)
    wait_until(lambda: api.app.state.edge.door.under_way == 0)


def gone_within(connection: Connection, seconds: float) -> bool:
    """Whether the server ends a connection on which nothing is read."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):  # neither reads: the connection is full both ways
            if not connection.send(b"\r\n"):
                return True
        time.sleep(0.05)
    return False


def test_an_answer_nobody_reads_ends(port: int) -> None:
    """Ten megabytes are asked for and not taken: neither the request nor its answer stays."""
    with Connection(port, timeout_s=0.2) as connection:
        connection.send(request("/docs/assets/swagger-ui-bundle.js", method="GET") * 12)
        assert gone_within(connection, 10 * TIMEOUT_S)


def test_requests_that_wait_on_one_connection_are_bounded(api: RunningApi, port: int) -> None:
    """A client that asks on and on, and does not wait for answers."""
    ask = request("/v1/items/popular?k=49", method="GET")
    with Connection(port) as connection:
        threading.Thread(target=connection.send, args=(ask * 3_000,), daemon=True).start()
        answered = 0
        while connection.answer() is not None:
            answered += 1
        assert answered < 1_000, "all waited in memory"
    wait_until(lambda: api.app.state.edge.door.under_way == 0)
    with Connection(port) as connection:
        connection.send(ask * 50)
        assert [connection.answer().status for _ in range(50)] == [200] * 50


def test_it_stops_at_once_though_somebody_is_still_sending(api: RunningApi) -> None:
    settings = replace(api.settings, receive_timeout_s=60.0)
    with contextlib.ExitStack() as stop:
        other = stop.enter_context(RunningApi(settings))
        connection = Connection(other.settings.api_port)
        connection.send(ASK[:-5])
        time.sleep(0.2)
        began = time.monotonic()
        stop.close()
        assert time.monotonic() - began < 8
    connection.socket.close()


def test_it_needs_the_edge_of_the_app() -> None:
    """With another app it fails at the first connection, rather than guard nothing."""
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    config = Config(lambda *_: None, log_config=None)
    with contextlib.closing(asyncio.new_event_loop()) as loop, pytest.raises(KeyError, match=EDGE):
        EdgeProtocol(config, ServerState(), {}, loop)
