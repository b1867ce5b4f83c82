"""A real HAProxy before a real API: who is let through, who is cut off, and what becomes of it when the API goes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from larder.services.process import RunningService
from serving.state import ServingState
from tests.raw_http import Connection, exchange, request
from tests.running_api import RunningApi, open_shop, wait_until
from tests.test_proxy import CONFIG, haproxy

pytestmark = pytest.mark.faults

ASK = request("/v1/recommendations", b'{"user_id": "u00001", "k": 3}')


@pytest.fixture(scope="module")
def api(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    settings = Settings(
        home=tmp_path_factory.mktemp("proxied"), project="proxied", redis_port=redis_server.port, redis_timeout_ms=1000
    )
    with redis.Redis(HOST, redis_server.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api


@pytest.fixture(scope="module")
def port(api: RunningApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The proxy's port. Its time limit is shortened, and nobody is one of our servers, so that limits are met soon."""
    port, config = any_free_port(), tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    text = CONFIG.read_text("utf-8")
    changes = {"timeout http-request 10s": "timeout http-request 2s", "body time 10s": "body time 2s",
               "src 127.0.0.1 ::1": "src 192.0.2.1"}  # fmt: skip
    for what, instead in changes.items():
        assert what in text
        text = text.replace(what, instead)
    config.write_text(text)
    environment = os.environ | {"LARDER_PROXY_BIND": f"{HOST}:{port}", "LARDER_API": f"{HOST}:{api.settings.api_port}"}
    with subprocess.Popen([haproxy(), "-f", config], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: status(port, "/livez") == 200)
            yield port
        finally:
            process.terminate()
            log, _ = process.communicate(timeout=10)
            print(log[-3_000:])


def status(port: int, path: str) -> int:
    try:
        return httpx.get(f"http://{HOST}:{port}{path}", timeout=5.0).status_code
    except httpx.TransportError:
        return 0


def test_requests_pass_with_their_ids(port: int) -> None:
    with httpx.Client(base_url=f"http://{HOST}:{port}") as http:
        answer = http.post("/v1/recommendations", json={"user_id": "u00001", "k": 40})
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip")
        assert len(answer.headers["x-request-id"]) == 36, "the proxy made one"
        named = http.get("/v1/items/popular", headers={"X-Request-Id": "page-1"})
        assert named.headers["x-request-id"] == "page-1"
        again = http.get("/v1/items/popular", headers={"If-None-Match": named.headers["etag"]})
        assert again.status_code == 304
        assert http.get("/docs").status_code == http.get("/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/metrics/", "//metrics", "/./metrics", "/%6detrics", "/v1/../metrics", "/v1/%2e%2e/metrics",
        "/METRICS", "/readyz", "/admin/rollout", "/admin/users/u00001/features", "/%61dmin/rollout",
        "/v1/../admin/rollout", "http://x/metrics", "/docs/assets/../../metrics", "/docs/assets/%2e%2e/%2e%2e/metrics",
    ],
)  # fmt: skip
def test_what_is_not_public_is_not_there(port: int, path: str) -> None:
    answer = exchange(port, request(path, method="GET"))
    assert answer.status in (400, 404)
    assert b"larder_" not in answer.body
    if answer.status == 404:  # what HAProxy finds malformed, it says in HTML
        assert answer.error["code"] == "not_found"


def test_nobody_is_this_machine_through_the_proxy(api: RunningApi) -> None:
    """Were /admin let through by mistake: the header the proxy sets makes the API refuse."""
    path = "/admin/users/u00001/features"
    data = request(path, b"", "X-Forwarded-For: 203.0.113.7", method="GET").replace(b"Host: larder", b"Host: localhost")
    assert exchange(api.settings.api_port, data).status == 403


def test_slow_heads_and_bodies_are_cut_off_by_the_proxy(api: RunningApi, port: int) -> None:
    def heard() -> int:
        """Requests but those for health and metrics."""
        lines = [
            line for line in api.http.get("/metrics").text.splitlines() if line.startswith("larder_requests_total")
        ]
        return sum(int(float(line.split()[-1])) for line in lines if "readyz" not in line and "metrics" not in line)

    before = heard()
    for data in (b"POST /v1/events HTTP/1.1\r\nX-Slow: ", ASK[:40], ASK[:-5]):
        with Connection(port) as connection:
            began = time.monotonic()
            connection.send(data)
            answer = connection.answer()
            assert answer is not None
            assert answer.status == 408
            assert time.monotonic() - began < 6
    assert answer.error["code"] == "request_timeout", "of a body; of a head HAProxy says it in HTML"
    assert heard() == before, "the API heard nothing of them"


def test_large_bodies(port: int) -> None:
    assert exchange(port, request("/v1/events", b"", length=300_000_000)).error["code"] == "too_large"
    chunks = b"".join(b"10000\r\n" + b" " * 65_536 + b"\r\n" for _ in range(40))
    head = request("/v1/events").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    answer = exchange(port, head + chunks)
    assert (answer.status, answer.error["code"]) == (413, "too_large"), "by the API"
    assert exchange(port, ASK).status == 200


def test_one_address_may_not_take_all_connections(port: int) -> None:
    refused, answered = 0, 0
    with contextlib.ExitStack() as held:
        for _ in range(120):
            try:
                connection = held.enter_context(Connection(port))
                connection.send(b"GET /livez HTTP/1.1\r\nHost: larder\r\n\r\n")
                answered += connection.answer() is not None
            except ConnectionError:
                refused += 1
    assert answered >= 95
    assert answered + refused <= 120
    assert answered <= 101, "those above 100 are closed"


def test_an_api_that_is_not_ready_gets_no_requests_and_comes_back(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ServingState, "ready", False)
        wait_until(lambda: status(port, "/livez") == 503)
        answer = exchange(port, ASK)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    wait_until(lambda: status(port, "/livez") == 200)
    assert exchange(port, ASK).status == 200
