"""What watches live quality: decay of a champion's CTR, its history, gauges with few series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry

from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from monitoring.live_quality.decay import CtrWindow, ctr_decay, window_of
from monitoring.live_quality.gauges import QualityMetrics, write_gauges
from monitoring.live_quality.history import add_to_history, history_path, read_history
from monitoring.live_quality.measure import Extent, measure
from monitoring.live_quality.watch import look
from tests.answered_shop import NOW_US, AnsweredShop, random_shop


def windows(rng: np.random.Generator, days: int, ctr: float = 0.05, error: float = 0.002, **fields) -> list[CtrWindow]:
    return [
        CtrWindow("b1", day * DAY_US, (day + 1) * DAY_US, float(rng.normal(ctr, error)), error, 10_000.0)
        for day in range(days)
    ]


def test_a_steady_champion_raises_no_alarm_and_one_that_decays_does() -> None:
    rng, false, found = np.random.default_rng(1), 0, 0
    for _ in range(50):
        steady = windows(rng, 34)
        false += any(decay.alarm for n in range(4, 35) if (decay := ctr_decay(steady[:n])))
        decayed = [*steady[:10], *(replace(one, ctr=one.ctr * 0.65) for one in steady[10:12])]
        found += bool((decay := ctr_decay(decayed)) and decay.alarm)
    assert false == 0, "31 looks at each of 50 steady months"
    assert found >= 48


def test_decay_says_what_it_compared() -> None:
    rng = np.random.default_rng(2)
    days = windows(rng, 8, error=1e-4)
    assert ctr_decay([]) is None
    assert ctr_decay(days[:3]) is None, "its first days are what it is held against"
    low = [*days[:6], *(replace(one, ctr=0.035) for one in days[6:])]
    decay = ctr_decay(low)
    assert decay is not None
    assert decay.alarm
    assert (decay.subject, decay.value, decay.window_s) == ("b1", 0.035, 86_400.0)
    assert abs(decay.threshold - 0.045) < 1e-3
    assert decay.p_value < 1e-6
    assert decay.details["effect_low"] < decay.effect < decay.details["effect_high"] < -0.25
    alone = ctr_decay(low[:-1])
    assert alone is not None
    assert alone.p_value < 1e-6
    assert not alone.alarm, "one low window may be a holiday"
    overlapping = replace(low[6], since_us=low[6].since_us + DAY_US // 24, until_us=low[6].until_us + DAY_US // 24)
    assert not ctr_decay([*low[:7], overlapping]).alarm, "the same day again is no second one"
    new = replace(days[0], bundle_id="b2", since_us=9 * DAY_US, until_us=10 * DAY_US, ctr=0.01)
    assert ctr_decay([*low, new]) is None, "another champion begins anew"


def test_history_keeps_the_first_days_and_the_newest(settings: Settings) -> None:
    days = windows(np.random.default_rng(3), 150)
    for day in days:
        kept = add_to_history(settings, day)
    assert read_history(settings) == kept == [*days[:3], *days[-100:]]
    assert add_to_history(settings, days[-1]) == kept, "the same window once"
    assert add_to_history(settings, replace(days[-1], bundle_id="b2")) == [replace(days[-1], bundle_id="b2")]
    history_path(settings).write_text("[{")
    assert read_history(settings) == []


def test_gauges_have_closed_labels_whatever_was_served(settings: Settings) -> None:
    shop = random_shop(settings, 5)
    shop.show("odd", "ann", ["i1"], NOW_US - DAY_US, assigned_arm="made up", served_bundle="b9")
    for n in range(40):  # many champions in a row
        shop.show(f"s{n}", f"u{n}", ["i1"], NOW_US - DAY_US + n, served_bundle=f"x{n}")
    shop.events.clear()
    AnsweredShop(settings, shop.lists).write()
    report = measure(settings, NOW_US, Extent())
    metrics, registry = QualityMetrics(), CollectorRegistry()
    registry.register(metrics)
    assert list(registry.collect()) == []
    metrics.measured(report)
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert len(samples) < 500
    assert {sample.labels["arm"] for sample in samples if "arm" in sample.labels} <= {"stable", "baseline", "canary"}
    assert sum(sample.name == "larder_quality_bundle_info" for sample in samples) == 2
    text = write_gauges(settings, report).read_text("utf-8")
    assert 'larder_quality_value{arm="canary",figure="ctr",segment="all"}' in text
    assert window_of(report).bundle_id == report.champion


def test_a_worker_finds_a_champion_that_wears_out(settings: Settings) -> None:
    shop, rng, first = AnsweredShop(settings), np.random.default_rng(8), NOW_US - 7 * DAY_US
    for n in range(7 * 150):
        at = first + n * DAY_US // 150 + 1
        user, worn = f"u{rng.integers(80)}", at > first + 4 * DAY_US
        shop.show(f"r{n}", user, ["i1", "i2", "i3", "i4"], at)
        for item in ("i1", "i2", "i3", "i4"):
            if rng.random() < (0.1 if worn else 0.4):
                shop.did(user, item, "view", at + 1_000_000, f"r{n}")
    shop.write()
    found = [look(settings, first + day * DAY_US + 600_000_000) for day in range(1, 8)]
    decays = [decay for _, decay in found]
    assert decays[:3] == [None, None, None], "its first days"
    alarms = [decay is not None and decay.alarm for decay in decays]
    assert alarms == [False] * 5 + [True, True], "the first day it is low is no alarm yet, the second one is"
    assert found[-1][0].champion == decays[-1].subject == "b1"
    assert look(settings, NOW_US + 600_000_000)[1] == decays[-1], "the same look again"
