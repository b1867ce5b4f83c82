"""Popularity by ratings and per segment: by hand, and the same segments at the fit as at serving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from feature_repo.rows import NO_RECENT_EVENTS, Rows, null_rows
from feature_repo.views import ITEM_STATS, USER_CATEGORY
from serving.candidates.popularity import RatedPopularity
from serving.candidates.segment_popularity import EVERYBODY, segment_of
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from tests.generator_contract import fitted, learnable_shop, scores_of, user_with
from tests.learnable_shop import NEWCOMER, NOW_US, items_of, taste_of
from tests.tiny_bundle import CATEGORIES
from training.generators.segment_popularity import SegmentPopularity, segments_of
from training.split import Log


def rated_table(ratings: list[int], total: list[float]) -> ItemTable:
    n = len(ratings)
    rows = null_rows(ITEM_STATS, n)
    rows.ints[:, ITEM_STATS.ints.index("item_ratings")] = ratings
    rows.floats[:, ITEM_STATS.floats.index("item_rating_sum")] = total
    stats = Rows(ITEM_STATS, rows.ints, rows.floats, np.ones(n, np.bool_))
    return build_item_table([CatalogEntry(f"i{i}") for i in range(n)], stats, NOW_US)


def test_rated_popularity_is_mean_rating_plus_log_of_the_count() -> None:
    table = rated_table([4, 1, 0], [18.0, 5.0, 0.0])
    scores = scores_of(RatedPopularity(rating_weight=2.0, count_weight=0.5), learnable_shop().shop.user("u000"), table)
    np.testing.assert_allclose(scores, [2 * 4.5 + 0.5 * np.log(5), 2 * 5.0 + 0.5 * np.log(2), 0.0], rtol=1e-6)
    unrated = build_item_table([CatalogEntry("i")], null_rows(ITEM_STATS, 1), NOW_US)
    assert RatedPopularity().query(learnable_shop().shop.user("u000"), unrated, NOW_US).top(9).tolist() == []


def test_a_user_is_of_the_same_segment_at_the_fit_as_at_serving() -> None:
    past, shop = learnable_shop().past(), learnable_shop().shop
    users = np.unique(past.log.user.astype(str)).tolist()
    assert segments_of(past).tolist() == [segment_of(shop.user(user)) for user in users]
    assert segment_of(shop.user(NEWCOMER)) == EVERYBODY


def test_a_purchase_says_more_of_where_somebody_belongs_than_some_views() -> None:
    """By hand: three views of bread (3 x 1) against one purchase of cheese (5); with six views, bread."""
    rows = null_rows(USER_CATEGORY, 2)
    rows.ints[:] = 0
    rows.ints[0, USER_CATEGORY.ints.index("affinity_views")] = 3
    rows.ints[1, USER_CATEGORY.ints.index("affinity_purchases")] = 1
    rows.present[:] = True
    user = replace(user_with(NO_RECENT_EVENTS), categories=["bread", "cheese"], affinities=rows)
    assert segment_of(user) == "cheese"
    past = learnable_shop().past()
    for views, segment in ((3, "cheese"), (5, "bread"), (6, "bread")):
        rows.ints[0, USER_CATEGORY.ints.index("affinity_views")] = views
        items, types = ["t0-00"] * views + ["t1-00"], ["view"] * views + ["purchase"]
        users = np.array(["u"] * len(items), object)
        log = Log(users, np.array(items, object), np.array(types, object), NOW_US - 1 - np.arange(len(items)))
        assert [segment_of(user)] == segments_of(replace(past, log=log)).tolist() == [segment]


def test_segments_differ_and_small_or_unknown_ones_are_answered_as_everybody() -> None:
    shop, table = learnable_shop().shop, learnable_shop().shop.table()
    one: Any = fitted(SegmentPopularity(min_users=5))
    assert one.segments.tolist() == [EVERYBODY, *CATEGORIES]
    first = [table.ids[one.query(shop.user(f"u00{u}"), table, NOW_US).top(1)[0]] for u in (0, 2, 4, 6)]
    assert [taste_of(item) for item in first] == [0, 1, 2, 3]
    everybody = scores_of(one, shop.user(NEWCOMER), table)
    assert (everybody > 0).sum() > 40
    fewer: Any = fitted(SegmentPopularity(min_users=1000))
    assert fewer.segments.tolist() == [EVERYBODY]
    np.testing.assert_array_equal(scores_of(fewer, shop.user("u000"), table), everybody)
    rows = learnable_shop().user_after(NEWCOMER, items_of(3)[:1])
    np.testing.assert_array_equal(scores_of(one, replace(rows, categories=["toys"]), table), everybody)
