"""The API over HTTP: whatever is sent, it is answered, or refused by a 4xx in the one format, and quickly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from tests.running_api import RunningApi, open_shop


@pytest.fixture(scope="module")
def api(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    settings = Settings(
        home=tmp_path_factory.mktemp("api"), project="input", redis_port=redis_server.port, redis_timeout_ms=1000
    )
    with redis.Redis(HOST, redis_server.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api


RAW = "/v1/recommendations"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RAW, b'{"user_id": "a", "k": NaN}'),
        (RAW, b'{"user_id": "a", "k": 1e999}'),
        (RAW, b'{"user_id": "a", "k": 5.0}'),
        (RAW, b'{"user_id": "a", "k": "5"}'),
        (RAW, b'{"user_id": "a", "k": true}'),
        (RAW, b'{"user_id": "a", "k": 0}'),
        (RAW, b'{"user_id": "a", "k": 1001}'),
        (RAW, b'{"user_id": "a", "k": 123456789012345678901234567890}'),
        (RAW, b'{"user_id": "\\ud800"}'),
        (RAW, b'{"user_id": "\\u0000"}'),
        (RAW, b'{"user_id": ""}'),
        (RAW, b'{"user_id": "   "}'),
        (RAW, b'{"user_id": 5}'),
        (RAW, b'{"user_id": null}'),
        (RAW, b'{"user_id": "\xff"}'),
        (RAW, json.dumps({"user_id": "x" * 10_000}).encode()),
        (RAW, json.dumps({"user_id": "é" * 65}).encode()),
        (RAW, json.dumps({"user_id": "a" + "\u0301\u0323" * 80_000}).encode()),
        (RAW, b'{"user_id": "a", "exclude": "b"}'),
        (RAW, b'{"user_id": "a", "exclude": [1]}'),
        (RAW, json.dumps({"user_id": "a", "exclude": ["b"] * 1001}).encode()),
        (RAW, b'{"user_id": "a", "repeats": "maybe"}'),
        (RAW, b'{"user_id": "a", "diversity": "most"}'),
        (RAW, b'{"user_id": "a", "diversity": true}'),
        (RAW, b'{"user_id": "a", "userid": "b"}'),
        (RAW, b"{}"),
        (RAW, b"[]"),
        (RAW, b"null"),
        (RAW, b""),
        (RAW, b"{"),
        (RAW, b"[" * 50_000),
        (RAW, b'{"a":' * 50_000),
        ("/v1/score", b'{"pairs": []}'),
        ("/v1/score", b'{"pairs": [{"user_id": "a"}]}'),
        ("/v1/score", b'{"pairs": [{"user_id": "a", "item_id": "b", "x": 1}]}'),
        ("/v1/score", json.dumps({"pairs": [{"user_id": "a", "item_id": "b"}] * 1001}).encode()),
        ("/v1/events", b'{"events": []}'),
        ("/v1/events", b'{"events": {}}'),
        ("/v1/events", b'{"events": ["view"]}'),
        ("/v1/events", b'{"events": [{"user_id": "a", "item_id": "b", "event_type": "view", "context": {"x": NaN}}]}'),
        ("/v1/events", b'{"events": [{"user_id": "a", "item_id": "b", "event_type": "rating", "value": 1e999}]}'),
        (
            "/v1/events",
            json.dumps({"events": [{"user_id": "a", "item_id": "b", "event_type": "view"}] * 1001}).encode(),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:40]),
)
def test_bad_input_is_refused_in_the_one_format(api: RunningApi, path: str, body: bytes) -> None:
    start = time.monotonic()
    response = api.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "bad_input"
    assert error["message"]
    assert set(error) <= {"code", "message", "field", "hint", "request_id"}
    assert len(response.content) < 2000
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/items/popular?k=0", 422, "bad_input"),
        ("GET", "/v1/items/popular?k=NaN", 422, "bad_input"),
        ("GET", "/v1/items/popular?window=2d", 422, "bad_input"),
        ("GET", "/v1/items/popular?colour=blue", 422, "bad_input"),
        ("GET", f"/v1/items/{'x' * 1000}/similar", 422, "bad_input"),
        ("GET", "/v1/items/%00/similar", 422, "bad_input"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/recommendations", 405, "method_not_allowed"),
        ("DELETE", "/v1/events", 405, "method_not_allowed"),
    ],
)
def test_bad_requests_are_refused_in_the_one_format(
    api: RunningApi, method: str, path: str, status: int, code: str
) -> None:
    response = api.http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_large_body_is_refused(api: RunningApi) -> None:
    big = b'{"user_id": "' + b"x" * 2_000_000 + b'"}'
    by_length = api.http.post(RAW, content=big, headers={"Content-Type": "application/json"})
    chunks = api.http.post(
        RAW, content=iter([big[:900_000], big[900_000:]]), headers={"Content-Type": "application/json"}
    )
    for response in (by_length, chunks):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_is_not_called_json_is_refused_with_a_hint(api: RunningApi) -> None:
    response = api.http.post(RAW, content=b'{"user_id": "a"}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert "Content-Type" in response.json()["error"]["hint"]
