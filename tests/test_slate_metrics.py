"""Metrics of many users at once against the one-list definitions, scikit-learn, and counting by hand."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from training import metrics, slate_metrics
from training.slate_metrics import KS, list_metrics, user_metrics

DEPTH = 20
N_ITEMS = 40


@st.composite
def shops(draw: st.DrawFn) -> tuple[np.ndarray, list[set[int]]]:
    """Lists of up to 20 of 40 items for a few users (some have none), and what each user took."""
    slates, targets = [], []
    for _ in range(draw(st.integers(1, 6))):
        slate = draw(st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=DEPTH))
        slates.append(slate + [-1] * (DEPTH - len(slate)))
        targets.append(draw(st.sets(st.integers(0, N_ITEMS + 5), min_size=1, max_size=25)))  # some unseen
    return np.array(slates, np.int32), targets


INTERACTIONS = st.lists(st.integers(0, 50), min_size=N_ITEMS, max_size=N_ITEMS).map(lambda c: np.array(c, float))


def as_lists(slates: np.ndarray) -> list[list[int]]:
    return [[int(i) for i in row if i >= 0] for row in slates]


def hits_of(slates: np.ndarray, targets: list[set[int]]) -> np.ndarray:
    return np.array([[int(i) in wanted for i in row] for row, wanted in zip(slates, targets, strict=True)])


def test_doctests() -> None:
    assert doctest.testmod(slate_metrics, raise_on_error=False).failed == 0


@given(shops())
def test_users_at_once_equal_one_at_a_time_to_the_last_bit(shop: tuple[np.ndarray, list[set[int]]]) -> None:
    slates, targets = shop
    found = user_metrics(hits_of(slates, targets), np.array([len(t) for t in targets]))
    definitions = {
        "ndcg": metrics.ndcg,
        "recall": metrics.recall,
        "precision": metrics.precision,
        "map": metrics.average_precision,
        "mrr": metrics.reciprocal_rank,
        "hr": metrics.hit_rate,
    }
    assert set(found) == {f"{name}@{k}" for name in definitions for k in KS}
    for name, define in definitions.items():
        for k in KS:
            expected = [define(slate, wanted, k) for slate, wanted in zip(as_lists(slates), targets, strict=True)]
            assert found[f"{name}@{k}"].tolist() == expected, f"{name}@{k}"


@given(st.lists(st.booleans(), min_size=DEPTH, max_size=DEPTH).filter(any), st.sampled_from(KS))
def test_equal_to_scikit_learn(hits: list[bool], k: int) -> None:
    """Where every target is in the list, nDCG@k is scikit-learn's, MAP@20 its average precision."""
    scores = np.arange(DEPTH, 0, -1.0)
    found = user_metrics(np.array([hits]), np.array([sum(hits)]))
    assert found[f"ndcg@{k}"][0] == pytest.approx(ndcg_score([hits], [scores], k=k))
    assert found["map@20"][0] == pytest.approx(average_precision_score(hits, scores))


@given(shops(), INTERACTIONS)
def test_lists_together_equal_their_definitions(
    shop: tuple[np.ndarray, list[set[int]]], interactions: np.ndarray
) -> None:
    slates, _ = shop
    lists = as_lists(slates)
    counts = dict(enumerate(interactions.tolist()))
    found = list_metrics(slates, interactions)
    for k in KS:
        assert found[f"coverage@{k}"].value == metrics.coverage(lists, N_ITEMS, k)
        if not any(lists):
            assert f"gini@{k}" not in found
            continue
        places = [sum(item in slate[:k] for slate in lists) for item in range(N_ITEMS)]
        # Gini by its first definition: mean absolute difference over twice the mean.
        differences = sum(abs(a - b) for a in places for b in places) / N_ITEMS**2
        assert found[f"gini@{k}"].value == pytest.approx(differences / (2 * sum(places) / N_ITEMS))
        if interactions.sum():
            assert found[f"novelty@{k}"].value == pytest.approx(metrics.novelty(lists, counts, k))
            assert found[f"tail_share@{k}"].value == pytest.approx(metrics.tail_share(lists, counts, k))
        else:
            assert f"novelty@{k}" not in found


