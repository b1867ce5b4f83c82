"""Feedback: checked against what was shown, counted once, in the stream, in the features; the last verdict holds."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.event_rules import REASONS
from feature_repo.online_keys import events_key
from feature_repo.quarantine import refused_counts
from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder_client.answers import Feedback
from larder_client.client import AsyncLarderClient, LarderClient
from serving.event_entry import RefusedEvent
from serving.feedback_intake import FIELDS, VERDICTS, to_event
from serving.shown_lists import MAX_REQUESTS, ShownLists
from tests.running_api import RunningApi, open_shop, wait_until
from tests.test_api_entry import features, working


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, settings.redis_port) as client:
        yield client


def say(api: RunningApi, *sent: dict[str, Any]) -> Any:
    return api.http.post("/v1/feedback", json={"feedback": list(sent)})


def verdict(item: str, verdict: str = "confirm", **fields: Any) -> dict[str, Any]:
    return {"request_id": "r1", "user_id": "u00001", "item_id": item, "verdict": verdict} | fields


async def test_feedback_from_the_answer_to_the_features(settings: Settings, client: redis.Redis) -> None:
    open_shop(settings, client)
    with RunningApi(settings) as api, working(settings):
        shown = [item["item_id"] for item in api.recommend("u00001", k=5, request_id="r1")["items"]]
        others = {f"i{number:05}" for number in range(1, 30)} - set(shown)
        first, absent = shown[2], min(others)
        likes = lambda: (features(api, "u00001")["user_stats"] or {}).get("user_likes") or 0  # noqa: E731 - read thrice
        before = likes()
        entries = client.xlen(events_key(settings.project))
        answer = say(api, verdict(first), verdict(absent), verdict(absent, request_id="elsewhere"), verdict("a\nb"))
        assert answer.status_code == 202, answer.text
        body = answer.json()
        assert (body["accepted"], body["duplicates"], body["rejected"]) == (2, 0, 2)
        assert [one["shown"] for one in body["results"]] == [True, False, None, None]
        assert body["results"][1]["reason"].startswith("not_shown")
        assert body["results"][3]["reason"].startswith("bad_id")
        # The same words again, and a change of mind.
        again = say(api, verdict(first)).json()
        assert (again["accepted"], again["duplicates"]) == (0, 1)
        assert again["results"][0]["seq"] == body["results"][0]["seq"]
        with LarderClient(str(api.http.base_url)) as larder:
            no = Feedback(request_id="r1", user_id="u00001", item_id=first, verdict="reject")
            assert larder.give_feedback([no]).results[0].shown is True
            assert larder.give_feedback([no]).duplicates == 1
        async with AsyncLarderClient(str(api.http.base_url)) as larder:
            yes = Feedback(request_id="r1", user_id="u00001", item_id=first, verdict="confirm")
            assert (await larder.give_feedback([yes])).accepted == 1
        wait_until(lambda: likes() == before + 3)
        assert client.xlen(events_key(settings.project)) <= entries + 4, "duplicates and refusals are no events"
        refused = refused_counts(client, settings.project)
        assert any("not_shown" in str(key) for key in refused), refused
        assert api.metric('larder_events_total{status="rejected"') == 2


def test_feedback_that_cannot_be_used_is_refused(settings: Settings, client: redis.Redis) -> None:
    open_shop(settings, client)
    with RunningApi(settings) as api:
        for sent in (
            verdict("i00001", "maybe"), verdict("i00001", None), verdict("i00001", ["confirm"]), verdict("", "reject"),
            verdict("i00001", request_id=None), verdict("i00001", feedback_id=""), verdict("i00001", feedback_id=7),
            verdict("i00001", event_timestamp="2001-01-01T00:00:00Z"), verdict("i00001", event_timestamp="yesterday"),
            verdict("i00001", event_timestamp={}), verdict("i00001", rank=1), {},
        ):  # fmt: skip
            answer = say(api, sent)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "body.feedback.0"), (
                sent,
                answer.text,
            )
        for body in (
            b"{}",
            b'{"feedback": []}',
            b'{"feedback": ["x"]}',
            b'{"feedback": [{"verdict": NaN}]}',
            b"[",
            b"",
        ):
            answer = api.http.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, (body, answer.text)
        many = json.dumps({"feedback": [verdict("i00001")] * 1001}).encode()
        assert api.http.post("/v1/feedback", content=many).status_code in (413, 415, 422)
        assert "/v1/feedback" in api.http.get("/openapi.json").json()["paths"]


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.lists(st.text(max_size=3), max_size=2)
)


@given(
    st.dictionaries(st.one_of(st.sampled_from([*sorted(FIELDS), "rank"])), st.one_of(ANY, st.sampled_from(VERDICTS)))
)
@hypothesis_settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
def test_whatever_is_sent_is_an_event_or_has_a_reason(sent: dict[str, Any]) -> None:
    try:
        event, was_shown = to_event(sent, ShownLists())
    except RefusedEvent as refusal:
        assert str(refusal).partition(":")[0] in REASONS
    else:
        assert event["event_type"] in VERDICTS and event["event_id"] is not None and was_shown is None


TRIPLE = st.tuples(
    st.sampled_from(["r", "s"]), st.sampled_from(["u", "v"]), st.lists(st.sampled_from("abcd"), unique=True)
)


@given(st.lists(TRIPLE, max_size=4))
def test_the_rank_is_that_in_the_newest_list_with_the_item(served: list[tuple[str, str, list[str]]]) -> None:
    lists = ShownLists()
    for request, user, items in served:
        lists.remember(request, user, items)
    for item in "abcd":
        mine = [items for request, user, items in served if (request, user) == ("r", "u")]
        ranks = [items.index(item) + 1 for items in mine if item in items]
        assert lists.rank("r", "u", item) == (None if not mine else ranks[-1] if ranks else 0)


def test_the_oldest_lists_are_forgotten_and_long_ones_cut() -> None:
    lists = ShownLists(max_requests=2, buckets=1)
    for number in range(3):
        lists.remember(f"r{number}", "u", [f"i{place}" for place in range(500)])
    assert lists.rank("r0", "u", "i0") is None
    assert lists.rank("r2", "u", "i0") == 1
    assert lists.rank("r2", "u", "i400") is None, "beyond what is remembered: not known, not refused"


def test_what_is_remembered_takes_no_more_room_once_it_is_full() -> None:
    lists, items = ShownLists(), [f"i{place}" for place in range(20)]
    tracemalloc.start()
    try:
        for number in range(100_000):
            lists.remember(f"r{number}", "u", items)
            if number == 30_000:
                tracemalloc.reset_peak()
                full = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[1] - full
    finally:
        tracemalloc.stop()
    assert grown < 500_000, "while a table of all lists is built anew, there are two of them"
    known = [number for number in range(100_000) if lists.rank(f"r{number}", "u", "i3") == 4]
    assert known[-15_000:] == list(range(85_000, 100_000)) and len(known) <= MAX_REQUESTS
