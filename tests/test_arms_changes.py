"""Arms while things change: plans under load, items that move while a candidate starts, a shadow on a busy API."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from feature_repo.online_keys import changed_key, row_key
from feature_repo.packed_tail import CatalogItem, pack_catalog
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW
from larder.services.ports import HOST
from serving.child_scorer import child
from serving.impressions import read_impressions, read_shadow
from serving.signature import ENVIRONMENT
from tests.running_api import RunningApi, plan_for, publish, rollout_plan, wait_until
from tests.test_serving_arms import QUICK, USERS, bundles, canary_up, user_of
from tests.tiny_bundle import Shop, write_shop

__all__ = ["bundles"]


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, settings.redis_port) as client:
        yield client


@pytest.fixture
def shop(settings: Settings, client: redis.Redis, bundles: tuple[Path, Shop, str, str]) -> tuple[str, str]:
    directory, shop, first, second = bundles
    write_shop(shop, client, settings.project)
    shutil.copytree(directory, settings.bundles_dir)
    return first, second


def write_items(client: redis.Redis, settings: Settings, items: list[CatalogItem]) -> None:
    now_us = time.time_ns() // 1000
    pipe = client.pipeline(transaction=False)
    for item, row in zip(items, pack_catalog(items, np.full(len(items), now_us)), strict=True):
        pipe.set(row_key(settings.project, CATALOG_VIEW, item.item_id), row)
    # One after the other: those of the newest millisecond are looked at twice.
    first_ms = now_us // 1000 - len(items)
    pipe.zadd(changed_key(settings.project), {item.item_id: first_ms + n for n, item in enumerate(items, start=1)})
    pipe.execute()


def shadow_up(api: RunningApi) -> bool:
    release = api.app.state.serving.release
    return release is not None and release.shadow is not None and release.shadow.ready is not None


def test_plans_change_under_load_and_no_request_fails(
    settings: Settings, client: redis.Redis, shop: tuple[str, str]
) -> None:
    """Shadow, canary, more of it, another stable bundle, and back, within 2 s each: all requests are answered."""
    first, second = shop
    settings = replace(settings, canary_timeout_ms=1000)
    plans = [
        rollout_plan(first, 2, shadow=second),
        rollout_plan(first, 3, canary=second, weight=1000),
        rollout_plan(first, 4, canary=second, weight=5000),
        plan_for(second, 5),
        rollout_plan(second, 6, canary=first, weight=5000),
        plan_for(first, 7),
    ]
    publish(client, settings, plan_for(first))
    with RunningApi(settings) as api:
        wait_until(lambda: api.ready()["status"] == "ready")
        stop, statuses, answers = threading.Event(), list[int](), list[dict[str, Any]]()

        def ask(users: list[str]) -> None:
            with httpx.Client(base_url=api.http.base_url, timeout=10.0) as http:
                while not stop.is_set():
                    for user in users:
                        response = http.post("/v1/recommendations", json={"user_id": user, "k": 10})
                        statuses.append(response.status_code)
                        answers.append(response.json())

        threads = [threading.Thread(target=ask, args=(USERS[n::2],)) for n in range(2)]
        for thread in threads:
            thread.start()
        for plan in plans:
            publish(client, settings, plan)
            published = time.monotonic()
            wait_until(lambda plan=plan: api.ready()["epoch"] == plan.epoch)
            assert time.monotonic() - published < 2.0
            if plan.shadow is not None:
                wait_until(lambda: shadow_up(api))
                pid = api.app.state.serving.release.shadow.pid
            if plan.canary is not None:
                wait_until(lambda: canary_up(api))
                if plan.canary.bundle_id == second:
                    assert api.app.state.serving.release.canary.pid == pid, "the shadow's process became the canary's"
        stop.set()
        for thread in threads:
            thread.join(20)
    assert set(statuses) == {200}
    assert {answer["level"] for answer in answers} == {"full"}
    assert {len(answer["items"]) for answer in answers} == {10}
    bundle = {"1": first, "2": second, "5": second, "7": first}
    wanted = {(plan.epoch, arm): plan for plan in plans for arm in ("stable", "baseline", "canary")}
    records = list(read_impressions(settings.impressions_dir))
    assert len(records) == len(answers)
    for record in records:
        plan = wanted.get((record.epoch, record.assigned_arm))
        if plan is not None and record.failure is None:
            arm = plan.canary if record.assigned_arm == "canary" else plan.stable
            assert arm is not None
            assert (record.served_bundle, record.model_version) == (arm.bundle_id, arm.model_version)
    assert bundle["2"] in {record.served_bundle for record in records if record.assigned_arm == "canary"}


@pytest.mark.faults
def test_a_catalogue_that_changes_while_a_candidate_starts_does_not_end_it(
    settings: Settings, client: redis.Redis, shop: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole table, not yet read, may be larger than all changes that may wait: who starts reads nothing."""
    first, second = shop
    monkeypatch.setattr(child, "_MAX_UNSENT_BYTES", 100_000)
    write_items(client, settings, [CatalogItem(f"x{n:05d}", "A title of some length", "tea", 9) for n in range(4000)])
    publish(client, settings, rollout_plan(first, 1, canary=second, weight=5000))
    with RunningApi(settings) as api:
        for n in range(1000):
            if canary_up(api):
                break
            write_items(client, settings, [CatalogItem(f"x{n:05d}", "Another title", "tea", 10)])
            time.sleep(0.05)
        assert canary_up(api)
        assert n > 3
        assert api.metric("larder_child_restarts_total{") == 0
        pid = api.app.state.serving.release.canary.pid
        assert ENVIRONMENT.encode() not in Path(f"/proc/{pid}/environ").read_bytes(), "a candidate signs nothing"
        # What was sent meanwhile has arrived: both tables are the same, and it answers from it.
        wait_until(lambda: api.app.state.serving.release.canary.table is api.app.state.serving.table)
        wait_until(lambda: second in {api.recommend(user)["bundle_id"] for user in USERS})


