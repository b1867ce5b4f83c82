"""The compiled loops of the hot path against plain NumPy: the same lists, ranks and sums, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_repo.rows import Rows
from feature_repo.views import FOLD_VIEWS, NULL_INT, View
from serving.candidates.contract import top_k
from serving.cascade.fusion import DEPTH, Fusion
from serving.cascade.kernels import (
    NO_MAPPING,
    decayed_sums,
    distinct,
    first_of_each,
    fuse,
    neighbour_sums,
    ranks_in,
    spread,
    worth_in_category,
)

N_ITEMS = 12
ranked_lists = st.lists(
    st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=N_ITEMS).map(lambda x: np.array(x, np.int32)),
    min_size=1,
    max_size=5,
)


def joined(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(lists).astype(np.int32), np.cumsum([len(one) for one in lists], dtype=np.int64)


@settings(deadline=None)  # the first call compiles
@given(ranked_lists, hnp.arrays(np.bool_, N_ITEMS), st.integers(0, N_ITEMS + 2))
def test_lists_are_fused_by_reciprocal_rank(lists: list[np.ndarray], allowed: np.ndarray, limit: int) -> None:
    worth: dict[int, float] = {}
    best: dict[int, tuple[int, int]] = {}
    for g, one in enumerate(lists):
        for rank, item in enumerate(one.tolist(), start=1):
            if allowed[item]:
                worth[item] = worth.get(item, 0.0) + 1.0 / (60.0 + rank)
                best[item] = min(best.get(item, (99, 99)), (rank, g))
    expected = sorted(worth, key=lambda item: (-round(worth[item], 11), item))[:limit]
    items, source = fuse(*joined(lists), allowed, Fusion.reciprocal(len(lists)).curves, limit)
    assert items.tolist() == expected
    assert source.tolist() == [best[item][1] for item in expected]


@settings(deadline=None)
@given(ranked_lists, st.permutations(range(N_ITEMS)), st.integers(0, N_ITEMS))
def test_ranks_are_those_of_the_lists(lists: list[np.ndarray], order: list[int], count: int) -> None:
    items = np.array(order[:count], np.int32)
    found = ranks_in(*joined(lists), items, N_ITEMS)
    into = np.zeros((count, 2 * len(lists)), np.float32, order="F")
    assert ranks_in(*joined(lists), items, N_ITEMS, into[:, 1::2]).base is into
    np.testing.assert_array_equal(into[:, 1::2], found)
    assert not into[:, ::2].any()
    for row, item in enumerate(items):
        for g, one in enumerate(lists):
            place = np.flatnonzero(one == item)
            assert found[row, g] == place[0] + 1 if len(place) else np.isnan(found[row, g])


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_neighbours_are_summed(rows: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(-1, 8, (8, depth)).astype(np.int32)
    similarity = rng.normal(size=(8, depth)).astype(np.float32)
    chosen, weights = rng.integers(0, 8, rows).astype(np.int32), rng.random(rows)
    expected = np.zeros(8)
    for row, weight in zip(chosen, weights, strict=True):
        for near, value in zip(neighbours[row], similarity[row], strict=True):
            if near >= 0:
                expected[near] += value * weight
    np.testing.assert_allclose(neighbour_sums(chosen, weights, neighbours, similarity), expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None)  # the first call compiles
@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 40),
        elements=st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1e-30, 1e-42, 7.0, 3e38]) | st.floats(-8, 8, width=32),
    ),
    st.data(),
)
def test_the_best_come_first_and_ties_go_to_the_smaller_index(scores: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, 45))
    expected = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: (-scores[i], i))[:k]
    assert top_k(scores, k).tolist() == expected


@given(st.sampled_from(FOLD_VIEWS), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_all_columns_at_once_are_each_column(view: View, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ints = rng.choice(np.array([NULL_INT, 0, 3, 2**53]), (n, len(view.ints)))
    floats = rng.choice(np.array([np.nan, 0.0, 1.5]), (n, len(view.floats)))
    rows = Rows(view, ints, floats, rng.random(n) < 0.7)
    columns = rows.columns()
    assert list(columns) == [*view.ints, *view.floats]
    for name, values in columns.items():
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, rows.column(name))


@settings(deadline=None)
@given(ranked_lists, st.integers(0, 2**32 - 1))
def test_lists_are_fused_by_any_curves(lists: list[np.ndarray], seed: int) -> None:
    curves = np.random.default_rng(seed).normal(scale=3.0, size=(len(lists), 4))
    fusion = Fusion(curves)
    worth = np.zeros(N_ITEMS)
    for g, one in enumerate(lists):
        worth[one] += curves[g, np.minimum(np.arange(len(one)), 3)]
    listed = np.unique(np.concatenate(lists)).astype(int)
    items, _ = fuse(*joined(lists), np.ones(N_ITEMS, np.bool_), fusion.curves, N_ITEMS)
    assert items.tolist() == sorted(listed.tolist(), key=lambda item: (-worth[item], item))


def test_the_published_fusion_is_the_default() -> None:
    curves = Fusion.reciprocal(2).curves
    np.testing.assert_allclose(curves[1, [0, 9, DEPTH - 1]] * 61, [1.0, 61 / 70, 61 / (60 + DEPTH)])


@settings(deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.5]) | st.floats(-10, 10, width=32), max_size=30),
    order=st.randoms(use_true_random=False),
    k=st.integers(0, 35),
)
def test_mapped_scores_compete_at_the_places_they_belong_to(scores: list[float], order: Any, k: int) -> None:
    places = order.sample(range(len(scores) + 3), len(scores))
    target = np.array([-1 if order.random() < 0.3 else place for place in places], np.int32)
    kept = [(-score, place) for score, place in zip(scores, target.tolist(), strict=True) if place >= 0 and score > 0]
    found = top_k(np.array(scores, np.float32), k, target)
    assert found.tolist() == [place for _, place in sorted(kept)][:k]


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_events_count_for_their_item_by_type_and_age(n: int, seed: int, mapped: bool) -> None:
    rng = np.random.default_rng(seed)
    items = np.sort(rng.choice(9, 4, replace=False)).astype(np.int32)
    which, events = rng.integers(0, 4, n), rng.permutation(n)
    types, times = rng.integers(0, 3, n).astype(np.int8), rng.integers(0, 50 * 86_400_000_000, n)
    worth, place = np.array([0.0, 1.0, 5.0]), rng.integers(-1, 9, 9).astype(np.int32)
    now_us, total = 40 * 86_400_000_000, np.zeros(4)
    for one, event in zip(which, events, strict=True):
        total[one] += worth[types[event]] * 0.5 ** (max(now_us - times[event], 0) / 86_400_000_000 / 7.0)
    at = place[items] if mapped else items
    kept = (total > 0) & (at >= 0)
    found, sums = decayed_sums(items, which, events, types, times, worth, now_us, 7.0, place if mapped else NO_MAPPING)
    assert found.tolist() == at[kept].tolist()
    np.testing.assert_allclose(sums, total[kept])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["dense", "few", "tied", "misleading", "one"]))
def test_the_best_of_many_are_found_whatever_a_sample_says(seed: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=3000).astype(np.float32)
    if kind == "few":
        scores[rng.random(3000) < 0.99] = 0.0
    elif kind == "tied":
        scores = np.round(scores)
    elif kind == "misleading":
        scores[::16] += 100.0
    elif kind == "one":
        scores = np.full(3000, 0.5, np.float32)
    expected = sorted((i for i in range(3000) if scores[i] > 0), key=lambda i: (-scores[i], i))[:k]
    assert top_k(scores, k).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=20))
def test_distinct_items_of_events_are_those_of_numpy(found: list[int]) -> None:
    at = np.array(found, np.int32)
    known = np.flatnonzero(at >= 0)
    expected = (*np.unique(at[known], return_inverse=True), known)
    for one, other in zip(distinct(at), expected, strict=True):
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_scores_of_a_few_items_are_spread_over_all(few: int, wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, scores = rng.permutation(9)[:few].astype(np.int32), rng.random(few).astype(np.float32)
    items, dense = rng.integers(0, 9, wanted).astype(np.int32), np.zeros(9, np.float32)
    dense[known] = scores
    np.testing.assert_array_equal(spread(known, scores, items, 9), dense[items])


@settings(deadline=None)
@given(st.integers(0, 15), st.integers(1, 4), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_categories_give_their_first_items_and_what_they_are_worth(n: int, codes: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code, popularity = rng.integers(0, codes, n).astype(np.int32), rng.random(n)
    order = rng.permutation(n).astype(np.int32)
    order = order[np.argsort(code[order], kind="stable")]
    begins = np.searchsorted(np.sort(code), np.arange(codes + 1)).astype(np.int64)
    by_code = rng.choice([0.0, 0.3, 1.5], codes)
    items = first_of_each(order, begins, by_code, k)
    parts = [order[begins[c] : begins[c + 1]][:k] for c in range(codes) if by_code[c] > 0]
    assert items.tolist() == [item for part in parts for item in part.tolist()]
    expected = (popularity[items] * by_code[code[items]]).astype(np.float32)
    np.testing.assert_array_equal(worth_in_category(items, popularity, by_code, code), expected)
