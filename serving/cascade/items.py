"""The item table: every item's state and catalogue entry as columns, aligned to one index. PURE.

A table is immutable. A refresh builds the next one; items keep their index for the life of the process (new ones are
appended, none is removed), so an index held by a bundle stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat

import numpy as np
import numpy.typing as npt

from feature_repo.packed_tail import CatalogItem
from feature_repo.request_features import INPUTS
from feature_repo.rows import RecentEvents, Rows
from feature_repo.views import ITEM_STATS
from serving.cascade.kernels import distinct

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

#: Columns of the item side that request-time features and popularity read.
ITEM_INPUTS = (
    *(name for name in INPUTS if name.startswith("item_")),
    "item_ratings",
    "item_rating_sum",
    "item_first_time",
)
_STATE_INPUTS = tuple(name for name in ITEM_INPUTS if name in {c.name for c in ITEM_STATS.columns})


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """What the catalogue says of one item; unknown fields are None."""

    item_id: str
    title: str | None = None
    category: str | None = None
    price: int | None = None
    created_at_us: int | None = None
    available: bool = True  #: may be shown: in stock, and not blocked by an operator
    seq: int = 0  #: the change that made it so; 0: as imported


@dataclass(frozen=True, slots=True)
class TakenItems:
    """The distinct items among a user's recent events.

    Attributes
    ----------
    items
        Item indices, ascending, shape (m,).
    which
        Position in `items` of each event on an item of the table, shape (e,).
    events
        Positions of those events among the recent ones, shape (e,).
    weights
        What `weight_per_item` found, kept: several generators ask for the same.
    """

    items: I32
    which: npt.NDArray[np.intp]
    events: npt.NDArray[np.intp]
    weights: dict[tuple[int, float, int], tuple[I32, I32, F64]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class ItemTable:
    """All items at one moment.

    Attributes
    ----------
    ids
        Item ids; position = item index, length n.
    inputs
        `ITEM_INPUTS` of every item, shape (n, len(ITEM_INPUTS)), C-contiguous, NaN for null. An item's numbers lie side
        by side: taking 300 of 20,000 items costs a fifth of what it costs from columns.
    category
        Category of each item, "" if unknown.
    available
        Shape (n,).
    seq
        `seq` of each item's row of `item_stats`, shape (n,); 0 where it has none.
    catalog_seq
        `seq` of each item's row of `item_catalog`, shape (n,); 0 where it is as imported, or unknown.
    as_of_us
        When the rows were read; popularity is decayed to this moment.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    category: tuple[str, ...]
    inputs: F64
    available: Mask
    seq: I64
    catalog_seq: I64
    as_of_us: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id to item index."""
        return {item_id: i for i, item_id in enumerate(self.ids)}

    @cached_property
    def columns(self) -> Mapping[str, F64]:
        """Columns of `inputs` by name, each shape (n,)."""
        return dict(zip(ITEM_INPUTS, self.inputs.T, strict=True))

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """All categories, sorted."""
        return tuple(sorted(set(self.category)))

    @cached_property
    def category_index(self) -> dict[str, int]:
        """Category to its position in `category_names`."""
        return {name: i for i, name in enumerate(self.category_names)}

    @cached_property
    def category_code(self) -> I32:
        """Position of each item's category in `category_names`, shape (n,)."""
        code = self.category_index
        return np.fromiter((code[name] for name in self.category), np.int32, len(self.category))

    @cached_property
    def taken(self) -> F64:
        """Purchase lines of each item, views and ratings where nothing was ever bought, shape (n,)."""
        purchases = np.nan_to_num(self.columns["item_purchases"])
        if purchases.any():
            return purchases
        return np.nan_to_num(self.columns["item_views"]) + np.nan_to_num(self.columns["item_ratings"])

    @cached_property
    def _by_window(self) -> dict[str, tuple[F64, I32]]:
        """Popularity and its order by window: the same for all requests that see this table."""
        return {}

    @cached_property
    def _scores(self) -> dict[str, F32]:
        """Popularity as scores, by window: as `_by_window`."""
        return {}

    @cached_property
    def _by_category(self) -> dict[str, tuple[I32, I64]]:
        """Popular items by category, by window: as `_by_window`."""
        return {}

    def rank_as(self, table: ItemTable) -> None:
        """Rank by every window by which another table, the one before, was asked: requests will ask for the same."""
        for window in tuple(table._by_window):
            self._ranked(window)
        for window in tuple(table._scores):
            self.popularity_score(window)
        for window in tuple(table._by_category):
            self.popular_by_category(window)

    def popularity(self, window: str) -> F64:
        """Popularity of every item, shape (n,), read-only.

        Parameters
        ----------
        window
            `all` counts all purchases (views where nothing was ever bought); `1d`, `7d`, `30d`, `90d` are purchase
            lines decayed with that half-life to `as_of_us`. Where nobody ever bought anything, but things are rated,
            every window counts all ratings.
        """
        return self._ranked(window)[0]

    def popularity_score(self, window: str) -> F32:
        """Popularity as a generator's score, shape (n,), read-only."""
        found = self._scores.get(window)
        if found is None:
            found = self._scores[window] = self.popularity(window).astype(np.float32)
            found.flags.writeable = False
        return found

    def most_popular(self, window: str) -> I32:
        """Items with any popularity, best first, ties to the smaller index, read-only."""
        return self._ranked(window)[1]

    def _ranked(self, window: str) -> tuple[F64, I32]:
        found = self._by_window.get(window)
        if found is None:
            values = self._popularity(window)
            some = np.flatnonzero(values > 0).astype(np.int32)
            order = some[np.lexsort((some, -values[some]))]
            values.flags.writeable = order.flags.writeable = False
            found = self._by_window[window] = (values, order)
        return found

    def popular_by_category(self, window: str) -> tuple[I32, I64]:
        """Return `most_popular` sorted by category, and where each category begins (and the last one ends)."""
        found = self._by_category.get(window)
        if found is None:
            order = self.most_popular(window)
            code = self.category_code[order]
            begins = np.searchsorted(np.sort(code), np.arange(len(self.category_names) + 1))
            found = self._by_category[window] = (order[np.argsort(code, kind="stable")], begins.astype(np.int64))
        return found

    @cached_property
    def takers(self) -> F64:
        """How often each item was taken, shape (n,): bought; where nothing ever was, rated; else viewed."""
        counts = [np.nan_to_num(self.columns[name]) for name in ("item_purchases", "item_ratings", "item_views")]
        return next((count for count in counts if count.any()), counts[-1])

    def _popularity(self, window: str) -> F64:
        ratings = np.nan_to_num(self.columns["item_ratings"])
        if ratings.any() and not np.nan_to_num(self.columns["item_purchases"]).any():
            return ratings
        if window == "all":
            return np.nan_to_num(self.columns["item_purchases"]) + 1e-3 * np.nan_to_num(self.columns["item_views"])
        half_life_us = float(int(window.removesuffix("d")) * 86_400_000_000)
        age = np.maximum(self.as_of_us - self.columns["item_time"], 0.0)
        return np.nan_to_num(self.columns[f"item_purchases_{window}"] * np.exp2(-age / half_life_us))

    @cached_property
    def _of_user(self) -> dict[str, tuple[RecentEvents, TakenItems]]:
        """The items of the last user asked for."""
        return {}

    def taken_by(self, recent: RecentEvents) -> TakenItems:
        """Return the distinct items of a user's recent events; all generators of a request ask for the same."""
        last = self._of_user.get("last")
        if last is not None and last[0] is recent:
            return last[1]
        found = TakenItems(*distinct(self.lookup(recent.item_ids)))
        self._of_user["last"] = (recent, found)  # one assignment: threads may share a table
        return found

    def lookup(self, item_ids: Sequence[str]) -> I32:
        """Item indices of ids, -1 for unknown ones."""
        index = self.index
        return np.fromiter(map(index.get, item_ids, repeat(-1)), np.int32, len(item_ids))


