"""New items: which they are, what they are matched by, and that the first sales count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from feature_repo.errors import BadInputError
from feature_repo.rows import null_rows
from feature_repo.views import ITEM_STATS
from serving.candidates.new_items import NewItems
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import ITEM_INPUTS, CatalogEntry, ItemTable
from tests.generator_contract import learnable_shop, loaded, scores_of
from tests.learnable_shop import NOW_US, PER_TASTE
from training.generators.als import Als
from training.generators.contract import Past
from training.generators.new_items import NewItems as Fit

FIT = Fit(als=Als(factors=8, iterations=10), ridge=1.0)


def shop_table() -> ItemTable:
    return learnable_shop().shop.table()


def with_purchases(table: ItemTable, item_id: str, purchases: float) -> ItemTable:
    inputs = table.inputs.copy()
    row = inputs[table.index[item_id]]
    for name in ("item_purchases", "item_purchases_30d"):
        row[ITEM_INPUTS.index(name)] = purchases
    row[ITEM_INPUTS.index("item_time")] = NOW_US
    return replace(table, inputs=inputs)


def test_new_is_what_als_never_saw_or_hardly_anybody_took() -> None:
    one, table = loaded(FIT), shop_table()
    assert isinstance(one, NewItems)
    assert {table.ids[i] for i in np.flatnonzero(one.new(table))} == {i for i in table.ids if int(i[3:]) >= PER_TASTE}
    assert one.new(with_purchases(table, "t0-00", 2.0))[table.index["t0-00"]]
    assert not one.new(with_purchases(table, "t0-00", 3.0))[table.index["t0-00"]]


def test_an_item_that_enters_the_catalogue_later_is_found_by_its_words() -> None:
    user = learnable_shop().shop.user("u002")  # of taste 1
    table = apply_changes(
        shop_table(),
        [
            CatalogEntry("later", "Goat brie rind", "cheese"),
            CatalogEntry("other", "Mint pot", "tea"),
            CatalogEntry("mute"),
        ],
        null_rows(ITEM_STATS, 3),
        NOW_US,
    )
    found = dict(zip(table.ids, scores_of(loaded(FIT), user, table), strict=True))
    assert found["later"] > found["other"]
    assert found["mute"] == 0.0


def test_first_sales_lift_a_new_item() -> None:
    user, table = learnable_shop().shop.user("u002"), shop_table()
    before = scores_of(loaded(FIT), user, table)
    new = [i for i in np.argsort(-before) if before[i] > 0]
    sold = scores_of(loaded(FIT), user, with_purchases(table, table.ids[new[1]], 2.0))
    assert np.argmax(sold) == new[1]


@pytest.mark.parametrize("what", ["item_purchases", "item_ratings", "item_views"])
def test_items_are_taken_by_what_the_shop_has(what: str) -> None:
    table = shop_table()
    only = np.zeros_like(table.inputs)
    only[:, ITEM_INPUTS.index(what)] = np.arange(len(table))
    assert replace(table, inputs=only).takers.tolist() == list(range(len(table)))
    only[:, ITEM_INPUTS.index("item_views")] += 7.0  # people look at more than they rate or buy
    assert what == "item_views" or replace(table, inputs=only).takers.tolist() == list(range(len(table)))
    only[:, ITEM_INPUTS.index("item_purchases")] = 1.0
    assert replace(table, inputs=only).takers.tolist() == [1.0] * len(table)


def test_a_shop_where_nothing_was_taken_is_refused() -> None:
    past, table = learnable_shop().past(), shop_table()
    unsold = replace(table, inputs=np.full_like(table.inputs, np.nan))
    with pytest.raises(BadInputError, match="was ever taken"):
        FIT.fit(Past(past.log, unsold, NOW_US, 0, 1))
