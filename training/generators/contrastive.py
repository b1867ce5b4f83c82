"""Fits the contrastive user-item model: histories before many cuts, and what was taken after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from feature_repo.errors import BadInputError
from feature_repo.events import EventType
from feature_repo.views import DAY_US
from serving.candidates.contract import F32, I32
from serving.candidates.contrastive import WINDOWS, Tower
from serving.candidates.contrastive import Contrastive as Fitted
from serving.candidates.history import TYPE_WEIGHT
from serving.candidates.text import unit_rows
from serving.candidates.vector_index import EXACT_BELOW, cluster, with_index
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.info_nce import Batch, train_towers
from training.generators.text import fit_text_encoder
from training.item_vectors import read_item_vectors

#: What is predicted: the first of these that a log has.
_TAKEN = ("purchase", "rating", "like", "cart", "view")


@dataclass(frozen=True)
class Contrastive:
    """Settings of the contrastive user-item model.

    Attributes
    ----------
    vectors
        File of further frozen embeddings of items (`larder items encode`), beside the built-in text encoder's: of
        another text encoder, or of pictures. Items that are not in it have zeros there.
    half_life_days
        Of the pools a user is made of, the longest last.
    cuts, step_days, horizon_days, cut_half_life_days
        As of `NextBasket`.
    history
        How many items of a user are pooled in training, the heaviest first.
    max_items
        Most taken items with a vector of their own; others are placed by their content.
    batch, negatives
        Users per step, and uniformly drawn items beside their positives.
    new_only
        Learn only from what users took for the first time.
    """

    quota: int = 300
    vectors: str | None = None
    dimensions: int = 64
    text_dimensions: int = 64
    max_words: int = 20_000
    hidden: int = 64
    half_life_days: tuple[float, ...] = (3.0, 30.0, 180.0)
    cuts: int = 16
    step_days: float = 9.0
    horizon_days: float = 18.0
    cut_half_life_days: float = 60.0
    history: int = 48
    max_items: int = 8_000
    steps: int = 400
    batch: int = 256
    negatives: int = 256
    drop_own: float = 0.2
    learning_rate: float = 3e-3
    decay: float = 0.1
    new_only: bool = False
    name: str = "contrastive"

    def fit(self, past: Past) -> Fitted:
        """Train the towers, and place every item of the vocabulary."""
        log = _Coded.of(past, self.max_items)
        encoder = fit_text_encoder(
            past.table, dimensions=self.text_dimensions, max_words=self.max_words, seed=past.seed
        )
        at = past.table.lookup(log.items)
        text = np.where(at[:, None] >= 0, encoder.table(past.table)[at], 0.0).astype(np.float32)
        content = text
        if self.vectors is not None:
            content = np.hstack([text, read_item_vectors(Path(self.vectors), log.items)])
        moments = self._moments(log, past.now_us)
        if not moments:
            raise BadInputError("nobody with a history took anything: there is nothing to learn from")
        towers = train_towers(
            content,
            self._batches(moments, len(log.items), past.seed),
            steps=self.steps,
            pools=len(self.half_life_days),
            windows=len(WINDOWS),
            dimensions=self.dimensions,
            hidden=self.hidden,
            drop_own=self.drop_own,
            content_parts=() if content is text else (text.shape[1],),
            learning_rate=self.learning_rate,
            decay=self.decay,
            seed=past.seed,
        )
        tower = Tower(towers.item_hidden, towers.item_bias, towers.item_out)
        with threadpool_limits(1, "blas"):  # sums in another order are other bytes
            placed = tower(content) + towers.own
        fitted = Fitted(
            encoder,
            tower,
            Tower(towers.user_hidden, towers.user_bias, towers.user_out),
            Vocabulary(log.items),
            unit_rows(placed[:, :-1]),
            np.ascontiguousarray(placed[:, -1]),
            np.array(self.half_life_days, np.float32),
            towers.popularity_weight,
            towers.temperature,
            self.name,
        )
        if len(log.items) < EXACT_BELOW:
            return fitted
        centroids, lists = cluster(fitted.searched, seed=past.seed)
        return with_index(replace(fitted, centroids=centroids, lists=lists))

    def _moments(self, log: _Coded, now_us: int) -> list[_Moment]:
        found = []
        for number in range(self.cuts):
            cut = now_us - round((self.horizon_days + number * self.step_days) * DAY_US)
            share = 0.5 ** (number * self.step_days / self.cut_half_life_days)
            one = log.moment(cut, cut + round(self.horizon_days * DAY_US), share, self)
            if one is not None:
                found.append(one)
        return found

    def _batches(self, moments: list[_Moment], items: int, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, 12])
        share = np.array([one.share * len(one.history) for one in moments])
        share /= share.sum()
        while True:
            yield moments[rng.choice(len(moments), p=share)].batch(self.batch, self.negatives, items, rng)


@dataclass(frozen=True)
class _Moment:
    """Users with a history before a cut who took something after it."""

    history: I32
    weight: F32
    baskets: sparse.csr_matrix
    popularity: F32
    share: float

    def batch(self, size: int, negatives: int, items: int, rng: np.random.Generator) -> Batch:
        """Draw users, one thing of each one's basket, and other items."""
        users = rng.choice(len(self.history), size, replace=len(self.history) < size)
        start, end = self.baskets.indptr[users], self.baskets.indptr[users + 1]
        positive = self.baskets.indices[start + (rng.random(size) * (end - start)).astype(np.int64)]
        negative = rng.integers(0, items, negatives)
        shown = np.concatenate([positive, negative])
        hidden = self.baskets[users].toarray()[:, shown] > 0
        hidden[np.arange(size), np.arange(size)] = False
        # Chance to be drawn by either way: as somebody's positive, each user's with the same chance, or uniformly.
        basket = np.diff(self.baskets.indptr)
        drawn = np.asarray((sparse.diags(1.0 / basket) @ self.baskets).sum(axis=0)).ravel() / len(basket)
        q = (size * drawn + negatives / items) / (size + negatives)
        return Batch(
            self.history[users],
            self.weight[users],
            positive.astype(np.int32),
            negative.astype(np.int32),
            hidden,
            np.log(q[shown]).astype(np.float32),
            self.popularity,
        )


