"""Slow and endless clients against the real process: others are answered, memory stays, connections end."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import redis

from feature_repo.backfill import backfill
from feature_repo.materialize import materialize
from feature_repo.views import DAY_US
from larder.services.ports import HOST
from tests.fault_processes import Shop, api_service, fault_settings
from tests.live_shop import a_view, import_history
from tests.raw_http import Connection, request
from tests.running_api import plan_for, publish
from tests.test_faults_kills import now_us
from tests.tiny_bundle import make_bundle, make_shop

pytestmark = pytest.mark.faults

TIMEOUT_S = 3.0
#: Connections of each kind of slow client.
EACH = 100


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose API is a process of its own."""
    home: Path = tmp_path_factory.mktemp("edge")
    settings = fault_settings(home / "home", redis_timeout_ms=1000, receive_timeout_s=TIMEOUT_S)
    with (
        Shop(settings, api=api_service(settings)) as shop,
        closing(redis.Redis(HOST, settings.redis_port)) as client,
    ):
        past = make_shop(now_us())
        views = [a_view(f"v{n}", f"user{n}", at_us=now_us() - DAY_US) for n in range(3)]
        import_history(settings, views, items=["i1", *past.item_ids])
        backfill(settings)
        materialize(settings)
        publish(client, settings, plan_for(make_bundle(settings.bundles_dir, past)))
        shop.start_all()
        yield shop


class Watcher(threading.Thread):
    """A customer who asks ten times a second, and notes how long each list took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.statuses: list[int] = []
        self._url = f"http://{HOST}:{port}/v1/recommendations"
        self._stopping = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=20.0) as http:
            while not self._stopping.wait(0.1):
                began = time.monotonic()
                self.statuses.append(http.post(self._url, json={"user_id": "user1", "k": 10}).status_code)
                self.seconds.append(time.monotonic() - began)

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join(30)

    def was_served(self, at_least: int) -> bool:
        print(f"{len(self.seconds)} lists, p50 and p99 {np.quantile(self.seconds, [0.5, 0.99]).round(4) * 1000} ms")
        return set(self.statuses) == {200} and len(self.statuses) >= at_least and np.quantile(self.seconds, 0.9) < 1.0


def open_files(shop: Shop) -> int:
    return psutil.Process(shop.running["api"].pid).num_fds()


def test_hundreds_of_slow_clients(shop: Shop) -> None:
    """Heads, bodies and chunks that come a byte at a time, and clients that say nothing: all end within a bound."""
    port = shop.settings.api_port
    body = json.dumps({"user_id": "user1"}).encode()
    chunked = request("/v1/events", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    kinds = [
        (b"POST /v1/events HTTP/1.1\r\nX-Slow: ", b"x"),
        (b"GET /v1/items/", b"a"),
        (request("/v1/recommendations", body, length=100_000), b" "),
        (chunked, b"1\r\n \r\n"),
        (b"", b"\r\n"),
    ]
    before_mb, before_files = shop.memory_mb("api"), open_files(shop)
    began = time.monotonic()
    with Watcher(port) as watcher, ExitStack() as opened:
        slow: dict[socket.socket, bytes] = {}
        for first, drip in kinds:
            for _ in range(EACH):
                connection = opened.enter_context(socket.create_connection((HOST, port)))
                connection.sendall(first)
                slow[connection] = drip
        peak_mb = before_mb
        while slow and time.monotonic() - began < 30 + 3 * TIMEOUT_S:
            for connection, drip in list(slow.items()):
                try:
                    connection.sendall(drip)
                    gone = select.select([connection], [], [], 0)[0] and not connection.recv(4096)
                except (BrokenPipeError, ConnectionResetError):
                    gone = True
                if gone:
                    connection.close()
                    del slow[connection]
            peak_mb = max(peak_mb, shop.memory_mb("api"))
            time.sleep(0.2)
        took = time.monotonic() - began
    print(f"{EACH * len(kinds)} slow clients were gone after {took:.1f} s; memory {before_mb:.0f} -> {peak_mb:.0f} MB")
    assert not slow
    assert took < 10 * TIMEOUT_S
    assert watcher.was_served(at_least=10)
    assert peak_mb - before_mb < 60
    shop.wait_until("their sockets are closed", lambda: open_files(shop) < before_files + 20)


@pytest.mark.parametrize("kind", ["length", "chunks", "as fast as it goes"])
def test_a_body_of_300_mb(shop: Shop, kind: str) -> None:
    """It is refused, not read: neither memory nor time of the process goes into it."""
    port, block = shop.settings.api_port, b" " * 1_000_000
    before_mb, before_s = shop.memory_mb("api"), shop.cpu_s("api")
    head = request("/v1/events", b"", length=300_000_000)
    if kind != "length":
        head = head.replace(b"Content-Length: 300000000", b"Transfer-Encoding: chunked")
    with Watcher(port) as watcher, Connection(port) as connection:
        connection.send(head)
        sent_mb, peak_mb = 0, before_mb
        while sent_mb < 300 and connection.send(block if kind == "length" else b"f4240\r\n" + block + b"\r\n"):
            sent_mb += 1
            peak_mb = max(peak_mb, shop.memory_mb("api"))
            if kind != "as fast as it goes":
                time.sleep(0.05)
        time.sleep(1.0)
    print(f"took {sent_mb} of 300 MB; memory {before_mb:.0f} -> {peak_mb:.0f} MB, {shop.cpu_s('api') - before_s:.2f} s")
    assert sent_mb < 100
    assert peak_mb - before_mb < 30
    assert watcher.was_served(at_least=5)
    with Connection(port) as connection:  # whoever reads before it sends on hears why
        connection.send(head + (b"" if kind == "length" else b"1e8480\r\n" + b" " * 2_000_000))
        answer = connection.answer()
        assert answer is not None
        assert (answer.status, answer.error["code"]) == (413, "too_large")


def test_many_bodies_at_once_are_bounded_together(shop: Shop) -> None:
    """Two hundred bodies of just under the limit, none of which ends: 200 MB that are not kept."""
    port, before_mb = shop.settings.api_port, shop.memory_mb("api")
    connections = [Connection(port) for _ in range(200)]
    peak_mb = before_mb
    with Watcher(port) as watcher:
        for connection in connections:
            connection.send(request("/v1/events", b" " * 900_000, length=950_000))
            peak_mb = max(peak_mb, shop.memory_mb("api"))
        answers = [connection.answer() for connection in connections]
    statuses = {answer.status for answer in answers if answer is not None}
    print(f"memory {before_mb:.0f} -> {peak_mb:.0f} MB; answers {statuses}")
    for connection in connections:
        connection.socket.close()
    assert statuses <= {503, 408}
    assert peak_mb - before_mb < 140
    assert watcher.was_served(at_least=2)