@pytest.mark.faults
def test_a_candidate_that_does_not_fit_into_its_memory_is_reported_and_stable_answers(
    settings: Settings, client: redis.Redis, shop: tuple[str, str]
) -> None:
    first, second = shop
    plan = rollout_plan(first, 1, canary=second, weight=5000)
    publish(client, settings, plan)
    with RunningApi(settings, child_limits=replace(QUICK, memory_mb=150)) as api:
        wait_until(lambda: api.ready()["status"] == "degraded")
        assert second in api.ready()["problems"][0]
        answer = api.recommend(user_of(plan, "canary"))
        assert (answer["arm"], answer["bundle_id"], answer["level"]) == ("canary", first, "full")
        assert api.app.state.serving.release.canary.ready is None


def test_users_go_before_the_shadow_and_what_it_did_not_see_is_counted(
    settings: Settings, client: redis.Redis, shop: tuple[str, str]
) -> None:
    first, second = shop
    publish(client, settings, rollout_plan(first, 1, shadow=second))
    with RunningApi(settings, child_entry="tests.misbehaving_child") as api:
        wait_until(lambda: shadow_up(api))
        state = api.app.state.serving
        state.under_way += 1  # always somebody waits
        for n in range(90):
            api.recommend(USERS[n % 30], k=3)
        assert api.metric('larder_shadow_total{result="dropped"}') > 5
        assert api.metric('larder_shadow_total{result="compared"}') < 40
        state.under_way -= 1
        wait_until(
            lambda: (
                api.metric('larder_shadow_total{result="compared"}')
                + api.metric('larder_shadow_total{result="dropped"}')
                == 90
            )
        )
        api.recommend(USERS[0])
        dropped = int(api.metric('larder_shadow_total{result="dropped"}'))

        def noted() -> int:
            return sum(record.dropped for record in read_shadow(settings.shadow_dir))

        wait_until(lambda: noted() == dropped)
        # A shadow that goes is not to blame for what it was not asked any more.
        for user in USERS[:12]:
            api.recommend(user, k=3, exclude=["slow"])
        publish(client, settings, plan_for(first, 2))
        wait_until(lambda: api.ready()["epoch"] == 2)
        wait_until(lambda: api.metric('larder_shadow_total{result="dropped"}') >= dropped + 8)
        records = list(read_shadow(settings.shadow_dir))
        assert {record.error for record in records} == {None}
        assert {record.events for record in records} <= {"1-9", "10-99"}
        assert {record.category for record in records} <= {"bread", "cheese", "jam", "tea"}