@given(shops(), INTERACTIONS)
def test_the_jackknife_leaves_each_user_out(shop: tuple[np.ndarray, list[set[int]]], interactions: np.ndarray) -> None:
    """The values without a user are those of the lists of the others."""
    slates, _ = shop
    found = list_metrics(slates, interactions)
    for user in range(len(slates)):
        rest = list_metrics(np.delete(slates, user, axis=0), interactions)
        for name in set(found) & set(rest):
            if not name.startswith("gini"):  # linearised: see below
                assert found[name].without[user] == pytest.approx(rest[name].value), name


def test_the_linearised_jackknife_of_gini_is_close() -> None:
    """On lists of different lengths: leaving a user out changes Gini as the derivative says, but for second order."""
    users = 1000
    rng = np.random.default_rng(5)
    weight = 1.0 / np.arange(1, N_ITEMS + 1)
    slates = np.array([rng.choice(N_ITEMS, 5, replace=False, p=weight / weight.sum()) for _ in range(users)], np.int32)
    slates[np.arange(5) >= rng.integers(0, 6, users)[:, None]] = -1
    whole = list_metrics(slates, weight, ks=[5])["gini@5"]
    rest = (np.delete(slates, u, axis=0) for u in range(users))
    exact = np.array([list_metrics(one, weight, ks=[5])["gini@5"].value for one in rest])
    assert np.abs(whole.without - exact).max() < 0.2 * exact.std()
    assert np.sum(whole.value - whole.without) == pytest.approx(0.0, abs=1e-9)  # Gini does not depend on the scale


def test_intervals_of_lists_cover_the_truth() -> None:
    """In about 95 of 100 shops of one world the intervals of novelty and tail share hold the true value."""
    rng = np.random.default_rng(1)
    weight = 1.0 / np.arange(1, N_ITEMS + 1)
    world = np.array([rng.choice(N_ITEMS, 5, replace=False, p=weight / weight.sum()) for _ in range(20_000)], np.int32)
    truth = list_metrics(world, weight * 1000, ks=[5])
    covered = dict.fromkeys(("novelty@5", "tail_share@5"), 0)
    for _ in range(200):
        found = list_metrics(rng.choice(world, 100), weight * 1000, ks=[5])
        for name in covered:
            low, high = found[name].interval()
            covered[name] += low <= truth[name].value <= high
    assert all(180 <= count <= 199 for count in covered.values()), covered


@given(INTERACTIONS.filter(lambda c: c.sum() > 0))
def test_the_head_is_the_smallest_set_that_makes_the_share(interactions: np.ndarray) -> None:
    head = metrics.head_items(interactions)
    total = interactions.sum()
    assert interactions[head].sum() >= 0.8 * total - 1e-9
    assert interactions[head].sum() - interactions[head].min() < 0.8 * total
    assert interactions[head].min() >= interactions[~head].max(initial=0)


def test_a_gain_of_lists_is_paired() -> None:
    """The same lists gain exactly nothing, without any spread."""
    slates = np.array([[0, 1], [2, 3], [0, 2]], np.int32)
    one = list_metrics(slates, np.ones(4), ks=[2])
    for name, value in one.items():
        assert (value - value).interval() == (0.0, 0.0), name


@pytest.mark.parametrize("users", [300, metrics.MULTINOMIAL_USERS + 1])
def test_both_bootstraps_have_the_spread_of_the_mean(users: int) -> None:
    """Multinomial for few users, Poisson for many: standard deviation of the means = that of the users / sqrt(n)."""
    values = np.random.default_rng(2).exponential(1.0, (users, 2))
    values[:, 1] = values[:, 0] + 1.0
    means = metrics.resampled_means(values, seed=3)
    assert means.std(axis=0) == pytest.approx(values.std(axis=0) / math.sqrt(users), rel=0.06)
    assert np.ptp(means[:, 1] - means[:, 0]) < 1e-9  # the same samples for all columns
    assert metrics.bootstrap_mean(values[:, 0], seed=3)[1:] == pytest.approx(metrics.interval(means[:, 0]).tolist())
