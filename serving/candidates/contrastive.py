"""The contrastive user-item model at serving time: two towers and a dot product, in NumPy. PURE.

Items lie where their content, and what is known of who took them, put them; a user is pooled from recent items and
lies among them. An item that entered the catalogue after the training is put there by its text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32, NOT_STORED, DenseQuery, Query, top_k
from serving.candidates.factors import NearestVectors, no_centroids, no_lists
from serving.candidates.history import weight_per_item
from serving.candidates.text import TextEncoder, unit_rows
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import ItemTable

#: Popularity that the score knows of, by half-life of a purchase (`ItemTable.popularity`).
WINDOWS: Final = ("1d", "7d", "30d")
#: What has a place in the space has a score above 0.
_LEAST: Final = 1e-6
#: The index knows no popularity: so many times as many are looked for, and the most popular ones beside them.
_DEEPER: Final = 4
#: Longer lists than that are scanned for exactly, as an index would have to look everywhere, too.
_INDEXED: Final = 1000


@dataclass(frozen=True, eq=False)
class Tower:
    """A projection with one hidden layer: `max(x hidden + bias, 0) out`.

    Attributes
    ----------
    hidden, bias, out
        Shapes (d, h), (h,) and (h, o).
    """

    hidden: F32
    bias: F32
    out: F32

    def __call__(self, x: F32) -> F32:
        """Project rows, shape (n, at most d) to (n, o); missing columns count as 0."""
        projected: F32 = np.maximum(x @ self.hidden[: x.shape[1]] + self.bias, 0.0) @ self.out
        return projected


@dataclass(frozen=True)
class Placed:
    """Where the items of a table lie.

    Attributes
    ----------
    vectors, bias
        Shapes (n, f), rows of length 1, and (n,).
    place
        The item's index, -1 for one of which nothing is known: neither who took it nor a word of it; shape (n,).
    """

    ids: tuple[str, ...]
    text: F32
    vectors: F32
    bias: F32
    place: I32


def _nowhere() -> Placed:
    nothing = np.empty((0, 0), np.float32)
    return Placed((), nothing, nothing, np.empty(0, np.float32), np.empty(0, np.int32))


@dataclass(frozen=True, eq=False)
class Contrastive:
    """Cosine of user and item over a learned temperature, plus the item's bias and its popularity now.

    Attributes
    ----------
    item_tower
        From an item's content (its text first) to its vector and, last, its bias: for items outside the vocabulary.
    user_tower
        From the pooled vectors of each half-life, side by side, to what is added to that of the longest.
    vectors, bias
        Of the vocabulary, shapes (v, f), rows of length 1, and (v,).
    half_life_days
        Of the weights of the user's events in each pool, shape (p,).
    popularity_weight
        Of log(1 + popularity) in each of `WINDOWS`, shape (3,).
    centroids, lists, index
        As of `ItemFactors`, over `searched`.
    """

    encoder: TextEncoder
    item_tower: Tower
    user_tower: Tower
    vocabulary: Vocabulary
    vectors: F32
    bias: F32
    half_life_days: F32
    popularity_weight: F32
    temperature: float
    name: str = "contrastive"
    centroids: F32 = field(default_factory=no_centroids)
    lists: I32 = field(default_factory=no_lists)
    index: NearestVectors | None = field(default=None, repr=False, metadata=NOT_STORED)
    _placed: list[Placed] = field(default_factory=lambda: [_nowhere()], init=False, repr=False)
    _offset: list[tuple[ItemTable, F32]] = field(default_factory=list, init=False, repr=False)
    _floor: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        # No item of the vocabulary scores below it, whoever asks.
        object.__setattr__(self, "_floor", float(self.bias.min(initial=0.0)) - 1.0 / self.temperature)

    @property
    def searched(self) -> F32:
        """What the index searches: vectors with the bias as a column more, shape (v, f + 1)."""
        return np.column_stack([self.vectors, self.bias])

    def user_vector(self, user: UserRows, table: ItemTable, now_us: int) -> F32 | None:
        """Pool a user's recent items and project them, shape (f,), length 1; None where none of them has a place."""
        placed = self.placed(table)
        pools = np.zeros((len(self.half_life_days), self.vectors.shape[1]), np.float32)
        found = False
        for row, days in enumerate(self.half_life_days.tolist()):
            items, total = weight_per_item(user.recent, table, now_us, days, placed.place)
            if len(items):
                # The square root keeps one often repeated item from drowning all others.
                weight = np.sqrt(total / total.max())
                pools[row] = (weight / weight.sum()) @ placed.vectors[items]
                found = True
        return unit_rows(pools[-1:] + self.user_tower(pools.reshape(1, -1)))[0] if found else None

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> Query:
        """Place the user and compare all items."""
        vector = self.user_vector(user, table, now_us)
        if vector is None:
            return DenseQuery(np.zeros(len(table), np.float32))
        vector /= np.float32(self.temperature)
        if self.index is not None:
            return _IndexedQuery(self, self.index, vector, table)
        scores = self.placed(table).vectors @ vector
        return DenseQuery(self._above_floor(scores, self._offsets(table), slice(None), table))

    def scores(self, vector: F32, table: ItemTable, items: I32) -> F32:
        """Return the scores of some items for a user's vector over the temperature, shape (len(items),)."""
        match = np.einsum("ij,j->i", self.placed(table).vectors[items], vector)
        return self._above_floor(match, self._offsets(table)[items], items, table)

    def _above_floor(self, match: F32, offset: F32, items: I32 | slice, table: ItemTable) -> F32:
        match += offset
        np.maximum(match, _LEAST, out=match)
        match[self.placed(table).place[items] < 0] = 0.0
        return match

    def _offsets(self, table: ItemTable) -> F32:
        """Return what is added to every user's match: bias and popularity, above the floor; shape (n,)."""
        last = self._offset[0] if self._offset else None
        if last is not None and last[0] is table:
            return last[1]
        offset = self.placed(table).bias - np.float32(self._floor)
        for window, weight in zip(WINDOWS, self.popularity_weight.tolist(), strict=True):
            offset += np.float32(weight) * np.log1p(table.popularity_score(window))
        self._offset[:] = [(table, offset)]
        return offset

    def placed(self, table: ItemTable) -> Placed:
        """Return where a table's items lie; only those whose text is new are projected."""
        last, text = self._placed[0], self.encoder.table(table)
        if last.ids is table.ids and last.text is text:
            return last
        vectors = np.zeros((len(table), self.vectors.shape[1]), np.float32)
        bias = np.zeros(len(table), np.float32)
        place = np.full(len(table), -1, np.int32)
        kept = len(last.ids) if table.ids[: len(last.ids)] == last.ids else 0
        if kept:  # tables follow each other, and items keep their index
            vectors[:kept], bias[:kept], place[:kept] = last.vectors, last.bias, last.place
        again = np.ones(len(table), np.bool_)
        if kept:
            again[:kept] = (text[:kept] != last.text).any(axis=1)
        at = self.vocabulary.of_table(table)
        stored = np.flatnonzero(again & (at >= 0))
        vectors[stored], bias[stored], place[stored] = self.vectors[at[stored]], self.bias[at[stored]], stored
        fresh = np.flatnonzero(again & (at < 0))
        projected = self.item_tower(text[fresh])
        vectors[fresh], bias[fresh] = unit_rows(projected[:, :-1]), projected[:, -1]
        place[fresh] = np.where(text[fresh].any(axis=1), fresh, -1)
        placed = Placed(table.ids, text, vectors, bias, place)
        self._placed[0] = placed  # one assignment: requests run side by side
        return placed


class _IndexedQuery:
    """A query over a catalogue too large to score all of it for every user."""

    def __init__(self, model: Contrastive, index: NearestVectors, vector: F32, table: ItemTable) -> None:
        self._model, self._index, self._vector, self._table = model, index, vector, table

    def top(self, k: int) -> I32:
        """Return the best of what the index finds, the most popular and the newly come, ranked by exact scores."""
        model, table = self._model, self._table
        if k <= 0 or k > _INDEXED:
            return top_k(self.scores(np.arange(len(table), dtype=np.int32)), k)
        near = self._index.search(np.append(self._vector, np.float32(1.0)), _DEEPER * k)
        popular = [table.most_popular(window)[:k] for window in WINDOWS]
        fresh = np.flatnonzero(model.vocabulary.of_table(table) < 0)
        items = _distinct([model.vocabulary.in_table(table)[near], *popular, fresh])
        return top_k(self.scores(items), k, items)

    def scores(self, items: I32) -> F32:
        """Return the exact scores of some items."""
        return self._model.scores(self._vector, self._table, items)


def _distinct(parts: Sequence[np.typing.NDArray[np.integer]]) -> I32:
    items: I32 = np.unique(np.concatenate(parts)).astype(np.int32)
    return items[items >= 0]
