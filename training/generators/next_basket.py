"""Fits what people take next, given what they took: ridge regression from history to the basket after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import solve
from threadpoolctl import threadpool_limits

from feature_repo.views import DAY_US
from serving.candidates.contract import F32, I32
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import interactions
from training.generators.neighbours import nearest

#: What a basket is made of: the first of these that a log has.
_TAKEN = ("purchase", "rating", "like", "cart", "view")


@dataclass(frozen=True)
class NextBasket:
    """EASE (Steck 2019) turned forward in time: history before a cut predicts what is taken after it.

    EASE learns which items go together, whenever they were taken, and may not learn that an item is taken again. Here
    the weights B solve `min ||X B - Y||^2 + regularization ||B||^2`, X the decayed history of users before a cut and Y
    what they took within `horizon_days` after it, summed over many cuts: what follows what, and what comes back, in
    closed form.

    Attributes
    ----------
    cuts, step_days
        How many cuts before the last possible one, and how far apart; fewer where the past is short.
    cut_half_life_days
        Older cuts count less: the assortment changes.
    max_items
        As of `Ease`.
    """

    quota: int = 300
    regularization: float = 1500.0
    depth: int = 200
    half_life_days: float = 120.0
    horizon_days: float = 18.0
    cuts: int = 16
    step_days: float = 9.0
    cut_half_life_days: float = 60.0
    max_items: int = 4_000
    name: str = "next"

    def fit(self, past: Past) -> ItemToItem:
        """Sum up the normal equations over the cuts and solve them."""
        matrix, ids = interactions(past, self.half_life_days)
        weight = np.asarray(matrix.sum(axis=0)).ravel()
        kept = np.sort(np.lexsort((np.arange(len(ids)), -weight))[: self.max_items])
        items = [ids[i] for i in kept]
        column = {item: i for i, item in enumerate(items)}
        gram = np.zeros((len(items), len(items)))
        target = np.zeros_like(gram)
        for number in range(self.cuts):
            cut = past.now_us - round((self.horizon_days + number * self.step_days) * DAY_US)
            pair = self._pair(past, cut, column)
            if pair is None:  # a quiet time, or before the first event
                continue
            history, basket = pair
            share = 0.5 ** (number * self.step_days / self.cut_half_life_days)
            gram += share * (history.T @ history).toarray()
            target += share * (history.T @ basket).toarray()
        gram[np.diag_indices_from(gram)] += self.regularization
        with threadpool_limits(1, "blas"):  # sums in another order are other bytes
            weights = solve(gram, target, assume_a="pos", overwrite_a=True, overwrite_b=True)
        neighbours, value = _with_itself(weights, self.depth)
        return ItemToItem(Vocabulary(items), neighbours, value, self.half_life_days, self.name)

    def _pair(self, past: Past, cut: int, column: dict[str, int]) -> tuple[sparse.csr_matrix, sparse.csr_matrix] | None:
        """History before a cut and baskets after it, rows the users who have both; None if there are none."""
        log = past.log
        taken = next((name for name in _TAKEN if (log.event_type == name).any()), None)
        after = (
            (log.time_us >= cut) & (log.time_us < cut + round(self.horizon_days * DAY_US)) & (log.event_type == taken)
        )
        before = log.before(cut)
        if not after.any() or not len(before.time_us):
            return None
        weights, ids = interactions(replace(past, log=before, now_us=cut), self.half_life_days)
        weights.data = np.sqrt(weights.data)  # as the answer weighs what a user did
        users = np.unique(before.user.astype(str))
        # Columns in the order of `column`; items it does not name fall away.
        where = np.fromiter((column.get(item, -1) for item in ids), np.int64, len(ids))
        known = np.flatnonzero(where >= 0)
        to = sparse.csr_matrix((np.ones(len(known)), (known, where[known])), shape=(len(ids), len(column)))
        row = {user: i for i, user in enumerate(users)}
        pairs = {
            (row[user], column[item])
            for user, item in zip(log.user[after].astype(str), log.item[after].astype(str), strict=True)
            if user in row and item in column
        }
        if not pairs:
            return None
        index: npt.NDArray[np.int64] = np.array(sorted(pairs), np.int64)
        basket = sparse.csr_matrix((np.ones(len(index)), (index[:, 0], index[:, 1])), shape=(len(users), len(column)))
        active = np.unique(index[:, 0])
        return sparse.csr_matrix(weights @ to)[active], basket[active]


def _with_itself(weights: npt.NDArray[np.float64], depth: int) -> tuple[I32, F32]:
    """Keep the largest weights of each row, that of the item itself among them; as `nearest`, a column more."""
    neighbours, value = nearest(weights, depth)
    own = np.maximum(np.diag(weights), 0.0).astype(np.float32)
    index = np.where(own > 0, np.arange(len(own)), -1).astype(np.int32)
    joined = np.column_stack([value, own])
    order = np.argsort(-joined, axis=1, kind="stable")
    return (
        np.take_along_axis(np.column_stack([neighbours, index]), order, axis=1),
        np.take_along_axis(joined, order, axis=1),
    )
