"""The next item table from the last one and the items that changed since. PURE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feature_repo.rows import Rows
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table

#: Derived from ids and categories; handed on while those stay the same.
_OF_IDS = ("index",)
_OF_CATEGORIES = ("category_names", "category_code")


def apply_changes(table: ItemTable, entries: Sequence[CatalogEntry], stats: Rows, as_of_us: int) -> ItemTable:
    """Return a table with some items replaced or added; `table` stays as it is.

    Items keep their index, new ones are appended. Where nothing was added, `ids` is the very same tuple: what was
    looked up by it stays valid.

    Parameters
    ----------
    entries, stats
        Catalogue entries and ITEM_STATS rows of the changed items (distinct), in the same order.
    as_of_us
        When they were read.
    """
    changed = build_item_table(entries, stats, as_of_us)
    at = table.lookup(changed.ids)
    new = np.flatnonzero(at < 0)
    old = np.flatnonzero(at >= 0)
    total = len(table) + len(new)
    target = np.where(at >= 0, at, 0)
    target[new] = np.arange(len(table), total)
    inputs = np.empty((total, table.inputs.shape[1]))
    inputs[: len(table)] = table.inputs
    inputs[target] = changed.inputs
    available = np.empty(total, np.bool_)
    available[: len(table)] = table.available
    available[target] = changed.available
    seqs = []
    for before, now in ((table.seq, changed.seq), (table.catalog_seq, changed.catalog_seq)):
        seq = np.empty(total, np.int64)
        seq[: len(table)] = before
        seq[target] = now
        seqs.append(seq)
    titles, category = table.titles, table.category
    if len(new) or any(titles[at[i]] != changed.titles[i] for i in old):
        titles = _replaced(titles, target, changed.titles, total)
    if len(new) or any(category[at[i]] != changed.category[i] for i in old):
        category = _replaced(category, target, changed.category, total)
    ids = table.ids if not len(new) else (*table.ids, *(changed.ids[i] for i in new))
    following = ItemTable(ids, titles, category, inputs, available, seqs[0], seqs[1], as_of_us)
    _hand_on(table, following)
    return following


def _replaced(
    values: tuple[str, ...], target: np.typing.NDArray[np.int32], changed: tuple[str, ...], total: int
) -> tuple[str, ...]:
    out = [*values, *[""] * (total - len(values))]
    for position, value in zip(target.tolist(), changed, strict=True):
        out[position] = value
    return tuple(out)


def _hand_on(table: ItemTable, following: ItemTable) -> None:
    """Give the next table what was already derived from unchanged parts (cached properties)."""
    if following.ids is table.ids:
        following.__dict__.update({name: table.__dict__[name] for name in _OF_IDS if name in table.__dict__})
    if following.category is table.category:
        following.__dict__.update({name: table.__dict__[name] for name in _OF_CATEGORIES if name in table.__dict__})
