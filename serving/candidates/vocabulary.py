"""The items a model was fitted on, and where they stand in the item table. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from feature_repo.rows import RecentEvents
from serving.candidates.contract import F32, I32, top_k
from serving.candidates.history import weight_per_item
from serving.cascade.items import ItemTable
from serving.cascade.kernels import gathered


class Vocabulary:
    """An ordered list of item ids; models index their rows by position in it."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        # The mapping to the last table seen; a refreshed table keeps its items in place, so it changes rarely.
        self._mapped: tuple[tuple[str, ...], I32, I32] | None = None

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: i for i, item_id in enumerate(self.ids)}

    def lookup(self, item_ids: Sequence[str]) -> I32:
        """Positions of ids in the vocabulary, -1 for unknown ones."""
        index = self._index
        return np.fromiter((index.get(i, -1) for i in item_ids), np.int32, len(item_ids))

    def in_table(self, table: ItemTable) -> I32:
        """Item index in the table of every entry of the vocabulary, -1 if the table has no such item."""
        return self._map(table)[0]

    def of_table(self, table: ItemTable) -> I32:
        """Position in the vocabulary of every item of the table, -1 for items outside it."""
        return self._map(table)[1]

    def _map(self, table: ItemTable) -> tuple[I32, I32]:
        mapped = self._mapped
        if mapped is None or mapped[0] is not table.ids:
            there = table.lookup(self.ids)
            back = np.full(len(table), -1, np.int32)
            known = np.flatnonzero(there >= 0).astype(np.int32)
            back[there[known]] = known
            self._mapped = mapped = (table.ids, there, back)  # one assignment: requests run side by side
        return mapped[1], mapped[2]

    def weights(
        self, recent: RecentEvents, table: ItemTable, now_us: int, half_life_days: float
    ) -> tuple[I32, npt.NDArray[np.float64]]:
        """Return the distinct positions in the vocabulary of what a user took lately, and their decayed weights."""
        return weight_per_item(recent, table, now_us, half_life_days, self.of_table(table))


class VocabularyQuery:
    """A query with a score for every entry of a vocabulary; items outside it have none.

    Parameters
    ----------
    scores
        In the order of the vocabulary, shape (n,).
    """

    def __init__(self, scores: F32, vocabulary: Vocabulary, table: ItemTable) -> None:
        self._scores, self._vocabulary, self._table = scores, vocabulary, table

    def top(self, k: int) -> I32:
        """Return the best items of the table with a positive score."""
        return top_k(self._scores, k, self._vocabulary.in_table(self._table))

    def scores(self, items: I32) -> F32:
        """Return the scores of some items of the table."""
        return gathered(self._scores, self._vocabulary.of_table(self._table), items)
