"""Drift's statistics and samples: held against scipy, and properties of the correction, the rule and the draw."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp

from feature_repo.services import feature_list
from feature_repo.settings import Settings
from monitoring import report_index, signals
from monitoring.drift import columns, estimate, tests_of_two
from monitoring.drift.columns import CLUSTERS, GROUPS, Column, watched
from monitoring.drift.comparison import Rules, compare
from monitoring.drift.judge import Window, judge
from monitoring.drift.records import DriftState, kept, restored
from monitoring.drift.served import UserSample
from monitoring.drift.state import read_state, state_path, write_state
from monitoring.drift.tests_of_two import (
    benjamini_hochberg,
    chi_square,
    effective_rows,
    kolmogorov_smirnov,
    persists,
    two_shares,
)
from monitoring.report_index import index_page
from serving.impressions import ImpressionRecord
from tests.test_rollout_page import EVIL, Elements

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=70)
SERVICE = "ranking_v1"


@pytest.mark.parametrize("module", [tests_of_two, columns, estimate])
def test_doctests(module) -> None:
    assert doctest.testmod(module, raise_on_error=False).failed == 0


@given(P_VALUES)
def test_the_correction_is_that_of_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(false_discovery_control(p_values))


@given(P_VALUES, st.randoms())
def test_the_correction_goes_by_value_not_by_place(p_values: list[float], random) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)
    adjusted = benjamini_hochberg(p_values)
    assert benjamini_hochberg([p_values[i] for i in order]) == pytest.approx(adjusted[order])
    assert (adjusted >= np.array(p_values) - 1e-12).all()
    assert (adjusted <= 1).all()


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4), st.integers(0, 3))
def test_an_alarm_needs_the_newest_window_and_enough_before(hits: list[bool], needed: int, more: int) -> None:
    among = needed + more
    alarm = persists(hits, needed, among)
    assert alarm == (len(hits) > 0 and hits[-1] and sum(hits[-among:]) >= needed)
    assert not persists([*hits, False], needed, among)
    assert persists([*hits, *[True] * needed], needed, among)
    if needed > 1:
        assert not persists([False] * among + [True], needed, among), "one window is no alarm"


def test_tests_are_those_of_scipy(rng: np.random.Generator = np.random.default_rng(1)) -> None:  # noqa: B008 - seeded
    for shift in (0.0, 0.1, 1.0):
        a, b = rng.normal(size=1500), rng.normal(shift, size=300)
        ours, theirs = kolmogorov_smirnov(a, b), ks_2samp(a, b, method="asymp")
        assert (ours.effect, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-6)
        x, y = (rng.choice(["a", "b", "c"], n, p=[0.5, 0.3 + p, 0.2 - p]) for n, p in ((900, 0.0), (300, shift / 10)))
        table = [[(side == name).sum() for name in "abc"] for side in (x, y)]
        expected = chi2_contingency(table, correction=False).pvalue
        assert chi_square(x.astype(object), y.astype(object)).p_value == pytest.approx(expected)


def test_a_missing_value_is_a_value() -> None:
    """Where a feature breaks, it is often just not there: what drops missing values sees nothing."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=1000), rng.normal(size=300)
    b[:90] = np.nan
    found = kolmogorov_smirnov(a, b)
    assert found.effect == pytest.approx(0.3, abs=0.05)
    assert found.p_value < 1e-10
    assert kolmogorov_smirnov(a, np.full(300, np.nan)).effect == 1.0


def test_p_values_hold_where_nothing_differs() -> None:
    """Below 0.01 are about 1 % of p-values: of numbers, of categories many and rare, and of shares."""
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.full(40, 0.3))
    low = np.zeros(3)
    for _ in range(200):
        low[0] += kolmogorov_smirnov(rng.normal(size=600), rng.normal(size=300)).p_value < 0.01
        both = rng.choice(40, 900, p=weights).astype(str).astype(object)
        low[1] += chi_square(both[:600], both[600:]).p_value < 0.01
        shares = (rng.random(900) < 0.1).astype(float)
        low[2] += two_shares(shares[:600], shares[600:]).p_value < 0.01
    assert (low <= 200 * 0.01 + 6).all(), low


def test_rows_of_one_item_are_no_independent_rows() -> None:
    """Lists of many users show the same few items: taken for independent, every window would differ."""
    rng = np.random.default_rng(4)
    alarms = np.zeros(2)
    for _ in range(50):
        sides = []
        for n in (1500, 300):
            items, value = rng.zipf(1.6, n).clip(max=200), rng.normal(size=201)
            sides.append((value[items], items.astype(str).astype(object)))
        (a, of_a), (b, of_b) = sides
        alarms[0] += kolmogorov_smirnov(a, b).p_value < 0.01
        alarms[1] += kolmogorov_smirnov(a, b, (effective_rows(of_a), effective_rows(of_b))).p_value < 0.01
    assert alarms[0] > 40
    assert alarms[1] <= 2


def a_sample(n: int, seed: int, **changed) -> dict:
    rng = np.random.default_rng(seed)
    made = {name: np.array([f"{seed}-{i}" for i in range(n)], object) for name in CLUSTERS}
    for column in watched(SERVICE):
        if column.scale == "category":
            made[column.name] = rng.choice(["tea", "cups", "pots"], n).astype(object)
        elif column.scale == "share":
            made[column.name] = (rng.random(n) < 0.2).astype(np.float64)
        else:
            made[column.name] = rng.normal(size=n)
    return made | changed


def a_window(number: int, **changed) -> Window:
    return Window(number * 10**9, (number + 1) * 10**9, [], a_sample(300, 100 + number, **changed))


