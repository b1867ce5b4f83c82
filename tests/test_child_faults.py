"""A candidate's process that hangs, is killed, or outlives its API: users notice nothing, and it is started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST
from tests.running_api import RunningApi, publish, rollout_plan, wait_until
from tests.test_serving_arms import QUICK, bundles, canary_up, logged, user_of
from tests.tiny_bundle import Shop, write_shop

pytestmark = pytest.mark.faults
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


def restarts(api: RunningApi, reason: str) -> float:
    return api.metric(f'larder_child_restarts_total{{reason="{reason}"}}')


def test_a_hung_candidate_is_killed_and_keeps_no_stable_user_waiting(
    settings: Settings, client: redis.Redis, shop: tuple[str, str]
) -> None:
    first, second = shop
    settings = replace(settings, canary_timeout_ms=200)
    plan = rollout_plan(first, 1, canary=second, weight=5000)
    stable, mine = user_of(plan, "baseline"), user_of(plan, "canary")
    publish(client, settings, plan)
    with RunningApi(settings, child_entry="tests.misbehaving_child", child_limits=QUICK) as api:
        wait_until(lambda: canary_up(api))
        pid = api.app.state.serving.release.canary.pid
        stop, waits = threading.Event(), list[float]()

        def ask() -> None:
            while not stop.is_set():
                start = time.monotonic()
                assert api.recommend(stable)["bundle_id"] == first
                waits.append(time.monotonic() - start)

        thread = threading.Thread(target=ask)
        thread.start()
        start = time.monotonic()
        answer = api.recommend(mine, exclude=["hang"])
        took = time.monotonic() - start
        assert (answer["bundle_id"], logged(settings, answer["request_id"]).failure) == (first, "timeout")
        assert took < 0.2 + 0.3
        # Until it is killed others of its users wait their time, then get the stable list; afterwards they do not wait.
        wait_until(lambda: restarts(api, "hung") == 1)
        assert not Path(f"/proc/{pid}").exists()
        assert logged(settings, api.recommend(mine)["request_id"]).failure == "fallback"
        wait_until(lambda: api.recommend(mine)["bundle_id"] == second)
        stop.set()
        thread.join(10)
        assert len(waits) > 20
        assert np.quantile(waits, 0.9) < 0.1, "stable users wait for nobody"


def test_killed_again_and_again_it_is_left_alone_until_there_is_a_new_plan(
    settings: Settings, client: redis.Redis, shop: tuple[str, str]
) -> None:
    first, second = shop
    settings = replace(settings, canary_timeout_ms=500)
    plan = rollout_plan(first, 1, canary=second, weight=5000)
    mine = user_of(plan, "canary")
    publish(client, settings, plan)
    with RunningApi(settings, child_limits=QUICK) as api:
        for deaths in range(1, QUICK.deaths + 1):
            wait_until(lambda: canary_up(api))
            os.kill(api.app.state.serving.release.canary.pid, signal.SIGKILL)
            assert len(api.recommend(mine)["items"]) == 20
            wait_until(lambda deaths=deaths: restarts(api, "died") == deaths)
        wait_until(lambda: "3 times in a row" in " ".join(api.ready()["problems"]))
        assert logged(settings, api.recommend(mine)["request_id"]).failure == "fallback"
        publish(client, settings, replace(plan, epoch=2, weight=4999))
        wait_until(lambda: canary_up(api))
        wait_until(lambda: api.recommend(mine)["bundle_id"] == second)


def test_it_dies_with_its_api_even_while_it_hangs(shop: tuple[str, str], settings: Settings, tmp_path: Path) -> None:
    """The API is killed with -9; the process, which reads nothing at that moment, is ended by the kernel."""
    code = f"""
import asyncio, sys
from pathlib import Path
from serving.child_scorer.child import ChildScorer
from serving.item_table_source import ItemTableSource
from serving.cascade.items import CatalogEntry, build_item_table
from feature_repo.rows import null_rows
from feature_repo.views import ITEM_STATS
from serving.plan import Arm

async def run():
    source = ItemTableSource(None, lambda: 0)
    source._table = build_item_table([CatalogEntry("i")], null_rows(ITEM_STATS, 1), 10**15)
    child = ChildScorer(Arm({shop[1]!r}, "2"), Path({str(settings.bundles_dir)!r}), source, print)
    child.start()
    while child.ready is None:
        await asyncio.sleep(0.05)
    print(child.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as api:
        assert api.stdout is not None
        pid = int(api.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        api.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