@dataclass(frozen=True)
class _Coded:
    """The log in numbers; items that are none of the vocabulary have the code -1."""

    items: list[str]
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    worth: npt.NDArray[np.float64]
    taken: npt.NDArray[np.bool_]
    bought: npt.NDArray[np.bool_]
    time_us: npt.NDArray[np.int64]

    @classmethod
    def of(cls, past: Past, max_items: int) -> _Coded:
        log = past.log
        names = {member.name: int(member) for member in EventType}
        worth = TYPE_WEIGHT[np.fromiter((names[name] for name in log.event_type), np.int64, len(log.event_type))]
        ids, item = np.unique(log.item.astype(str), return_inverse=True)
        _, user = np.unique(log.user.astype(str), return_inverse=True)
        weight = np.bincount(item, worth, len(ids))
        kept = np.sort(np.lexsort((np.arange(len(ids)), -weight))[:max_items])
        kept = kept[weight[kept] > 0]
        code = np.full(len(ids), -1, np.int64)
        code[kept] = np.arange(len(kept))
        what = next((name for name in _TAKEN if (log.event_type == name).any()), None)
        return cls(
            [str(one) for one in ids[kept]],
            user,
            code[item],
            worth,
            log.event_type == what,
            log.event_type == "purchase",
            log.time_us,
        )

    def moment(self, cut: int, end: int, share: float, settings: Contrastive) -> _Moment | None:
        """Histories before a cut and baskets from it to `end`; None where nobody has both."""
        n = len(self.items)
        before = (self.time_us < cut) & (self.item >= 0) & (self.worth > 0)
        after = (self.time_us >= cut) & (self.time_us < end) & self.taken & (self.item >= 0)
        known = np.intersect1d(self.user[before], self.user[after])
        pair = np.unique(self.user[after] * n + self.item[after])
        if settings.new_only:
            pair = np.setdiff1d(pair, self.user[before] * n + self.item[before])
        pair = pair[np.isin(pair // n, known)]
        if not len(pair):
            return None
        users = np.unique(pair // n)
        baskets = sparse.csr_matrix(
            (np.ones(len(pair), np.float32), (np.searchsorted(users, pair // n), pair % n)), shape=(len(users), n)
        )
        mine = before & np.isin(self.user, users)
        keys, event = np.unique(self.user[mine] * n + self.item[mine], return_inverse=True)
        age_days = (cut - self.time_us[mine]) / DAY_US
        weights = np.column_stack(
            [np.bincount(event, self.worth[mine] * np.exp2(-age_days / days)) for days in settings.half_life_days]
        )
        owner, item = np.searchsorted(users, keys // n), keys % n
        order = np.lexsort((item, -weights[:, -1], owner))
        begin = np.searchsorted(owner, np.arange(len(users)))
        rank = np.arange(len(order)) - begin[owner]  # `owner` is sorted already, so it holds after ordering, too
        top = rank < settings.history
        history = np.full((len(users), settings.history), n, np.int32)
        weight = np.zeros((*history.shape, len(settings.half_life_days)), np.float32)
        history[owner[top], rank[top]] = item[order][top]
        weight[owner[top], rank[top]] = np.sqrt(weights[order][top])
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        return _Moment(history, weight, baskets, self._popularity(cut), share)

    def _popularity(self, cut: int) -> F32:
        """As `ItemTable.popularity` has it at a cut, log(1 + .), shape (n, windows)."""
        seen = (self.time_us < cut) & self.bought & (self.item >= 0)
        age_days = (cut - self.time_us[seen]) / DAY_US
        return np.column_stack(
            [
                np.log1p(np.bincount(self.item[seen], np.exp2(-age_days / float(window[:-1])), len(self.items)))
                for window in WINDOWS
            ]
        ).astype(np.float32)
