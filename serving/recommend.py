"""Answers a recommendation request by the best rung of the ladder that is possible now. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from feature_repo.errors import UnavailableError
from feature_repo.events import Repeats
from feature_repo.rows import Rows, UserRows, null_rows
from feature_repo.services import service_hash
from feature_repo.views import USER_ITEM
from serving.answers import ARM, ExplainedItem, Level, Reason, Recommendations, new_request_id
from serving.cascade.explanation import explain_unscored
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Draft, RankedItem, Slate
from serving.cascade.rerank import DiversityKind
from serving.explainer import Explainer
from serving.feature_reads import FeatureReads
from serving.impression_log import ImpressionLog
from serving.impressions import NOT_READ, Impressions, Seen, keeps_all_candidates
from serving.metrics import Metrics
from serving.popular import popular_in_file, popular_in_table
from serving.state import Release, ServingState

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for."""

    user_id: str
    k: int
    exclude: list[str] = field(default_factory=list)
    repeats: Repeats | None = None
    request_id: str | None = None
    diversity: DiversityKind | None = None
    explain: bool = False


@dataclass(slots=True)
class _Served:
    """A list and how it came about."""

    level: Level
    items: list[RankedItem]
    reasons: list[Reason]
    user: UserRows
    user_read: bool = True
    seen: Seen | None = None
    slate: Slate | None = None


