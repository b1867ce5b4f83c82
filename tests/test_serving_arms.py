"""Plans with arms over real HTTP: who gets which bundle, what a bad candidate does to its users, and what is logged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from feature_repo.online_keys import changed_key, row_key
from feature_repo.packed_tail import CatalogItem, pack_catalog
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW
from larder.services.ports import HOST
from serving.assignment import assign
from serving.child_scorer.process import ChildLimits
from serving.impressions import ImpressionRecord, read_impressions, read_shadow
from serving.plan import Plan, save_plan
from serving.signature import signing_key
from tests.running_api import RunningApi, plan_for, publish, rollout_plan, wait_until
from tests.tiny_bundle import Shop, make_bundle, make_shop, write_shop

QUICK = ChildLimits(hung_s=0.4, backoff_s=0.05, deaths=3, cooldown_s=30.0, retry_s=0.2)
USERS = [f"u{n:05d}" for n in range(30)]


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, settings.redis_port) as client:
        yield client


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shop, str, str]:
    """A shop and two different bundles of it, fitted once."""
    directory = tmp_path_factory.mktemp("bundles")
    shop = make_shop(time.time_ns() // 1000)
    return directory, shop, make_bundle(directory, shop), make_bundle(directory, shop, seed=11)


@pytest.fixture
def shop(settings: Settings, client: redis.Redis, bundles: tuple[Path, Shop, str, str]) -> tuple[Shop, str, str]:
    """The shop in Redis, both bundles in the content store; no plan."""
    directory, shop, first, second = bundles
    write_shop(shop, client, settings.project)
    shutil.copytree(directory, settings.bundles_dir)
    return shop, first, second


def user_of(plan: Plan, arm: str) -> str:
    return next(user for user in USERS if assign(plan, user) == arm)


def canary_up(api: RunningApi) -> bool:
    release = api.app.state.serving.release
    return release is not None and release.canary is not None and release.canary.ready is not None


def logged(settings: Settings, request_id: str) -> ImpressionRecord:
    def found() -> list[ImpressionRecord]:
        return [one for one in read_impressions(settings.impressions_dir) if one.request_id == request_id]

    record: ImpressionRecord = wait_until(found)[0]
    return record


def listed(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(i["item_id"], i["rank"], i["score"], i["source"], i["slot"]) for i in answer["items"]]


def test_arms_get_their_bundles_and_a_new_weight_loads_nothing(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    settings = replace(settings, canary_timeout_ms=2000)
    plan = rollout_plan(first, 1, canary=second, weight=2000)
    publish(client, settings, plan)
    with RunningApi(settings) as api:
        wait_until(lambda: canary_up(api))
        expected = {"stable": (first, "1"), "baseline": (first, "1"), "canary": (second, "2")}
        arms = {}
        for user in USERS:
            answer = api.recommend(user)
            arms[user] = answer["arm"]
            assert (answer["bundle_id"], answer["model_version"]) == expected[answer["arm"]]
            assert answer["level"] == "full"
        assert arms == {user: assign(plan, user) for user in USERS}
        assert set(arms.values()) == set(expected)
        record = logged(settings, api.recommend(user_of(plan, "canary"))["request_id"])
        assert (record.assigned_arm, record.served_bundle, record.failure, record.epoch) == ("canary", second, None, 1)
        assert record.latency_ms is not None
        assert 0 < record.latency_ms < 2000
        assert record.seen is not None
        assert record.seen.rows == len(record.items)
        # The same process goes on; more users come to the canary, none leaves it.
        state = api.app.state.serving
        before, pid = state.release, state.release.canary.pid
        wider = rollout_plan(first, 2, canary=second, weight=5000)
        publish(client, settings, wider)
        wait_until(lambda: api.ready()["epoch"] == 2)
        assert state.release.bundle is before.bundle
        assert state.release.canary.pid == pid
        now = {user: api.recommend(user)["arm"] for user in USERS}
        assert {user for user in USERS if arms[user] == "canary"} < {user for user in USERS if now[user] == "canary"}
        assert api.metric('larder_arm_seconds_count{arm="canary"}') > 5
        assert api.metric(f'larder_model_info{{arm="canary",bundle_id="{second}",model_version="2"}}') == 1
        # Without the canary its process ends.
        publish(client, settings, plan_for(first, epoch=3))
        wait_until(lambda: api.ready()["epoch"] == 3)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert {api.recommend(user)["arm"] for user in USERS} == {"stable"}


def test_a_process_answers_bit_for_bit_like_the_api_itself(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    """The same bundle as canary and as stable: lists, scores and all the ranker saw, after changes of items, too."""
    known, first, _ = shop
    settings = replace(settings, canary_timeout_ms=2000, impression_all_candidates_share=1.0)
    plan = rollout_plan(first, 1, canary=first, weight=5000)
    publish(client, settings, plan)
    now_us = time.time_ns() // 1000
    wishes: list[dict[str, Any]] = [
        {"k": 7, "repeats": "drop"},
        {"k": 40, "exclude": ["i00001", "i00007"], "diversity": "category_cap"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.app.now_us", lambda: now_us)  # decay is by the request's moment
        with RunningApi(settings) as api:
            wait_until(lambda: canary_up(api))
            changed = [CatalogItem("new", "New", "bread", 100), CatalogItem("i00003", "Gone", "bread", 9, None, False)]
            for item, row in zip(changed, pack_catalog(changed, np.full(2, now_us)), strict=True):
                client.set(row_key(settings.project, CATALOG_VIEW, item.item_id), row)
                client.zadd(changed_key(settings.project), {item.item_id: now_us // 1000 + 1})
            wait_until(lambda: api.ready()["items"] == len(known.item_ids) + 1)
            wait_until(lambda: "i00003" not in str(api.http.get("/v1/items/popular?k=100").json()))
            ask = [(user, wish) for user in [*USERS, "nobody"] for wish in wishes]
            theirs = [api.recommend(user, **wish) for user, wish in ask]
            publish(client, settings, plan_for(first, epoch=2))
            wait_until(lambda: api.ready()["epoch"] == 2)
            ours = [api.recommend(user, **wish) for user, wish in ask]
    arms = [answer["arm"] for answer in theirs]
    assert arms.count("canary") >= 10
    assert {answer["arm"] for answer in ours} == {"stable"}
    for a, b in zip(ours, theirs, strict=True):
        assert listed(a) == listed(b)
        assert (a["level"], a["reasons"]) == (b["level"], b["reasons"])
    records = {record.request_id: record for record in read_impressions(settings.impressions_dir)}
    assert {records[answer["request_id"]].failure for answer in theirs} == {None}
    for a, b in zip(ours, theirs, strict=True):
        saw = records[a["request_id"]].seen
        assert saw == records[b["request_id"]].seen
        assert saw is None or saw.candidates


def test_a_bad_candidates_users_get_the_stable_list_and_the_record_says_why(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    settings = replace(settings, canary_timeout_ms=250)
    plan = rollout_plan(first, 1, canary=second, weight=5000)
    user = user_of(plan, "canary")
    publish(client, settings, plan)
    with RunningApi(settings, child_entry="tests.misbehaving_child") as api:
        wait_until(lambda: canary_up(api))
        wait_until(lambda: api.recommend(user)["bundle_id"] == second)
        bad = {"raise": "error", "grow": "error", "nan": "non_finite", "nothing": "empty", "slow": "timeout"}
        for behaviour, failure in bad.items():
            name = f'larder_canary_failures_total{{kind="{failure}"}}'
            before = api.metric(name)
            answer = api.recommend(user, exclude=[behaviour])
            assert (answer["arm"], answer["bundle_id"], answer["level"]) == ("canary", first, "full")
            assert len(answer["items"]) == 20
            record = logged(settings, answer["request_id"])
            assert (record.failure, record.assigned_arm, record.served_bundle) == (failure, "canary", first)
            assert api.metric(name) == before + 1
        # A few bad answers are no reason to end the process.
        wait_until(lambda: api.recommend(user)["bundle_id"] == second)
        assert api.metric("larder_child_restarts_total{") == 0


def test_a_candidate_that_cannot_be_loaded_is_reported_and_stable_answers(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    kept = settings.bundles_dir.parent / "kept"
    shutil.move(settings.bundles_dir / second, kept)
    plan = rollout_plan(first, 1, canary=second, weight=5000)
    user = user_of(plan, "canary")
    publish(client, settings, plan)
    with RunningApi(settings, child_limits=QUICK) as api:
        assert api.recommend(user)["bundle_id"] == first, "the stable bundle does not wait"
        wait_until(lambda: api.ready()["status"] == "degraded")
        ready = api.ready()
        assert (ready["epoch"], ready["bundle_id"]) == (1, first)
        assert second in ready["problems"][0] and "refused" in ready["problems"][0]
        answer = api.recommend(user)
        assert (answer["arm"], answer["bundle_id"]) == ("canary", first)
        assert logged(settings, answer["request_id"]).failure == "fallback"
        assert api.metric('larder_child_restarts_total{reason="refused"}') >= 1
        # It arrives on the disk.
        shutil.move(kept, settings.bundles_dir / second)
        wait_until(lambda: api.recommend(user)["bundle_id"] == second)
        wait_until(lambda: api.ready()["status"] == "ready")


def test_a_shadow_is_compared_and_changes_no_answer(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    publish(client, settings, rollout_plan(first, 4, shadow=second))
    with RunningApi(settings, child_entry="tests.misbehaving_child") as api:
        wait_until(lambda: api.app.state.serving.release.shadow.ready)
        answers = [api.recommend(user, k=10) for user in USERS[:5]]
        answers.append(api.recommend(USERS[5], k=10, exclude=["raise"]))
        assert {(a["bundle_id"], a["arm"]) for a in answers} == {(first, "stable")}
        wait_until(lambda: len(list(read_shadow(settings.shadow_dir))) == 6)
        records = {record.request_id: record for record in read_shadow(settings.shadow_dir)}
        for answer in answers[:5]:
            record = records[answer["request_id"]]
            assert (record.bundle_id, record.stable_bundle, record.epoch, record.k) == (second, first, 4, 10)
            assert (record.error, record.known, record.level) == (None, True, "full")
            assert record.overlap is not None
            assert 0.0 < record.overlap <= 1.0
            assert record.latency_ms is not None
            assert record.category
        assert records[answers[5]["request_id"]].error == "error"
        assert api.metric('larder_shadow_total{result="compared"}') == 5
        assert api.metric('larder_shadow_total{result="error"}') == 1


def test_at_a_start_an_old_plan_in_redis_does_not_undo_the_one_on_disk(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    save_plan(plan_for(second, epoch=7), settings.plan_path, signing_key(settings))
    publish(client, settings, plan_for(first, epoch=3))
    with RunningApi(settings) as api:
        assert (api.ready()["epoch"], api.recommend("u00001")["bundle_id"]) == (7, second)
        assert api.metric('larder_plans_refused_total{reason="older_epoch"}') == 1
        publish(client, settings, plan_for(first, epoch=8))
        wait_until(lambda: api.ready()["epoch"] == 8)
