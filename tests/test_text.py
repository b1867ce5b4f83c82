"""The text encoder: words, vectors of items that come later, and how little a refresh of the table costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from feature_repo.rows import null_rows
from feature_repo.views import ITEM_STATS
from serving.candidates.text import TextEncoder, words_of
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from tests.generator_contract import learnable_shop
from tests.learnable_shop import NOW_US
from training.generators.text import fit_text_encoder


def shop_table() -> ItemTable:
    return learnable_shop().shop.table()


def encoder() -> TextEncoder:
    return fit_text_encoder(shop_table(), dimensions=16, max_words=1000, seed=0)


def changed(table: ItemTable, *entries: CatalogEntry) -> ItemTable:
    return apply_changes(table, entries, null_rows(ITEM_STATS, len(entries)), NOW_US)


@pytest.mark.parametrize(
    ("title", "category", "words"),
    [
        ("WHITE Metal LANTERN", "LANTERN", ["white", "metal", "lantern", "lantern"]),
        ("Cafe\u0301 no. 25", "", ["café", "no"]),
        ("T-light 3x Übergrö\u00dfe_rot", "", ["light", "übergröße", "rot"]),
        ("", "", []),
    ],
)
def test_words(title: str, category: str, words: list[str]) -> None:
    assert words_of(title, category) == words


def test_an_item_is_near_those_of_its_kind() -> None:
    table, one = shop_table(), encoder()
    near = one.table(table) @ one.encode(["Brie with blue rind"], ["cheese"])[0]
    assert {table.category[i] for i in np.argsort(-near)[:10]} == {"cheese"}
    np.testing.assert_allclose(np.linalg.norm(one.table(table), axis=1), 1.0, rtol=1e-5)


def test_texts_without_a_known_word_and_catalogues_without_words_say_nothing() -> None:
    assert not encoder().encode(["zzz 17"], [""]).any()
    silent = build_item_table([CatalogEntry(f"i{n}") for n in range(3)], null_rows(ITEM_STATS, 3), NOW_US)
    assert fit_text_encoder(silent, dimensions=16, max_words=10, seed=0).table(silent).shape == (3, 0)


def test_an_item_that_comes_later_is_encoded_from_the_live_table() -> None:
    one, table = encoder(), shop_table()
    one.table(table)
    after = changed(table, CatalogEntry("later", "Fig and plum", "jam"), CatalogEntry("t0-00", "Mint pot", "tea"))
    np.testing.assert_array_equal(one.table(after), encoder().table(after))
    np.testing.assert_array_equal(one.table(after)[-1], one.encode(["Fig and plum"], ["jam"])[0])
    np.testing.assert_array_equal(one.table(after)[0], one.encode(["Mint pot"], ["tea"])[0])
    np.testing.assert_array_equal(one.table(table), encoder().table(table))  # the former table, asked for once more


def test_a_change_of_the_category_alone_counts() -> None:
    one, table = encoder(), shop_table()
    one.table(table)
    moved = changed(table, CatalogEntry("t0-00", table.titles[0], "tea"))
    assert moved.titles is table.titles
    np.testing.assert_array_equal(one.table(moved)[0], one.encode([table.titles[0]], ["tea"])[0])


def test_a_refresh_encodes_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    one, table = encoder(), shop_table()
    one.table(table)
    asked: list[list[str]] = []
    encode = TextEncoder.encode

    def counting(self: TextEncoder, titles: list[str], categories: list[str]) -> object:
        asked.append(titles)
        return encode(self, titles, categories)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    one.table(replace(table, as_of_us=NOW_US + 1))
    one.table(changed(table, CatalogEntry("later", "Fig", "jam")))
    assert asked == [["Fig"]]
