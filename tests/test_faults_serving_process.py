"""`larder serve` told to stop under load, and short of file descriptors: nothing that was taken on is lost."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from larder.benches.open_loop import post
from larder.services.ports import HOST
from tests.fault_load import ServedShop, served_shop

pytestmark = pytest.mark.faults

#: Descriptors the API may have, and connections that come at once.
DESCRIPTORS = 256
CROWD = 500
#: When a balancer that looks at readiness every now and then has left.
LEAVES_S = 0.75


def watch(shop: ServedShop, told: float, until: Callable[[], bool]) -> list[float]:
    """Look at readiness as a balancer does; return when, after SIGTERM, it said that it drains."""
    draining = []
    while not until():
        assert time.monotonic() - told < 15.0, "it does not end"
        with suppress(httpx.TransportError):
            response = httpx.get(f"{shop.url}/readyz", timeout=2.0)
            said = response.status_code, response.json()["status"], response.headers.get("connection")
            if said == (503, "draining", "close"):
                draining.append(time.monotonic() - told)
        time.sleep(0.05)
    return draining


def test_sigterm_under_load_fails_nothing(tmp_path: Path) -> None:
    """A balancer leaves once readiness says so, here after .75 s; until then new connections come and are answered."""
    with served_shop(tmp_path, drain_ms=1500) as shop:
        with shop.load(rps=100.0) as load:
            shop.processes.pause(2.0)
            shop.processes.stopped.add("api")
            shop.api.send_signal(signal.SIGTERM)
            told = time.monotonic()
            draining = watch(shop, told, lambda: time.monotonic() - told > LEAVES_S)
        draining += watch(shop, told, lambda: shop.processes.ended("api"))
        ended_s = time.monotonic() - told
        count, while_draining = Counter(answer.status for answer in load.answers), len(load.since(told))
        print(
            f"SIGTERM: answers by status {dict(count)}, {while_draining} of them while draining, "
            f"said from {min(draining):.2f} to {max(draining):.2f} s, ended after {ended_s:.1f} s"
        )
        assert set(count) == {200}, "a request was not answered"
        assert while_draining > 40
        assert min(draining) < 0.5
        assert max(draining) > 0.8
        assert 1.4 < ended_s < 8.0
        assert "Traceback" not in shop.processes.log("api")


def test_the_api_is_the_last_to_close_an_idle_connection(tmp_path: Path) -> None:
    """Clients (httpx) and proxies (HAProxy) give one up after 5 s; who closes first need fear no request on its way."""
    request = post("/v1/recommendations", b'{"user_id": "u00001", "k": 5}')
    with (
        served_shop(tmp_path) as shop,
        socket.create_connection((HOST, shop.settings.api_port), timeout=5.0) as connection,
    ):
        for pause_s in (0.0, 7.0):
            shop.processes.pause(pause_s)
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200"), f"after {pause_s} s"


def crowd(shop: ServedShop, size: int) -> Counter[str]:
    """Open so many connections at once, ask over each, and count what comes."""
    request = post("/v1/recommendations", b'{"user_id": "u00001", "k": 5}')
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        connections = []
        for _ in range(size):
            try:
                connection = socket.create_connection((HOST, shop.settings.api_port), timeout=5.0)
            except OSError:
                found["refused"] += 1
                continue
            connections.append(stack.enter_context(connection))
        for connection in connections:
            with suppress(OSError):
                connection.sendall(request)
        for connection in connections:
            connection.settimeout(3.0)
            try:
                data = connection.recv(65536)
            except TimeoutError:
                found["silence"] += 1
            except OSError:
                found["reset"] += 1
            else:
                found[data[9:12].decode() if data else "closed"] += 1
    return found


def test_more_connections_than_descriptors(tmp_path: Path) -> None:
    with served_shop(tmp_path) as shop:
        resource.prlimit(shop.api.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        before, began = shop.api.num_fds(), time.monotonic()
        found = crowd(shop, CROWD)
        took_s = time.monotonic() - began
        full_s = shop.wait_full(10.0)
        shop.processes.wait_until("descriptors are given back", lambda: shop.api.num_fds() <= before + 16, 10)
        print(f"{CROWD} at once, {DESCRIPTORS} descriptors: {dict(found)} in {took_s:.1f} s, full after {full_s:.1f} s")
        # As many lists at once as the door lets in; the others that found a descriptor are refused at once.
        assert found["200"] >= 20
        assert found["200"] + found["503"] > 100
        assert set(found) <= {"200", "503", "refused", "reset", "closed"}, "neither an answer nor a clean refusal"
        assert sum(found.values()) == CROWD
        assert shop.http.get("/readyz").status_code == 200
        assert shop.processes.starts["api"] == 1
        cpu = shop.processes.cpu_s("api")
        time.sleep(1.0)
        assert shop.processes.cpu_s("api") - cpu < 0.6, "it spins"