class RecommendationService:
    """The online caller of the cascade: two bounded reads, and a list whatever happens."""

    def __init__(
        self,
        state: ServingState,
        reads: FeatureReads,
        impressions: ImpressionLog,
        explainer: Explainer,
        metrics: Metrics,
        now_us: Callable[[], int],
        *,
        all_candidates_share: float = 0.0,
    ) -> None:
        self._state = state
        self._reads = reads
        self._impressions = impressions
        self._explainer = explainer
        self._metrics = metrics
        self._now_us = now_us
        self._all_candidates_share = all_candidates_share

    async def recommend(self, wish: Wish) -> Recommendations:
        """Answer one request and record what was served.

        Raises
        ------
        UnavailableError
            Only if neither a bundle nor an item table was ever loaded: there is nothing to show.
        """
        now_us = self._now_us()
        # Before the reads: what it promises is in every row that they bring.
        feature_age_s = self._state.feature_age_s(now_us)
        request_id = wish.request_id or new_request_id()
        release, table = self._state.release, self._state.table
        if release is not None and table is not None:
            served = await self._by_model(wish, request_id, release, table, now_us)
        else:
            served = self._without_model(wish, release, table)
        items = await self._explained(served, release) if wish.explain else served.items
        used = release if served.level != "popularity" else None
        answer = Recommendations(
            request_id=request_id,
            user_id=wish.user_id,
            model_version=used.model_version if used else None,
            bundle_id=used.bundle.bundle_id if used else None,
            arm=ARM,
            level=served.level,
            reasons=served.reasons,
            feature_age_s=feature_age_s,
            item_table_age_s=self._state.item_table_age_s,
            items=items,
        )
        self._record(answer, served, wish.k, now_us)
        return answer

    async def _by_model(self, wish: Wish, request_id: str, release: Release, table: ItemTable, now_us: int) -> _Served:
        """Rank with the bundle; without the user's features if they cannot be read."""
        stage, reasons = self._metrics.stage, list[Reason]()
        start = time.perf_counter()
        user = await self._reads.user(wish.user_id, now_us)
        read = time.perf_counter()
        stage["user_read"].observe(read - start)
        level: Level = "full"
        known = user is not None
        if user is None:
            level, user = "item_side", self._reads.nothing_known(wish.user_id)
            reasons.append("user_features_unavailable")
            if (wish.repeats or release.bundle.recommender.policy.repeats) == "drop":
                reasons.append("repeats_not_known")
        elif not user.known:
            reasons.append("unknown_user")
        recommender = release.bundle.recommender
        try:
            draft = recommender.draft(
                user,
                table,
                now_us,
                k=wish.k,
                exclude=wish.exclude,
                repeats=wish.repeats,
                diversity=wish.diversity,
            )
            item_ids = draft.item_ids
            drafted = time.perf_counter()
            stage["retrieve"].observe(drafted - read)
            pairs = await self._reads.pairs(wish.user_id, item_ids, now_us) if known and item_ids else None
            pairs_read = pairs is not None
            if pairs is None:
                pairs = null_rows(USER_ITEM, len(item_ids))
                if known and item_ids:
                    level = "item_side"
                    reasons.append("pair_features_unavailable")
            paired = time.perf_counter()
            stage["pair_read"].observe(paired - drafted)
            slate = recommender.finish(draft, pairs)
            _require_numbers(slate)
            stage["rank"].observe(time.perf_counter() - paired)
        except Exception:  # a bug in a model must not take the shop's page down; it is counted and logged
            _LOG.exception("bundle %s failed on a request", release.bundle.bundle_id)
            self._metrics.model_failures.inc()
            items = popular_in_table(table, wish.k, exclude=wish.exclude)
            return _Served("popularity", items, [*reasons, "model_failed"], user, known)
        names = [g.name for g in recommender.generators]
        for name, count in zip(names, np.bincount(draft.candidates.source, minlength=len(names)), strict=True):
            self._metrics.candidates.labels(name).inc(int(count))
        keep_all = keeps_all_candidates(request_id, self._all_candidates_share)
        seen = _seen(recommender.service, draft, pairs, slate, pairs_read=pairs_read, keep_all=keep_all)
        return _Served(level, slate.items, reasons, user, known, seen, slate)

    async def _explained(self, served: _Served, release: Release | None) -> Sequence[RankedItem]:
        """Explain a list; as it is, with a reason, where that cannot be done now."""
        if release is None or served.slate is None:
            explanations = [explain_unscored(item.source) for item in served.items]
        else:
            start = time.perf_counter()
            try:
                found = await self._explainer.explain(release.bundle.recommender, served.slate)
            except Exception:  # the list is good without it
                _LOG.exception("bundle %s failed to explain a list", release.bundle.bundle_id)
                self._metrics.model_failures.inc()
                found = None
            self._metrics.stage["explain"].observe(time.perf_counter() - start)
            if found is None:
                served.reasons.append("explanation_unavailable")
                return served.items
            explanations = found
        return [
            ExplainedItem(
                item.item_id,
                item.rank,
                item.score,
                item.source,
                item.slot,
                summary=why.summary,
                explanation=why.contributions,
            )
            for item, why in zip(served.items, explanations, strict=True)
        ]

    def _without_model(self, wish: Wish, release: Release | None, table: ItemTable | None) -> _Served:
        """Popular items: of the table, else of the bundle's file."""
        user = self._reads.nothing_known(wish.user_id)
        if table is not None:
            items = popular_in_table(table, wish.k, exclude=wish.exclude)
            return _Served("popularity", items, ["no_bundle"], user)
        if release is not None:
            items = popular_in_file(release.bundle.popular, wish.k, exclude=[*wish.exclude, *self._state.hidden])
            return _Served("popularity_file", items, ["no_item_table"], user)
        raise UnavailableError("neither a model bundle nor the item table has been loaded yet; try again in a moment")

    def _record(self, answer: Recommendations, served: _Served, k: int, now_us: int) -> None:
        for item in served.items:
            self._metrics.served_items.labels(item.source).inc()
        self._impressions.append(
            Impressions(
                request_id=answer.request_id,
                time_us=now_us,
                user_id=answer.user_id,
                assigned_arm=answer.arm,
                served_bundle=answer.bundle_id,
                model_version=answer.model_version,
                level=answer.level,
                k=k,
                items=served.items,
                user_seq=_user_seq(served),
                recent_seq=served.user.recent.seq if served.user_read else NOT_READ,
                feature_age_s=answer.feature_age_s,
                reasons=list(answer.reasons),
                seen=served.seen,
            )
        )


def _user_seq(served: _Served) -> int:
    stats = served.user.stats
    return (int(stats.seq[0]) if stats.present[0] else 0) if served.user_read else NOT_READ


def _seen(service: str, draft: Draft, pairs: Rows, slate: Slate, *, pairs_read: bool, keep_all: bool) -> Seen | None:
    """Return what the ranker saw of the list, or of all candidates: a few copies of some rows, the rest is shared."""
    if not len(draft.candidates):
        return None
    which = slice(None) if keep_all else slate.ranked
    items = draft.candidates.items[which]
    pair_seq = np.where(pairs.present, pairs.seq, 0)[which]
    return Seen(
        service=service,
        service_hash=service_hash(service),
        candidates=draft.item_ids if keep_all else None,
        matrix=slate.matrix[which],
        item_seq=draft.table.seq[items],
        catalog_seq=draft.table.catalog_seq[items],
        pair_seq=pair_seq if pairs_read else np.full(len(items), NOT_READ),
        category=draft.table.category_code[items],
        category_names=draft.table.category_names,
        user=draft.user,
    )


def _require_numbers(slate: Slate) -> None:
    """Refuse a list with a score that is no number."""
    if not all(math.isfinite(item.score) for item in slate.items):
        raise ValueError("the model gave a score that is not a number")
