"""The statistics of a rollout: valid where nothing is wrong, quick where something is, and what they promise holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.statistics.alpha import ALPHA, GUARDRAIL_SHARE, guardrail_alpha
from deployment.statistics.clicks import ClickTest, Stratum, stratified_difference, users_needed
from deployment.statistics.group_sequential import boundaries, spent
from deployment.statistics.guardrail import RISK_RATIOS, GuardrailTest, log_e_value
from deployment.statistics.sample_ratio import SampleRatioTest

counts = st.integers(0, 400)


def guardrail(canary: int, baseline: int, users: int = 1_000) -> GuardrailTest:
    return GuardrailTest().update(
        canary_users=users, baseline_users=users, canary_failed=canary, baseline_failed=baseline
    )


@given(counts, counts)
def test_evidence_grows_with_the_canarys_failures_only(canary: int, baseline: int) -> None:
    here = log_e_value(canary, baseline)
    assert log_e_value(canary + 1, baseline) > here > log_e_value(canary, baseline + 1)
    if canary <= baseline:
        assert here <= 0.0


@given(counts, counts, st.sampled_from([0.01, 0.001]))
def test_the_interval_is_antisymmetric_and_holds_what_was_seen(canary: int, baseline: int, alpha: float) -> None:
    low, high = guardrail(canary, baseline).interval(alpha)
    mirrored = guardrail(baseline, canary).interval(alpha)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    difference = guardrail(canary, baseline).difference
    assert difference is not None
    assert low <= difference <= high


@given(st.lists(st.tuples(counts, counts, st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_windows_add_up_and_states_survive_json(windows: list[tuple[int, int, int, int]]) -> None:
    state, most = GuardrailTest(), 0.0
    for canary, baseline, c_failed, b_failed in windows:
        state = state.update(
            canary_users=canary + c_failed, baseline_users=baseline + b_failed, canary_failed=c_failed,
            baseline_failed=b_failed,
        )  # fmt: skip
        most = max(most, state.log_e)
        state = GuardrailTest.from_dict(json.loads(json.dumps(state.to_dict())))
    assert state.most_log_e == most
    assert state.canary_failed == sum(one[2] for one in windows)


def test_without_data_nothing_is_decided() -> None:
    empty = GuardrailTest()
    assert (empty.e_value, empty.worse(0.5), empty.not_worse(0.9, 0.5)) == (1.0, False, False)
    assert empty.interval(0.01) == (-1.0, 1.0)
    assert guardrail(0, 0, users=0).difference is None
    assert not SampleRatioTest().mismatch(0.9)
    assert ClickTest(1000).look({}, {}).decision == "open"


@pytest.mark.parametrize("wrong", [{"canary_failed": 2}, {"canary_users": -1}, {"baseline_failed": -1}])
def test_counts_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    window = {"canary_users": 1, "baseline_users": 1, "canary_failed": 0, "baseline_failed": 0} | wrong
    with pytest.raises(ValueError):
        GuardrailTest().update(**window)
    with pytest.raises(ValueError):
        SampleRatioTest().update(canary_users=-1, baseline_users=0)


def test_the_e_value_of_fair_coins_has_mean_one() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, 0.5, 40_000)
    values = np.array([math.exp(log_e_value(int(h), 8 - int(h))) for h in range(9)])[hits]
    assert values.mean() == pytest.approx(1.0, abs=4 * values.std() / len(values) ** 0.5)


def test_false_alarms_stay_below_alpha_however_often_one_looks() -> None:
    rng = np.random.default_rng(1)
    alpha, alarms = 0.05, 0
    for _ in range(1_000):
        hits = np.cumsum(rng.integers(0, 2, 400))
        n = np.arange(1, 401)
        logs = [hits * math.log(2 * r / (1 + r)) + (n - hits) * math.log(2 / (1 + r)) for r in RISK_RATIOS]
        alarms += bool((np.logaddexp.reduce(logs, axis=0) - math.log(len(RISK_RATIOS))).max() >= -math.log(alpha))
    assert alarms / 1_000 <= alpha


def test_the_interval_covers_at_all_moments_together() -> None:
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(150):
        canary, baseline = np.cumsum(rng.binomial(100, 0.06, 30)), np.cumsum(rng.binomial(100, 0.02, 30))
        for i in range(30):
            low, high = guardrail(int(canary[i]), int(baseline[i]), 100 * (i + 1)).interval(0.1)
            if not low <= 0.04 <= high:
                missed += 1
                break
    assert missed / 150 <= 0.1


def test_a_bad_canary_is_found_and_a_good_one_let_through() -> None:
    alpha = guardrail_alpha("error", 0, 4)
    assert guardrail(18, 2).worse(alpha)
    assert not guardrail(6, 5).worse(alpha)
    assert guardrail(20, 20, users=8_000).not_worse(0.01, alpha)
    assert not guardrail(20, 20, users=500).not_worse(0.01, alpha), "too few users to say"
    assert not guardrail(120, 20, users=8_000).not_worse(0.01, alpha)


def test_an_alarm_is_not_forgotten() -> None:
    state = guardrail(30, 0)
    calm = state.update(canary_users=500, baseline_users=500, canary_failed=0, baseline_failed=400)
    assert calm.log_e < 0 < calm.most_log_e
    assert calm.worse(0.001)


def test_all_shares_of_alpha_are_alpha() -> None:
    for steps in (1, 2, 4, 6):
        total = sum(guardrail_alpha(name, step, steps) for name in GUARDRAIL_SHARE for step in range(steps))
        assert total == pytest.approx(ALPHA)
    with pytest.raises(ValueError, match="no step"):
        guardrail_alpha("error", 4, 4)


def test_a_broken_split_is_seen_and_a_fair_one_is_not() -> None:
    rng = np.random.default_rng(3)
    assert SampleRatioTest().update(canary_users=5_000, baseline_users=4_500).mismatch(0.001)
    alarms = 0
    for _ in range(200):
        state = SampleRatioTest()
        for canary in rng.binomial(100, 0.5, 40).tolist():
            state = state.update(canary_users=canary, baseline_users=100 - canary)
        alarms += state.mismatch(0.05)
    assert alarms / 200 <= 0.05
    assert SampleRatioTest.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_boundaries_are_those_of_the_literature() -> None:
    """Lan and DeMets' O'Brien-Fleming boundaries for five equal looks (Jennison and Turnbull; `ldbounds` in R)."""
    assert boundaries((0.2, 0.4, 0.6, 0.8, 1.0), 0.05) == pytest.approx((4.877, 3.357, 2.680, 2.290, 2.031), abs=0.02)
    assert boundaries((1.0,), 0.05) == pytest.approx((1.96,), abs=0.01)
    assert spent(1.0, 0.05) == pytest.approx(0.05)
    for wrong in ((), (0.5, 0.5), (0.5, 1.2), (0.0, 1.0)):
        with pytest.raises(ValueError, match="ascend"):
            boundaries(wrong, 0.05)


def test_looks_at_equal_arms_err_rarely_and_unequal_ones_are_found() -> None:
    rng = np.random.default_rng(4)

    def run(canary_rate: float, planned: int = 4_000) -> str:
        state, done = ClickTest(planned), [0, 0]
        for part in range(1, 9):
            users = planned * part // 8
            done[0] += rng.binomial(planned // 8, canary_rate)
            done[1] += rng.binomial(planned // 8, 0.1)
            state = state.look({"a": Stratum(users, done[0])}, {"a": Stratum(users, done[1])})
        return state.decision

    decisions = [run(0.1) for _ in range(400)]
    assert (decisions.count("worse") + decisions.count("better")) / 400 <= 0.08
    assert [run(0.075) for _ in range(40)].count("worse") >= 34
    assert [run(0.13) for _ in range(40)].count("better") >= 34


@given(st.integers(50, 500), st.integers(50, 500), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_strata_of_different_mix_confound_nothing(few: int, many: int, one: float, other: float) -> None:
    """Each step's arms are alike, only their sizes differ: there is no difference (Simpson's paradox)."""
    sizes = {"a": (few * 10, many * 10, one), "b": (many * 10, few * 10, other)}
    canary = {name: Stratum(c, round(c * rate)) for name, (c, _, rate) in sizes.items()}
    baseline = {name: Stratum(b, round(b * rate)) for name, (_, b, rate) in sizes.items()}
    difference, error = stratified_difference(canary, baseline)
    assert abs(difference) <= 0.002
    assert error > 0


def test_a_decision_stands_and_survives_json() -> None:
    state = ClickTest(1_000).look({"a": Stratum(1_000, 50)}, {"a": Stratum(1_000, 120)})
    assert state.decision == "worse"
    again = ClickTest.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    assert again.look({"a": Stratum(2_000, 300)}, {"a": Stratum(2_000, 120)}) == state


def test_the_planned_users_are_those_of_the_textbook() -> None:
    assert users_needed(0.1, -0.2) == pytest.approx(4_300, rel=0.01)
    assert users_needed(0.1, 0.1) > users_needed(0.1, -0.2)
