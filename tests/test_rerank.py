"""Re-ranking: what holds for any list, similarity and catalogue; and the slot of a new item."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_repo.errors import BadInputError
from feature_repo.rows import null_rows
from feature_repo.views import DAY_US, ITEM_STATS
from serving.bundle import load_bundle, read_policy
from serving.candidates.factors import ItemFactors
from serving.candidates.vocabulary import Vocabulary
from serving.cascade import rerank
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.recommender import Policy, RankedItem, Recommender
from serving.cascade.rerank import (
    Diversity,
    NewItems,
    cap_categories,
    diversify,
    is_new,
    keep_new_slot,
    mmr,
    same_category,
)
from serving.impressions import ImpressionRecord, Impressions, to_record
from tests.test_cascade import NOW_US, FirstColumnRanker, ShopReader, recommender, small_shop, users
from tests.tiny_bundle import make_bundle

QUICK = settings(max_examples=80, deadline=None)
CATEGORIES = hnp.arrays(np.int32, st.integers(0, 60), elements=st.integers(-1, 6))
TRADE_OFFS = st.floats(0.0, 1.0)


@st.composite
def pools(draw: Any) -> tuple[Any, Any]:
    """Categories of a pool and its probabilities, best first."""
    category = draw(CATEGORIES)
    chance = draw(hnp.arrays(np.float64, len(category), elements=st.sampled_from([0.0, 0.01, 0.02, 0.3, 0.31, 0.9])))
    return category, -np.sort(-chance)


def table_of(categories: list[str], **changes: Any) -> ItemTable:
    n = len(categories)
    entries = [CatalogEntry(f"i{i:03d}", category=name or None) for i, name in enumerate(categories)]
    return replace(build_item_table(entries, null_rows(ITEM_STATS, n), NOW_US), **changes)


def with_policy(base: Recommender, **changes: Any) -> Recommender:
    return replace(base, policy=replace(base.policy, **changes))


def lines(one: Recommender, user: str, k: int, **wish: Any) -> list[RankedItem]:
    return one.recommend(ShopReader(), small_shop().table(), user, NOW_US, k=k, **wish).items


def distinct_pairs(category: Any) -> float:
    """Share of pairs of different categories; an item without category is like none."""
    pairs = [(a, b) for i, a in enumerate(category) for b in category[:i]]
    return sum(a != b or a < 0 for a, b in pairs) / max(len(pairs), 1)


def test_doctests() -> None:
    assert doctest.testmod(rerank, raise_on_error=False).failed == 0


# ---- category_cap


@given(CATEGORIES, st.integers(1, 5))
@QUICK
def test_the_cap_holds_as_long_as_other_items_exist_and_moves_the_rest_behind(category: Any, cap: int) -> None:
    order = cap_categories(category, cap)
    assert sorted(order.tolist()) == list(range(len(category)))
    seen: Counter[int] = Counter()
    within, over = [], []
    for position, code in enumerate(category.tolist()):
        (over if code >= 0 and seen[code] >= cap else within).append(position)
        seen[code] += 1
    assert order.tolist() == within + over


# ---- mmr


@given(pools(), st.integers(0, 30), TRADE_OFFS)
@QUICK
def test_mmr_is_the_textbook_loop(pool: Any, k: int, trade_off: float) -> None:
    category, chance = pool
    alike = same_category(category).astype(float)
    spread = max(float(chance.max() - chance.min()), 1e-300) if len(chance) else 1.0
    left, chosen = list(range(len(chance))), list[int]()
    while left and len(chosen) < k:
        margin = {
            i: trade_off * ((chance[i] - chance.min()) / spread)
            - (1.0 - trade_off) * max((alike[j, i] for j in chosen), default=0.0)
            for i in left
        }
        chosen.append(max(left, key=lambda i: (margin[i], -i)))
        left.remove(chosen[-1])
    assert mmr(chance, same_category(category), k, trade_off).tolist() == chosen


@given(pools(), st.integers(0, 70))
@QUICK
def test_lambda_1_is_the_rankers_order_whatever_the_similarity(pool: Any, k: int) -> None:
    category, chance = pool
    assert mmr(chance, same_category(category), k, 1.0).tolist() == list(range(min(k, len(chance))))


def test_probabilities_that_rounding_put_out_of_order_stay_in_the_rankers_order() -> None:
    chance = np.array([0.3, np.nextafter(0.3, 0.0), 0.3, 0.1])
    assert mmr(chance, np.zeros((4, 4), np.float32), 4, 1.0).tolist() == [0, 1, 2, 3]


@given(pools(), st.integers(1, 30))
@QUICK
def test_lambda_0_shows_every_category_before_any_twice(pool: Any, k: int) -> None:
    category, chance = pool
    shown = category[mmr(chance, same_category(category), k, 0.0)].tolist()
    different = len(set(category[category >= 0].tolist())) + int((category < 0).sum())
    first = [code for code in shown[:different] if code >= 0]
    assert len(set(first)) == len(first)


def test_a_smaller_lambda_gives_more_different_lists_on_average() -> None:
    """No theorem for one list (the loop is greedy), but so on average over many."""
    rng = np.random.default_rng(5)
    means = []
    pools_ = [(rng.integers(0, 8, 60).astype(np.int32), -np.sort(-rng.beta(0.4, 6.0, 60))) for _ in range(200)]
    for trade_off in (1.0, 0.9, 0.7, 0.4, 0.0):
        shown = [category[mmr(chance, same_category(category), 10, trade_off)] for category, chance in pools_]
        means.append(float(np.mean([distinct_pairs(one) for one in shown])))
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.05


# ---- in the cascade


@given(users, st.integers(1, 40))
@QUICK
def test_off_is_the_list_of_the_ranker(user: str, k: int) -> None:
    """Off is the order of the scores, cut; `diversify` off hands over the very prefix."""
    one = recommender()
    draft = one.draft(ShopReader().user(user, NOW_US), small_shop().table(), NOW_US, k=k)
    slate = one.finish(draft, ShopReader().pairs(user, draft.item_ids, NOW_US))
    items = slate.items
    if len(draft.candidates):
        scores = one.ranker.score(slate.matrix)
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], draft.candidates.items[i]))[:k]
        assert [item.item_id for item in items[: len(best)]] == [draft.item_ids[i] for i in best]
    assert lines(with_policy(one, diversity=Diversity("mmr", trade_off=0.2)), user, k, diversity="off") == items
    assert lines(with_policy(one, diversity=Diversity("mmr", trade_off=1.0)), user, k) == items
    assert lines(with_policy(one, diversity=Diversity("category_cap", max_per_category=k)), user, k) == items


@given(users, st.integers(1, 40), st.sampled_from(["category_cap", "mmr"]), st.integers(1, 3), TRADE_OFFS)
@QUICK
def test_a_re_ranked_list_is_full_distinct_the_same_again_and_shows_each_items_own_score(
    user: str, k: int, kind: Any, cap: int, trade_off: float
) -> None:
    one = with_policy(recommender(), diversity=Diversity(kind, cap, trade_off))
    items, plain = lines(one, user, k), lines(recommender(), user, 50)
    assert items == lines(one, user, k)
    assert [item.rank for item in items] == list(range(1, len(items) + 1))
    assert len({item.item_id for item in items}) == len(items) == min(k, len(plain))
    score = {item.item_id: item.score for item in plain if item.source != "popular"}
    assert all(
        item.score == score[item.item_id] for item in items if item.item_id in score and item.source != "popular"
    )


def test_the_cap_of_the_policy_holds_in_a_list_and_a_request_may_switch_it_on() -> None:
    one, table = with_policy(recommender(40), diversity=Diversity(max_per_category=2)), small_shop().table()
    capped = lines(one, "u00003", 8, diversity="category_cap")
    category = [table.category[table.index[item.item_id]] for item in capped]
    assert max(Counter(category).values()) == 2
    assert max(Counter(table.category[table.index[i.item_id]] for i in lines(one, "u00003", 8)).values()) > 2


def test_items_without_category_are_not_capped_and_are_like_nothing() -> None:
    table = table_of(["", "", "", "a", "a"])
    ranked, items = np.array([0, 1, 3, 2, 4]), np.arange(5, dtype=np.int32)
    capped = diversify(ranked, 4, Diversity("category_cap", 1), items, table, lambda p: np.ones(len(p)), None)
    assert capped.tolist() == [0, 1, 3, 2]


def test_only_the_pool_is_re_ranked() -> None:
    table = table_of(["a"] * 60 + ["b"])
    ranked, items = np.arange(61), np.arange(61, dtype=np.int32)
    wish = Diversity("category_cap", 1)
    assert 60 not in diversify(ranked, 5, wish, items, table, lambda p: np.ones(len(p)), None)
    assert 60 in diversify(ranked, 13, wish, items, table, lambda p: np.ones(len(p)), None)


def test_similar_vectors_count_where_they_are_known_and_the_category_elsewhere() -> None:
    table = table_of(["a", "b", "c", "c"])
    factors = np.array([[2.0, 0.0], [1.0, 0.0]], np.float32)  # a and b lie in one direction; c is unknown
    known = ItemFactors(Vocabulary(["i000", "i001"]), factors, 0.1, 1.0, 1.0)
    found = known.similarity(np.arange(4, dtype=np.int32), table)
    np.testing.assert_allclose(found[:2, :2], 1.0, rtol=1e-6)
    assert np.isnan(found[2:]).all()
    chance = np.array([0.4, 0.39, 0.38, 0.37])
    shown = diversify(np.arange(4), 4, Diversity("mmr", trade_off=0.1), np.arange(4, dtype=np.int32), table,
                      lambda p: chance[p], known)  # fmt: skip
    assert shown.tolist() == [0, 2, 1, 3]


# ---- the slot of a new item


def test_new_is_few_purchases_and_young_where_the_age_is_known() -> None:
    table = table_of(["a"] * 6)
    columns = {"item_purchases": [0, 9, 10, 0, 0, 0], "item_created_at": [np.nan, 5, 5, 31, np.nan, 5],
               "item_first_time": [np.nan, 40, 5, 5, 31, 40]}  # fmt: skip
    inputs = table.inputs.copy()
    for name, values in columns.items():
        days = np.array(values, float)
        inputs[:, list(table.columns).index(name)] = days if name == "item_purchases" else NOW_US - days * DAY_US
    table = replace(table, inputs=inputs)
    new = is_new(table, np.arange(6, dtype=np.int32), NOW_US, NewItems(1))
    # nothing known; created lately, bought seldom; bought too often; created long ago; seen long ago; created lately
    assert new.tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize(("bought", "taken"), [(True, [3.0, 0.0]), (False, [7.0, 9.0])])
def test_views_count_only_where_nothing_is_bought(bought: bool, taken: list[float]) -> None:
    table = table_of(["a", "a"])
    inputs = table.inputs.copy()
    names = list(table.columns)
    inputs[:, names.index("item_purchases")] = [3.0 * bought, 0.0]
    inputs[:, names.index("item_views")] = [7.0, 9.0]
    assert replace(table, inputs=inputs).taken.tolist() == taken


@given(st.permutations(range(30)), st.integers(0, 30), st.integers(1, 12), st.sets(st.integers(0, 29)))
@QUICK
def test_the_slot_takes_the_best_new_item_that_is_not_shown(
    order: list[int], k: int, rank: int, fresh: set[int]
) -> None:
    ranked, new = np.array(order), np.isin(np.arange(30), list(fresh))
    shown = ranked[:k]
    items, place = keep_new_slot(shown, ranked, k, rank, new)
    waiting = [i for i in order[k:] if i in fresh]
    if k < rank or not waiting:
        assert place is None
        assert items.tolist() == shown.tolist()
        return
    assert place == rank - 1
    assert items.tolist() == [*order[:place], waiting[0], *order[place : k - 1]]


def test_a_list_says_which_item_came_by_the_slot_and_holds_all_others_as_before() -> None:
    rule = NewItems(1, rank=4, max_purchases=4, max_age_days=3650.0)
    one, plain = with_policy(recommender(40), new_items=rule), lines(recommender(40), "u00003", 10)
    items = lines(one, "u00003", 10)
    kept = [item for item in items if item.slot]
    assert [(item.rank, item.slot) for item in kept] == [(4, "new")]
    ids = [item.item_id for item in plain]
    assert kept[0].item_id not in ids
    assert [item.item_id for item in items if not item.slot] == ids[:9]
    assert [item.rank for item in items] == list(range(1, 11))
    assert lines(one, "u00003", 3) == plain[:3]
    assert lines(with_policy(one, new_items=replace(rule, max_age_days=1.0)), "u00003", 10) == plain


def test_the_matrix_rows_of_a_slate_are_those_of_its_items() -> None:
    """The skew check reads the features of the first n items by `ranked`, whatever re-ranking did."""
    base = with_policy(recommender(40), new_items=NewItems(1, 2, 4, 3650.0), diversity=Diversity("mmr", 3, 0.3))
    draft = base.draft(ShopReader().user("u00003", NOW_US), small_shop().table(), NOW_US, k=12)
    slate = base.finish(draft, ShopReader().pairs("u00003", draft.item_ids, NOW_US))
    shown = [draft.item_ids[i] for i in slate.ranked]
    assert shown == [item.item_id for item in slate.items[: len(shown)]]
    scores = base.ranker.probability(base.ranker.score(slate.matrix[slate.ranked]))
    np.testing.assert_array_equal(scores, [item.score for item in slate.items[: len(shown)]])


# ---- the policy


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Diversity("most"),  # type: ignore[arg-type] # what a manifest might say
        lambda: Diversity("mmr", trade_off=1.5),
        lambda: Diversity("mmr", trade_off=float("nan")),
        lambda: Diversity("category_cap", max_per_category=0),
        lambda: NewItems(2),
        lambda: NewItems(1, rank=0),
        lambda: NewItems(1, max_age_days=float("nan")),
    ],
)
def test_what_cannot_be_a_policy_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInputError):
        wrong()


def test_a_bundle_keeps_its_policy_and_one_that_cannot_be_is_refused(tmp_path: Path) -> None:
    policy = Policy("keep", 30, (30,) * 5, Diversity("mmr", 2, 0.25), NewItems(1, 5, 3, 7.0))
    directory = tmp_path / make_bundle(tmp_path, small_shop(), policy=policy)
    assert load_bundle(directory).recommender.policy == policy
    manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    for damage in ({"diversity": {"kind": "most"}}, {"new_items": {"slots": 7}}, {"diversity": {"sort": "mmr"}}):
        wrong = manifest | {"policy": manifest["policy"] | damage}
        (directory / "manifest.json").write_text(json.dumps(wrong), "utf-8")
        with pytest.raises(BadInputError):
            load_bundle(directory)


def test_the_impression_log_tells_which_item_had_the_slot() -> None:
    items = [RankedItem("i1", 1, 0.5, "als"), RankedItem("i2", 2, 0.1, "popular", "new")]
    record = to_record(Impressions("r", 1, "u", "stable", "b", "1", "full", 2, items, 0, 0, None, []))
    line = msgspec.json.encode(record)
    assert msgspec.json.decode(line, type=ImpressionRecord).items == items
    before = line.replace(b',"slot":null', b"").replace(b',"slot":"new"', b"")  # written before there was a slot
    assert [item.slot for item in msgspec.json.decode(before, type=ImpressionRecord).items] == [None, None]


def test_a_manifest_from_before_re_ranking_is_read() -> None:
    assert read_policy({"repeats": "keep", "candidates": 3, "quotas": [3]}) == Policy("keep", 3, (3,))


def test_without_embeddings_a_recommender_goes_by_category() -> None:
    plain = Recommender(recommender().generators[:3], FirstColumnRanker(), recommender().service,
                        replace(recommender().policy, quotas=(20,) * 3))  # fmt: skip
    assert plain._similarity is None
    assert recommender()._similarity is not None
