"""An A/B test's statistics against simulated users, and processes that are pinned to a bundle."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from deployment.statistics import uplift
from deployment.statistics.uplift import click_rate, relative_uplift, users_per_arm
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from larder.benches.popularity_bundle import save_popularity
from larder.benches.uplift import ARMS, arm_of
from serving.bundle import load_bundle
from serving.popular import popular_in_table
from tests.running_api import RunningApi, open_shop, publish, rollout_plan, wait_until
from tests.test_cascade import NOW_US, ShopReader, small_shop
from tests.tiny_bundle import make_bundle

SHOWN, SPREAD = 40.0, 0.5


def test_doctests() -> None:
    assert doctest.testmod(uplift, raise_on_error=False).failed == 0


def users(rng: np.random.Generator, n: int, rate: float) -> tuple[Any, Any]:
    """Clicks of users who differ: each has a rate of their own, Beta with mean `rate`."""
    weight = rate / SPREAD**2  # the deviation of a user's rate is about half of the mean
    own = rng.beta(weight * 4, weight * 4 * (1 / rate - 1), n)
    shown = rng.integers(20, 61, n).astype(np.float64)
    return rng.binomial(shown.astype(int), own).astype(np.float64), shown


def test_intervals_hold_the_truth_and_the_power_table_the_promise() -> None:
    """Users as many as the table says find the uplift as often as it says; without one hardly ever."""
    rng = np.random.default_rng(8)
    many = click_rate(*users(rng, 20_000, 0.05))
    assert many.design_effect > 1.1
    n = users_per_arm(0.05, 0.2, shown=many.shown, correlation=many.correlation)
    alone = users_per_arm(0.05, 0.2, shown=many.shown, correlation=0.0)
    assert n == pytest.approx(alone * many.design_effect, rel=0.02)
    found = held = false = 0
    runs = 300
    for _ in range(runs):
        control, treated, again = (click_rate(*users(rng, n, rate)) for rate in (0.05, 0.06, 0.05))
        one, none = relative_uplift([(treated, control)]), relative_uplift([(again, control)])
        found += one.low > 0
        held += one.low <= 0.2 <= one.high
        false += not none.low <= 0 <= none.high
    assert 0.72 < found / runs < 0.88
    assert held / runs > 0.91
    assert false / runs < 0.09


def test_strata_are_averaged() -> None:
    rng = np.random.default_rng(3)
    shops = [(click_rate(*users(rng, 3_000, 0.06)), click_rate(*users(rng, 3_000, 0.05))) for _ in range(3)]
    found, one = relative_uplift(shops), relative_uplift(shops[:1])
    assert found.low < 0.2 < found.high
    assert found.high - found.low < 0.75 * (one.high - one.low)


def test_a_user_stays_in_an_arm_and_arms_are_halves() -> None:
    arms = [arm_of(f"u{n}", 501) for n in range(4_000)]
    assert arms == [arm_of(f"u{n}", 501) for n in range(4_000)]
    assert 0.46 < arms.count(ARMS[0]) / 4_000 < 0.54
    assert arms != [arm_of(f"u{n}", 502) for n in range(4_000)]


def test_the_popularity_bundle_shows_what_is_popular(tmp_path: Path) -> None:
    table = small_shop().table()
    bundle_id = save_popularity(tmp_path, table, name="popular", trained_until_us=NOW_US)
    loaded = load_bundle(tmp_path / bundle_id).recommender
    bought = table.popularity("7d")
    for user in small_shop().user_ids[:5]:
        items = [item.item_id for item in loaded.recommend(ShopReader(), table, user, NOW_US, k=10).items]
        expected = [item.item_id for item in popular_in_table(table, 10)]
        # Half a per cent apart is as good as the same.
        got, best = (np.array([bought[table.index[item]] for item in those]) for those in (items, expected))
        assert got == pytest.approx(best, rel=0.01)


def test_a_pinned_process_serves_its_bundle_whatever_the_plan_says(settings: Settings, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    shop, first = open_shop(settings, client)
    second = make_bundle(settings.bundles_dir, shop, seed=11)
    user = shop.user_ids[0]
    with RunningApi(settings) as plain, RunningApi(replace(settings, pinned_bundle=second)) as pinned:
        assert (plain.recommend(user)["bundle_id"], pinned.recommend(user)["bundle_id"]) == (first, second)
        publish(client, settings, rollout_plan(first, 7, canary=first, weight=5_000))
        wait_until(lambda: plain.ready()["epoch"] == 7)
        answer = pinned.recommend(user)
        assert (answer["bundle_id"], answer["model_version"], answer["arm"]) == (second, "pinned", "stable")
    # What a pinned process serves is nobody's plan: the project's, on disk, is the other's.
    assert second not in settings.plan_path.read_text("utf-8")
    with pytest.raises(BadInputError, match="no bundle id"), RunningApi(replace(settings, pinned_bundle="../x")):
        pass
