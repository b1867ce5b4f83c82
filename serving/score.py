"""Probability of a purchase for given pairs: by the bundle's purchase model, else its ranker. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from feature_repo.errors import UnavailableError
from feature_repo.rows import Rows, UserRows, null_rows
from feature_repo.views import DAY_US, ITEM_STATS, USER_ITEM
from serving.answers import Level, Reason, ScoredPair, Scores
from serving.bundle import Bundle
from serving.candidates.contract import I32
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.recommender import Recommender
from serving.feature_reads import FeatureReads
from serving.request_id import made_request_id
from serving.state import ServingState

F64 = npt.NDArray[np.float64]


class ScoreService:
    """Scores pairs, user by user: one user's features are read once for all their items."""

    def __init__(self, state: ServingState, reads: FeatureReads, now_us: Callable[[], int]) -> None:
        self._state = state
        self._reads = reads
        self._now_us = now_us

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Score (user, item) pairs; the answer is in their order.

        Raises
        ------
        UnavailableError
            If no bundle or no item table is loaded: without a model there is no probability.
        """
        release, table = self._state.release, self._state.table
        if release is None or table is None:
            missing = "model bundle" if release is None else "item table"
            raise UnavailableError(f"no {missing} has been loaded yet, so nothing can be scored; try again in a moment")
        now_us = self._now_us()
        by_user: dict[str, list[int]] = {}
        for place, (user_id, _) in enumerate(pairs):
            by_user.setdefault(user_id, []).append(place)
        scored: dict[int, ScoredPair] = {}
        whole: list[Reason] = []
        for user_id, places in by_user.items():
            items = list(dict.fromkeys(pairs[place][1] for place in places))
            user, rows, missing_reads = await self._read(user_id, items, now_us)
            whole += [reason for reason in missing_reads if reason not in whole]
            probabilities = _probabilities(release.bundle, user, table, items, rows, now_us)
            reasons = list(missing_reads)
            if not user.known and not missing_reads:
                reasons.append("unknown_user")
            by_item = dict(zip(items, probabilities.tolist(), strict=True))
            for place in places:
                item_id = pairs[place][1]
                unknown: list[Reason] = [] if item_id in table.index else ["unknown_item"]
                scored[place] = ScoredPair(user_id, item_id, by_item[item_id], [*reasons, *unknown])
            await asyncio.sleep(0)  # a thousand users must not keep a page waiting
        level: Level = "item_side" if whole else "full"
        return Scores(
            request_id=made_request_id(),
            model_version=release.model_version,
            bundle_id=release.bundle.bundle_id,
            arm="stable",
            level=level,
            reasons=whole,
            feature_age_s=self._state.feature_age_s(now_us),
            item_table_age_s=self._state.item_table_age_s,
            scores=[scored[place] for place in range(len(pairs))],
            scored_by="ranker" if release.bundle.purchase is None else "purchase",
            horizon_days=None if release.bundle.purchase is None else release.bundle.purchase.horizon_us / DAY_US,
        )

    async def _read(self, user_id: str, items: list[str], now_us: int) -> tuple[UserRows, Rows, list[Reason]]:
        """Read the user's and the pairs' rows; null rows and a reason where Redis does not answer."""
        reasons: list[Reason] = []
        user = await self._reads.user(user_id, now_us)
        pairs = await self._reads.pairs(user, items, now_us) if user is not None else None
        if user is None:
            reasons.append("user_features_unavailable")
        elif pairs is None:
            reasons.append("pair_features_unavailable")
        return (
            user if user is not None else self._reads.nothing_known(user_id),
            pairs if pairs is not None else null_rows(USER_ITEM, len(items)),
            reasons,
        )


def _probabilities(
    bundle: Bundle, user: UserRows, table: ItemTable, item_ids: list[str], pairs: Rows, now_us: int
) -> F64:
    """Calibrated probabilities, shape (len(item_ids),); an item the table lacks is scored by null features."""
    at = table.lookup(item_ids)
    known = at >= 0
    out = np.empty(len(item_ids))
    if known.any():
        rows = _take(pairs, known)
        if bundle.purchase is not None:
            out[known] = bundle.purchase.probability(user, table, at[known], rows, now_us)
        else:
            scores = bundle.recommender.score(user, table, at[known], rows, now_us)
            out[known] = bundle.recommender.ranker.probability(scores)
    if not known.all():
        nothing = build_item_table([CatalogEntry("")], null_rows(ITEM_STATS, 1), now_us)
        items, rows = np.zeros(len(item_ids) - int(known.sum()), np.int32), _take(pairs, ~known)
        if bundle.purchase is not None:
            out[~known] = bundle.purchase.probability(user, nothing, items, rows, now_us)
        else:
            out[~known] = _ranked_unknown(bundle.recommender, user, nothing, items, rows, now_us)
    return out


def _ranked_unknown(
    recommender: Recommender, user: UserRows, nothing: ItemTable, items: I32, pairs: Rows, now_us: int
) -> F64:
    """Probabilities by the ranker of items that no generator knows: score 0, no rank."""
    retrieval = np.tile(np.array([0.0, np.nan], np.float32), (len(items), len(recommender.generators)))
    matrix = recommender.matrix(user, nothing, items, pairs, retrieval, now_us)
    return recommender.ranker.probability(recommender.ranker.score(matrix))


def _take(rows: Rows, which: npt.NDArray[np.bool_]) -> Rows:
    return Rows(rows.view, rows.ints[which], rows.floats[which], rows.present[which])