def judged(windows: list[Window], reference: dict, rules: Rules = Rules(), against: str = "training"):  # noqa: B008 - frozen
    state, out = DriftState("b" * 32, against, 0), []
    for window in windows:
        findings, state = judge(SERVICE, window, reference, state, rules)
        out.append({one.column.name for one in findings if one.alarm})
    return out, state


def test_a_broken_feature_is_an_alarm_in_the_second_window_and_over_when_it_is_mended() -> None:
    broken = {"f_item_price": np.full(300, np.nan)}
    windows = [a_window(0), a_window(1, **broken), a_window(2, **broken), a_window(3)]
    alarms, state = judged(windows, a_sample(1500, 1))
    assert alarms == [set(), set(), {"f_item_price"}, set()]
    assert state.last is not None
    assert {one.group for one in state.last.findings} == set(GROUPS)


def test_columns_without_a_replay_are_compared_with_the_first_windows() -> None:
    lost = {"clicked": np.zeros(300)}
    windows = [*(a_window(n) for n in range(3)), *(a_window(n, **lost) for n in range(3, 5))]
    alarms, state = judged(windows, a_sample(1500, 1))
    assert alarms == [set()] * 4 + [{"clicked"}]
    assert len(state.baseline["clicked"]) == 900
    assert "f_item_price" not in state.baseline


def test_a_shop_that_asks_at_other_moments_is_compared_with_itself() -> None:
    """Everything differs from the replay: only the champion's own first windows are a fair reference."""
    moved = {"f_user_hours_since_action": np.random.default_rng(9).normal(5, size=300)}
    windows = [a_window(n, **moved) for n in range(6)]
    assert judged(windows, a_sample(1500, 1))[0][1] == {"f_user_hours_since_action"}
    assert judged(windows, {}, against="served")[0] == [set()] * 6


def test_what_moves_with_the_clock_is_shown_and_no_alarm() -> None:
    older = {"f_user_days_known": np.full(300, 1e6)}
    alarms, state = judged([a_window(n, **older) for n in range(3)], a_sample(1500, 1))
    assert alarms == [set()] * 3
    assert state.last is not None
    (shown,) = [one for one in state.last.findings if one.name == "f_user_days_known"]
    assert shown.expected
    assert shown.effect == 1.0


def test_a_small_shift_is_significant_and_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    column = Column("x", "features")
    sides = {"x": {"x": rng.normal(size=100_000)}}
    (one,) = compare([column], sides, {"x": rng.normal(0.1, size=100_000)}, {}, Rules())
    assert one.p_value < 1e-6
    assert not one.hit


def a_record(user: str, number: int) -> ImpressionRecord:
    return ImpressionRecord(f"r{number}", number, user, "stable", "b", "1", "full", 5, [], 0, 0, None, [])


@given(st.lists(st.integers(0, 40), max_size=120), st.randoms(), st.integers(1, 10))
def test_the_sample_does_not_depend_on_the_order_and_has_one_request_per_user(
    users: list[int], random, size: int
) -> None:
    records = [a_record(f"u{user}", number) for number, user in enumerate(users)]
    shuffled = records.copy()
    random.shuffle(shuffled)
    drawn = []
    for order in (records, shuffled):
        sample = UserSample(size, "window")
        for record in order:
            sample.offer(record)
        drawn.append({record.request_id for record in sample.records()})
        assert len({record.user_id for record in sample.records()}) == len(drawn[-1]) == min(size, len(set(users)))
    assert drawn[0] == drawn[1]


def test_busy_users_are_not_drawn_more_often() -> None:
    counts = {"quiet": 0, "busy": 0}
    for window in range(200):
        sample = UserSample(2, str(window))
        for number in range(40):
            sample.offer(a_record("busy" if number % 2 else f"user{number}", number))
        sample.offer(a_record("quiet", 99))
        for record in sample.records():
            if record.user_id in counts:
                counts[record.user_id] += 1
    assert 8 <= counts["busy"] <= 34
    assert 8 <= counts["quiet"] <= 34


def test_state_survives_and_damage_begins_anew(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=tmp_path)
    assert read_state(settings) is None
    state = judged([a_window(n) for n in range(2)], a_sample(1500, 1))[1]
    write_state(settings, state)
    assert read_state(settings) == state
    state_path(settings).write_text('{"bundle_id": 3', "utf-8")
    assert read_state(settings) is None
    assert "begun anew" in caplog.text


def test_columns_are_kept_as_they_are() -> None:
    assert kept(np.array([1.0, np.nan])) == [1.0, None]
    assert np.isnan(restored([1.0, None])[1])
    assert restored(["tea", "cups"]).tolist() == ["tea", "cups"]


def test_no_text_of_the_data_becomes_markup_and_reports_are_boxed_in() -> None:
    state = judged([a_window(0)], a_sample(1500, 1))[1]
    alarm = signals.Signal(signals.datetime(2026, 1, 1), "drift", EVIL, 1.0, 0.1, True)
    page = index_page(EVIL, state, [alarm], ["drift-1.html"])
    found = Elements(page)
    assert not {"script", "img", "link", "a"} & set(found.elements)
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "sandbox='allow-scripts'" in page
    assert "allow-same-origin" not in page
    assert "default-src 'none'" in report_index.POLICY
    assert "No window was complete yet" in index_page("shop", None, [], [])


def test_every_feature_is_watched() -> None:
    names = [column.name for column in watched(SERVICE)]
    assert set(feature_list(SERVICE)) < set(names)
    assert len(set(names)) == len(names)
    assert replace(watched(SERVICE)[0], group="quality").subject.startswith("quality/")
