"""The cascade: properties of retrieval, merging and ranking that hold for any shop, user and list."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_repo.rows import NO_RECENT_EVENTS, RecentEvents, Rows, UserRows, null_rows
from feature_repo.views import ITEM_STATS, USER_CATEGORY, USER_ITEM, USER_STATS
from serving.candidates.contract import DenseQuery, top_k
from serving.cascade.features import Asked, ask
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.recommender import Policy, Recommender
from tests.tiny_bundle import SERVICE, Shop, make_generators, make_shop

NOW_US = 1_790_000_000_000_000
QUICK = settings(max_examples=60, deadline=None)
SCORES = hnp.arrays(np.float32, st.integers(0, 60), elements=st.sampled_from([0.0, -1.0, 0.5, 1.0, 2.0, 3.5]))


@cache
def small_shop() -> Shop:
    return make_shop(NOW_US)


class FirstColumnRanker:
    """Scores a row by sums of a few features: real enough to order, simple enough to know."""

    def score(self, matrix: Any) -> Any:
        # Row by row: sums along columns round differently for one row than for many.
        return np.ascontiguousarray(np.nan_to_num(matrix)).sum(axis=1).astype(np.float64) % 7.0

    def probability(self, scores: Any) -> Any:
        return scores / 7.0


@cache
def recommender(candidates: int = 20) -> Recommender:
    generators = make_generators(small_shop())
    policy = Policy("keep", candidates, (candidates,) * len(generators))
    return Recommender(generators, FirstColumnRanker(), SERVICE, policy)


class ShopReader:
    def user(self, user_id: str, now_us: int) -> UserRows:
        if user_id not in small_shop().user_ids:
            return UserRows(user_id, null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), NO_RECENT_EVENTS)
        return small_shop().user(user_id)

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        return small_shop().pair_rows(user_id, item_ids)


users = st.sampled_from([*[f"u{n:05d}" for n in range(30)], "nobody"])
items = st.lists(st.sampled_from([f"i{n:05d}" for n in range(55)]), max_size=60)  # five are unknown


@given(SCORES, st.integers(0, 70))
@QUICK
def test_top_k_is_a_sorted_prefix(scores: Any, k: int) -> None:
    wanted = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: (-scores[i], i))[:k]
    assert top_k(scores, k).tolist() == wanted


@given(st.lists(SCORES.filter(len), min_size=1, max_size=4), st.integers(1, 30), st.integers(1, 40))
@QUICK
def test_merging_fuses_ranks_and_keeps_each_item_once(lists: list[Any], quota: int, limit: int) -> None:
    size = min(len(one) for one in lists)
    queries = tuple(DenseQuery(one[:size]) for one in lists)
    tops = tuple(query.top(quota) for query in queries)
    merged = Asked.of(queries, [quota] * len(queries), size).merge(limit)
    best = {}  # item -> (best rank, generator)
    worth: dict[int, float] = {}
    for source, top in enumerate(tops):
        for rank, item in enumerate(top.tolist(), start=1):
            best[item] = min(best.get(item, (rank, source)), (rank, source))
            worth[item] = worth.get(item, 0.0) + 1.0 / (60.0 + rank)
    wanted = sorted(best, key=lambda item: (-round(worth[item], 11), item))[:limit]
    assert merged.items.tolist() == wanted
    assert merged.source.tolist() == [best[item][1] for item in wanted]
    for row, item in enumerate(wanted):
        for source, top in enumerate(tops):
            score, rank = merged.retrieval[row, 2 * source : 2 * source + 2]
            assert score == lists[source][item]
            assert rank == top.tolist().index(item) + 1 if item in top else np.isnan(rank)


@given(users, st.permutations(range(50)), st.integers(0, 50))
@QUICK
def test_retrieval_features_of_any_items_carry_their_true_ranks(user: str, order: list[int], n: int) -> None:
    shop, chosen = small_shop(), np.array(order[:n], np.int32)
    generators = recommender().generators
    asked = ask(generators, (8,) * len(generators), ShopReader().user(user, NOW_US), shop.table(), NOW_US)
    found = asked.features(chosen)
    for g, top in enumerate(np.split(asked.lists, asked.ends[:-1])):
        ranks = {item: rank for rank, item in enumerate(top.tolist(), start=1)}
        np.testing.assert_array_equal(found[:, 2 * g + 1], [ranks.get(item, np.nan) for item in chosen.tolist()])


@given(users, st.integers(1, 80), items, st.sampled_from(["keep", "drop", None]))
@QUICK
def test_a_list_is_distinct_complete_allowed_and_the_same_again(
    user: str, k: int, exclude: list[str], repeats: Any
) -> None:
    shop, reader = small_shop(), ShopReader()

    def slate() -> list[Any]:
        table = shop.table()
        draft = recommender().draft(reader.user(user, NOW_US), table, NOW_US, k=k, exclude=exclude, repeats=repeats)
        return recommender().finish(draft, reader.pairs(user, draft.item_ids, NOW_US)).items

    first = slate()
    assert first == slate()
    ids = [item.item_id for item in first]
    blocked = {*exclude, shop.item_ids[-1]}  # the last item is not available
    if repeats == "drop":
        blocked |= set(reader.user(user, NOW_US).recent.item_ids)
    assert len(set(ids)) == len(ids)
    assert not blocked & set(ids)
    assert len(ids) == min(k, len(set(shop.item_ids) - blocked))
    assert [item.rank for item in first] == list(range(1, len(ids) + 1))
    ranked = [item.score for item in first]
    assert ranked == sorted(ranked, reverse=True)


@given(users, st.integers(1, 40))
@QUICK
def test_a_longer_list_begins_with_the_shorter_one(user: str, k: int) -> None:
    table = small_shop().table()
    short = recommender().recommend(ShopReader(), table, user, NOW_US, k=k).items
    long = recommender().recommend(ShopReader(), table, user, NOW_US, k=k + 10).items
    assert long[: len(short)] == short


@given(users, st.permutations(range(49)))
@QUICK
def test_the_score_of_an_item_does_not_depend_on_the_others(user: str, order: list[int]) -> None:
    shop, reader, table = small_shop(), ShopReader(), small_shop().table()
    chosen = np.array(order, np.int32)
    together = recommender().score(
        reader.user(user, NOW_US), table, chosen, reader.pairs(user, [shop.item_ids[i] for i in order], NOW_US), NOW_US
    )
    alone = recommender().score(
        reader.user(user, NOW_US), table, chosen[:1], reader.pairs(user, [shop.item_ids[order[0]]], NOW_US), NOW_US
    )
    assert together[0] == alone[0]


def user_with(recent: RecentEvents) -> UserRows:
    return UserRows("u", null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), recent)


def test_missing_pair_features_and_an_empty_history_still_give_a_list() -> None:
    table: ItemTable = small_shop().table()
    draft = recommender().draft(user_with(NO_RECENT_EVENTS), table, NOW_US, k=10)
    assert len(recommender().finish(draft, null_rows(USER_ITEM, len(draft.candidates))).items) == 10


def test_nothing_available_gives_an_empty_list() -> None:
    table = replace(small_shop().table(), available=np.zeros(50, np.bool_))
    assert recommender().recommend(ShopReader(), table, "u00003", NOW_US, k=10).items == []


def test_a_shop_without_events_gives_its_catalogue() -> None:
    catalog = [CatalogEntry(f"i{n}") for n in range(5)]
    table = build_item_table(catalog, null_rows(ITEM_STATS, 5), NOW_US)
    slate = recommender().recommend(ShopReader(), table, "nobody", NOW_US, k=10)
    assert [item.item_id for item in slate.items] == ["i0", "i1", "i2", "i3", "i4"]
