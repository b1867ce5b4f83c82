"""Off-policy evaluation: hand-checked values, unbiased on bandits whose truth is known, and refusals."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from deployment.off_policy import estimators
from deployment.off_policy.answer import Demands, answer
from deployment.off_policy.estimators import (
    Logged,
    clip_at,
    cross_fitted_rates,
    dr,
    effective_size,
    folds_of,
    ips,
    mean_weight_error,
    snips,
)
from deployment.off_policy.intervals import intervals
from feature_repo.errors import BadInputError

QUICK = examples(max_examples=20, deadline=None)
ANYTHING = Demands(0.0, 0.0, 0, 1.0, 1.0, np.inf)


def test_doctests() -> None:
    assert doctest.testmod(estimators, raise_on_error=False).failed == 0


def test_values_by_hand() -> None:
    """Four rounds of two actions drawn half and half; the target takes the first nine times of ten."""
    reward, target = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.9, 0.1, 0.1])
    weight = target / 0.5  # 1.8 1.8 .2 .2
    assert ips(reward, weight).value == pytest.approx((1.8 + 0.2) / 4)
    assert snips(reward, weight).value == pytest.approx((1.8 + 0.2) / 4.0)
    predicted, expected = np.array([0.6, 0.6, 0.2, 0.2]), np.full(4, 0.9 * 0.6 + 0.1 * 0.2)
    corrections = (1.8 * 0.4 - 1.8 * 0.6 + 0.2 * 0.8 - 0.2 * 0.2) / 4
    assert dr(reward, weight, predicted, expected).value == pytest.approx(0.56 + corrections)
    assert effective_size(weight) == pytest.approx(4.0**2 / (2 * 1.8**2 + 2 * 0.2**2))


@st.composite
def bandits(draw: Any) -> tuple[Any, Any, Any]:
    """Mean reward of each action, and two policies over them."""
    n = draw(st.integers(2, 6))
    mean = np.array(draw(st.lists(st.floats(0.05, 0.95), min_size=n, max_size=n)))
    logging, target = (np.array(draw(st.lists(st.floats(0.2, 1.0), min_size=n, max_size=n))) for _ in range(2))
    return mean, logging / logging.sum(), target / target.sum()


def log_of(mean: Any, logging: Any, target: Any, n: int, seed: int, model: Any = None) -> Logged:
    rng = np.random.default_rng(seed)
    action = rng.choice(len(mean), n, p=logging)
    reward = (rng.random(n) < mean[action]).astype(np.float64)
    model = mean if model is None else model
    return Logged(
        reward,
        logging[action],
        target[action],
        np.arange(n),
        np.zeros(n),
        model[action],
        np.full(n, float(target @ model)),
    )


@QUICK
@given(bandits(), st.integers(0, 10_000))
def test_estimates_are_within_the_error_of_the_truth(bandit: Any, seed: int) -> None:
    mean, logging, target = bandit
    truth, n = float(target @ mean), 8_000
    # The model of DR is wrong on purpose: it may not matter.
    found = answer(log_of(mean, logging, target, n, seed, model=np.full(len(mean), 0.9)), demands=ANYTHING)
    error = float(np.sqrt((target**2 / logging) @ np.maximum(mean, 1 - mean)) / np.sqrt(n))
    for one in found.estimates:
        assert abs(one.value - truth) < 6 * error
        assert one.low <= one.value <= one.high


@QUICK
@given(bandits(), st.integers(0, 10_000))
def test_a_good_model_lowers_the_variance(bandit: Any, seed: int) -> None:
    mean, logging, target = bandit
    log = log_of(mean, logging, target, 4_000, seed)
    assert log.predicted is not None
    assert log.expected is not None
    plain, robust = ips(log.reward, log.weight), dr(log.reward, log.weight, log.predicted, log.expected)
    assert robust.above.var() <= plain.above.var() * 1.05


def test_rates_of_a_fold_are_learned_from_the_others_and_dr_by_them_is_narrower() -> None:
    rng = np.random.default_rng(6)
    mean = np.array([0.02, 0.05, 0.2, 0.6])
    action = rng.integers(0, 4, 8_000)
    reward = (rng.random(8_000) < mean[action]).astype(np.float64)
    unit = np.arange(8_000) // 2
    fold = folds_of(unit, 5)
    assert (fold[0::2] == fold[1::2]).all()
    rates = cross_fitted_rates(action, reward, fold, 4)
    assert rates == pytest.approx(np.tile(mean, (5, 1)), abs=0.06)
    changed = reward.copy()
    changed[fold == 2] = 1.0
    assert (cross_fitted_rates(action, changed, fold, 4)[2] == rates[2]).all()
    target = np.array([0.1, 0.2, 0.3, 0.4])
    predicted, expected = rates[fold, action], rates[fold] @ target
    log = Logged(reward, np.full(8_000, 0.25), target[action], unit, np.zeros(8_000), predicted, expected)
    found = answer(log)
    assert found["DR"].low < float(target @ mean) < found["DR"].high
    assert found["DR"].high - found["DR"].low < 0.9 * (found["IPS"].high - found["IPS"].low)


def test_an_interval_knows_that_rounds_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(2)
    level = rng.random(300)
    reward = np.repeat(level, 20)
    one = ips(reward, np.ones(6_000))
    apart, together = (intervals([one], unit)[0] for unit in (np.arange(6_000), np.repeat(np.arange(300), 20)))
    width = 2 * 1.96 * level.std() / np.sqrt(300)
    assert together[1] - together[0] == pytest.approx(width, rel=0.15)
    assert apart[1] - apart[0] < 0.3 * width


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    mean, logging, target = np.array([0.01, 0.03, 0.05]), np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.1, 0.8])
    truth, runs = float(target @ mean), 150
    held = {"IPS": 0, "SNIPS": 0, "DR": 0}
    for seed in range(runs):
        found = answer(log_of(mean, logging, target, 3_000, seed), seed=seed)
        for one in found.estimates:
            held[one.estimator] += one.low <= truth <= one.high
    assert min(held.values()) >= 0.88 * runs


def healthy(n: int = 4_000, **changes: Any) -> Logged:
    log = log_of(np.array([0.05, 0.2]), np.array([0.5, 0.5]), np.array([0.3, 0.7]), n, 1)
    return replace(log, **changes)


def test_a_healthy_log_is_answered_and_a_poor_one_refused_with_its_reason() -> None:
    assert not answer(healthy()).refused
    n = 4_000
    rare = np.where(np.arange(n) < 3, 1e-4, 0.5)
    cases = {
        "no round": healthy(0),
        "could never have been made": healthy(unsupported=np.full(n, 0.2)),
        "clipping leaves it out": healthy(propensity=rare),
        "propensities are not those": healthy(propensity=np.full(n, 0.4)),
        "50 are needed": healthy(unit=np.arange(n) % 20),
        "worth": healthy(100),
        "clicks": healthy(reward=np.zeros(n)),
    }
    for words, log in cases.items():
        found = answer(log)
        assert not found.estimates
        assert any(words in reason for reason in found.refused), (words, found.refused)


def test_the_mean_weight_tells_propensities_that_are_wrong() -> None:
    log = healthy()
    assert abs(mean_weight_error(log.weight, log.unsupported)) < 4
    assert mean_weight_error(log.weight * 1.2, log.unsupported) > 4
    assert mean_weight_error(np.ones(10), np.zeros(10)) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"propensity": np.zeros(4_000)},
        {"propensity": np.full(4_000, 1.2)},
        {"target": np.full(4_000, np.nan)},
        {"unsupported": np.full(4_000, -0.5)},
        {"unit": np.arange(3)},
        {"expected": None},
    ],
)
def test_what_is_no_log_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        healthy(**wrong)


def test_clipping_grows_with_the_log() -> None:
    assert clip_at(10_000) == 100.0
