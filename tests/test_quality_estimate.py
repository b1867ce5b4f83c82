"""The bench of the estimate without labels: what its figures say of estimates that are right, biased or blind."""

from __future__ import annotations

import numpy as np
import pytest

from larder.benches.quality_estimate import SCENARIOS, Judged, _figures, _within


def windows(*, bias: float = 0.0, blind: bool = False, noise: float = 0.0) -> list[Judged]:
    """Three shops whose precision differs by scenario; estimates see that, unless they are blind."""
    rng, made = np.random.default_rng(1), []
    for shop in range(3):
        for place, name in enumerate(("before", *(one.name for one in SCENARIOS))):
            for _ in range(4):
                realised = 0.1 + 0.01 * shop - 0.008 * place
                estimate = (0.1 + 0.01 * shop if blind else realised) + bias
                made.append(Judged(shop, name, estimate + noise * rng.normal(), realised + noise * rng.normal(), noise))
    return made


def test_an_estimate_that_is_right_but_for_a_bias_follows_every_change() -> None:
    figures = _figures(windows(bias=0.03))
    assert figures["all.correlation"] == pytest.approx(1.0)
    assert figures["all.mae"] == pytest.approx(0.03)
    assert figures["before.estimate"] - figures["before.taken"] == pytest.approx(0.03)
    assert figures["taste.estimate_change"] == pytest.approx(figures["taste.taken_change"])
    assert figures["all.mae_of_change"] < 1e-12 < figures["all.mae_of_no_change"]


def test_an_estimate_that_sees_nothing_is_worth_what_no_estimate_is() -> None:
    figures = _figures(windows(blind=True, noise=0.002))
    assert figures["all.correlation.low"] < 0.3
    assert figures["all.mae_of_change"] == pytest.approx(figures["all.mae_of_no_change"], rel=0.1)
    assert figures["all.mae.low"] < figures["all.mae"] < figures["all.mae.high"]


def test_what_is_taken_counts_within_the_horizon_alone() -> None:
    assert _within([5, 20], 10, 10)
    assert not _within([10, 21], 10, 10)
    assert not _within([], 10, 10)
