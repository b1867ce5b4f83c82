"""Live quality of a real shop: lists of a real bundle over HTTP, clicks and verdicts through the stream, one report."""

from __future__ import annotations

import time

import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST
from monitoring.live_quality.measure import Extent, measure
from tests.live_shop import logged_seqs
from tests.running_api import RunningApi, open_shop, wait_until
from tests.test_api_entry import working


def test_what_an_api_served_and_its_users_did_is_in_the_report(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        _, bundle_id = open_shop(settings, client)
    scores, bought = [], 0
    with RunningApi(settings) as api, working(settings):
        for n in range(20):
            user = f"u{n:05}"
            answer = api.recommend(user, k=5, request_id=f"r{n}")
            assert (answer["bundle_id"], answer["level"]) == (bundle_id, "full")
            scores += [item["score"] for item in answer["items"] if item["source"] != "popular"]
            said = {"user_id": user, "request_id": f"r{n}", "item_id": answer["items"][1]["item_id"]}
            if n % 2:
                bought += answer["items"][1]["source"] != "popular"  # what fills a list has no probability
                events = [said | {"event_type": "view", "rank": 2}, said | {"event_type": "purchase", "rank": 2}]
                assert api.http.post("/v1/events", json={"events": events}).json()["accepted"] == 2
            verdict = said | {"verdict": "confirm" if n % 4 else "reject"}
            assert api.http.post("/v1/feedback", json={"feedback": [verdict]}).json()["accepted"] == 1
        api.recommend("nobody knows", k=5)
        wait_until(lambda: list(settings.events_dir.glob("day=*/live-*.parquet")) and len(logged_seqs(settings)) == 40)
    now = time.time_ns() // 1000
    report = measure(settings, now, Extent(wait_us=0, window_us=1_000))  # no window is open any more
    assert report.events("settled", "too_late", kinds=("view",)) == 10
    report = measure(settings, now, Extent(wait_us=0))
    assert report.champion == bundle_id
    (group,) = report.of("all")
    assert (group.arm, group.requests, group.users, group.shown) == ("stable", 21, 21, 105)
    assert {one.segment: one.requests for one in report.groups if one.segment != "all"} == {"cold": 20, "new": 1}
    found = {name: one.value for name, one in group.figures.items()}
    assert found["ctr"] == pytest.approx(10 / 105)
    assert (found["mrr"], found["confirmed"]) == (0.5, 0.75)
    assert "predicted" not in found, "its windows are open"
    later = measure(settings, now + 2 * 86_400_000_000, Extent(wait_us=0, since_us=report.since_us))
    (group,) = later.of("all")
    assert group.figures["predicted"].value == pytest.approx(sum(scores) / len(scores))
    assert group.figures["observed"].numerator == bought