def catalog_entry(item_id: str, item: CatalogItem | None) -> CatalogEntry:
    """Translate a catalogue row; an item that only events name is never shown, nor is a blocked one."""
    if item is None:
        return CatalogEntry(item_id, available=False)
    shown = item.available and not item.blocked
    return CatalogEntry(item_id, item.title, item.category, item.price, item.created_at, shown, item.seq)


def build_item_table(catalog: Sequence[CatalogEntry], stats: Rows, as_of_us: int) -> ItemTable:
    """Build a table from catalogue entries and the ITEM_STATS rows of the same items, in the same order."""
    columns = {name: stats.column(name) for name in _STATE_INPUTS}
    columns["item_price"] = np.array([np.nan if c.price is None else float(c.price) for c in catalog], np.float64)
    columns["item_created_at"] = np.array(
        [np.nan if c.created_at_us is None else float(c.created_at_us) for c in catalog], np.float64
    )
    return ItemTable(
        ids=tuple(c.item_id for c in catalog),
        titles=tuple(c.title or "" for c in catalog),
        category=tuple(c.category or "" for c in catalog),
        inputs=np.column_stack([columns[name] for name in ITEM_INPUTS]),
        available=np.fromiter((c.available for c in catalog), np.bool_, len(catalog)),
        seq=np.where(stats.present, stats.seq, 0),
        catalog_seq=np.fromiter((c.seq for c in catalog), np.int64, len(catalog)),
        as_of_us=as_of_us,
    )
