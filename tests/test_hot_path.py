"""The short way to recommendations answers exactly as the framework's route does, to right and to wrong requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from feature_repo.settings import Settings
from tests.running_api import RunningApi, open_shop

#: Not letter for letter what the short way takes: the framework answers.
LONG_WAY = {"Content-Type": "application/json; charset=utf-8"}
SHORT_WAY = {"Content-Type": "application/json"}


@pytest.fixture
def api(settings: Settings, redis_url: str) -> Iterator[RunningApi]:
    with redis.Redis.from_url(redis_url) as client:
        open_shop(settings, client)
        with RunningApi(settings) as running:
            yield running


def both(api: RunningApi, body: bytes) -> tuple[httpx.Response, httpx.Response]:
    one, other = (api.http.post("/v1/recommendations", content=body, headers=way) for way in (SHORT_WAY, LONG_WAY))
    return one, other


def comparable(response: httpx.Response) -> dict[str, Any]:
    found = response.json()
    own = {"request_id", "feature_age_s", "item_table_age_s"}
    if "error" in found:
        found = found["error"]
    for item in found.get("items", ()):  # the item table may be another between the two, decayed to its own moment
        item["score"] = pytest.approx(item["score"], rel=1e-6)
    return {name: value for name, value in found.items() if name not in own}


ids = st.sampled_from(["u00000", "u00001", "nobody", "", " ", "a\u0301", "x" * 200, 7, None, True, "a\x00"])
bodies = st.fixed_dictionaries(
    {"user_id": ids},
    optional={
        "k": st.sampled_from([1, 5, 20, 1000, 0, -1, 1001, 2.0, "5", True, None]),
        "exclude": st.sampled_from([[], ["i00000"], ["i00000", ""], "i00000", [1], None, ["x"] * 1001]),
        "repeats": st.sampled_from(["keep", "drop", "some", None, 1]),
        "request_id": ids,
        "diversity": st.sampled_from(["off", "category_cap", "mmr", "much", None]),
        "explain": st.sampled_from([False, "yes", None, 1]),
        "unknown": st.just(1),
    },
)


@given(body=bodies)
@example_settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_answer_alike(api: RunningApi, body: dict[str, Any]) -> None:
    short, long = both(api, json.dumps(body).encode())
    assert short.status_code == long.status_code
    assert short.headers["content-type"] == long.headers["content-type"]
    assert comparable(short) == comparable(long)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"user_id": "\\ud800"}',
        b'{"user_id": NaN}',
        b"\xff",
        b"[" * 5000,
        b'{"user_id": 1e999}',
    ],
)
def test_what_is_no_request_is_refused_alike(api: RunningApi, body: bytes) -> None:
    short, long = both(api, body)
    assert short.status_code == long.status_code == 422
    assert comparable(short) == comparable(long)


def test_the_short_way_is_taken_measured_and_recorded(api: RunningApi) -> None:
    answer = api.http.post(
        "/v1/recommendations", content=b'{"user_id": "u00001", "request_id": "mine"}', headers=SHORT_WAY
    )
    assert answer.json()["request_id"] == "mine"
    # The framework adds nothing of its own to the scope of what it never saw.
    line = 'larder_requests_total{arm="stable",level="full",route="/v1/recommendations",status="200"}'
    assert api.metric(line) == 1


def test_a_body_in_pieces_is_read_whole(api: RunningApi) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"user_id": '
        yield b'"u00001"}'

    headers = {**SHORT_WAY, "Content-Length": str(len(b'{"user_id": "u00001"}'))}
    assert api.http.post("/v1/recommendations", content=pieces(), headers=headers).status_code == 200


def test_other_methods_and_large_bodies_go_to_the_framework(api: RunningApi) -> None:
    assert api.http.get("/v1/recommendations").status_code == 405
    large = json.dumps({"user_id": "u00001", "exclude": ["x" * 100] * 900}).encode()
    assert len(large) > 65_536
    assert api.http.post("/v1/recommendations", content=large, headers=SHORT_WAY).status_code == 200
