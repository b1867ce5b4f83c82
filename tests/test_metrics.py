"""The protocol's metrics: doctests by hand, and properties."""

from __future__ import annotations

import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics

ITEMS = st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), unique=True, max_size=20)
TARGETS = st.sets(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789"), min_size=1, max_size=12)


def test_doctests() -> None:
    """The examples in the docstrings were computed by hand."""
    assert doctest.testmod(metrics, raise_on_error=False).failed == 0


@given(st.lists(st.sampled_from(["", "tea", "jam", "oil"]), max_size=12), st.integers(1, 12))
def test_category_diversity_is_the_share_of_unlike_pairs(categories: list[str], k: int) -> None:
    pairs = list(combinations(categories[:k], 2))
    value = metrics.category_diversity(categories, k)
    if not pairs:
        assert np.isnan(value)
        return
    assert value == pytest.approx(sum(a != b or not a for a, b in pairs) / len(pairs))


@given(ITEMS, TARGETS)
def test_bounds_and_perfection(slate: list[str], targets: set[str]) -> None:
    """Every metric lies in [0, 1], and putting the targets first is best."""
    for metric in (metrics.ndcg, metrics.recall, metrics.average_precision):
        value = metric(slate, targets, 10)
        best = metric(sorted(targets) + [i for i in slate if i not in targets], targets, 10)
        assert 0.0 <= value <= best + 1e-12 <= 1.0 + 1e-9


@given(ITEMS, TARGETS)
def test_a_hit_further_up_is_never_worse(slate: list[str], targets: set[str]) -> None:
    """Moving the last hit to the front does not lower nDCG or average precision."""
    hits = [i for i in slate if i in targets]
    if not hits:
        return
    moved = [hits[-1], *(i for i in slate if i != hits[-1])]
    for metric in (metrics.ndcg, metrics.average_precision):
        assert metric(moved, targets, 10) >= metric(slate, targets, 10) - 1e-12


def test_users_without_an_answer_count_as_zero() -> None:
    """A missing slate is a 0, not a gap, and targets nobody can know stay in the denominator."""
    values = metrics.per_user({"u1": ["a", "b"]}, {"u1": {"a", "never seen"}, "u2": {"a"}})
    assert values["recall@20"].tolist() == [0.5, 0.0]
    assert values["ndcg@10"][1] == 0.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_auc_is_the_share_of_ordered_pairs(positive: list[int], negative: list[int]) -> None:
    """Equal to the definition, ties counting half."""
    expected = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    assert metrics.auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(expected)


def test_bootstrap_covers_the_mean() -> None:
    """The 95 % interval covers the true mean in about 95 of 100 samples."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = metrics.bootstrap_mean(rng.exponential(1.0, 300), seed=seed, rounds=400)
        covered += low <= 1.0 <= high
    assert 180 <= covered <= 199
