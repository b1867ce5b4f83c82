"""Answers a recommendation request by the best rung of the ladder that is possible now. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from feature_repo.errors import UnavailableError
from feature_repo.events import Repeats
from feature_repo.rows import UserRows, null_rows
from feature_repo.views import USER_ITEM
from serving.answers import ExplainedItem, Level, Reason, Recommendations
from serving.assignment import ArmName
from serving.cascade.explanation import EXPLORED, explain_unscored
from serving.cascade.exploration import DRAWN, Exploration, ExploredSlot, Exploring, propensities_of
from serving.cascade.items import ItemTable
from serving.cascade.recommender import RankedItem, Slate
from serving.cascade.rerank import DiversityKind
from serving.child_scorer.child import CandidateError, ChildScorer
from serving.child_scorer.ranking import Asked, rank
from serving.explainer import Explainer
from serving.exploration import before_exploration
from serving.feature_reads import FeatureReads
from serving.impression_log import ImpressionLog
from serving.impressions import NOT_READ, Failure, Impressions, Seen, keeps_all_candidates
from serving.metrics import Metrics
from serving.plan import Arm
from serving.popular import popular_in_file, popular_in_table
from serving.request_id import answer_id
from serving.seen import seen_of
from serving.shadow import Shadow
from serving.state import Release, ServingState
from serving.tracing import note_served

_LOG = logging.getLogger(__name__)
#: What the model takes of a request's time: no wait may last longer than leaves so much.
_MODEL_S: Final = 0.01


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
    arm: Arm | None = None  # whose list it is; None where no model made it
    failure: Failure | None = None
    marks: tuple[float, ...] = ()  # ends of its stages, for traces (tracing.py)
    explained: float | None = None
    explored: tuple[ExploredSlot, ...] = ()


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
        canary_timeout_s: float = 0.06,
        budget_s: float = math.inf,
        shadow: Shadow | None = None,
        traced: bool = False,
        exploration: Exploration | None = None,
    ) -> None:
        self._state = state
        self._reads = reads
        self._impressions = impressions
        self._explainer = explainer
        self._metrics = metrics
        self._now_us = now_us
        self._all_candidates_share = all_candidates_share
        self._canary_timeout_s = canary_timeout_s
        self._budget_s = budget_s
        self._shadow = shadow
        self._note = note_served if traced else None
        self._exploration = exploration
        # By what was drawn, at position 0 or beyond; series that begin at 0, of the declared policy alone.
        self._explored = (
            None
            if exploration is None
            else [metrics.explored_places.labels(exploration.kind, exploration.pool, drawn) for drawn in DRAWN]
        )

    async def recommend(self, wish: Wish, arrived_s: float | None = None) -> Recommendations:
        """Answer one request and record what was served.

        Parameters
        ----------
        arrived_s
            When the request was there, by `time.perf_counter`: what it waited for its turn is of its time. None: now.

        Raises
        ------
        UnavailableError
            Only if neither a bundle nor an item table was ever loaded: there is nothing to show.
        """
        self._state.under_way += 1
        try:
            return await self._recommend(wish, time.perf_counter() if arrived_s is None else arrived_s)
        finally:
            self._state.under_way -= 1

    async def _recommend(self, wish: Wish, start: float) -> Recommendations:
        now_us, ends = self._now_us(), start + self._budget_s - _MODEL_S
        # Before the reads: what it promises is in every row that they bring.
        feature_age_s = self._state.feature_age_s(now_us)
        request_id = answer_id(wish.request_id)
        release, table = self._state.release, self._state.listed
        assigned: ArmName = "stable" if release is None else release.arm_of(wish.user_id)
        if release is not None and table is not None and time.perf_counter() >= ends:
            popular = popular_in_table(table, wish.k, exclude=wish.exclude)
            served = _Served("popularity", popular, ["late"], self._reads.nothing_known(wish.user_id), user_read=False)
        elif release is not None and table is not None:
            served = await self._by_model(wish, request_id, release, table, now_us, assigned, ends)
        else:
            served = self._without_model(wish, release, table)
        if self._explored is not None:
            for slot in served.explored:
                self._explored[slot.taken > 0].inc()
        took_s = time.perf_counter() - start
        self._metrics.arm_seconds[assigned].observe(took_s)
        latency_ms = took_s * 1000
        items = await self._explained(served, release) if wish.explain else served.items
        answer = Recommendations(
            request_id=request_id,
            user_id=wish.user_id,
            model_version=served.arm.model_version if served.arm else None,
            bundle_id=served.arm.bundle_id if served.arm else None,
            arm=assigned,
            level=served.level,
            reasons=served.reasons,
            feature_age_s=feature_age_s,
            item_table_age_s=self._state.item_table_age_s,
            items=items,
        )
        self._record(answer, served, wish.k, now_us, latency_ms, 0 if release is None else release.plan.epoch)
        if self._note is not None:
            candidates = 0 if served.slate is None else len(served.slate.matrix)
            self._note(answer, wish.k, candidates, served.marks, served.explained)
        if release is not None and release.shadow is not None and self._shadow is not None and served.arm is not None:
            plain = answer
            if served.explored:  # models are compared, not draws
                plain = replace(answer, items=before_exploration(answer.items, served.explored))
            self._shadow.ask(release, _asked(wish, served.user, served.user_read, now_us), plain, latency_ms)
        return answer

    async def _by_model(
        self,
        wish: Wish,
        request_id: str,
        release: Release,
        table: ItemTable,
        now_us: int,
        assigned: ArmName,
        ends: float,
    ) -> _Served:
        """Rank with the arm's bundle; without the user's features if they cannot be read before `ends`.

        Where the canary does not answer, the stable model does, and the record says so.
        """
        stage, reasons = self._metrics.stage, list[Reason]()
        start = time.perf_counter()
        user = await self._reads.user(wish.user_id, now_us, within_s=ends - start)
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
        keep_all = keeps_all_candidates(request_id, self._all_candidates_share)
        # One policy for all arms, so that what is learned by it says nothing of the arm.
        exploring = None if self._exploration is None else Exploring(self._exploration, request_id)
        asked = _asked(wish, user, known, now_us, keep_all=keep_all, exploring=exploring)
        failure: Failure | None = None
        # A candidate has all of its time or is not asked: that a request waited for its turn is not its fault.
        if assigned == "canary" and release.canary is not None and time.perf_counter() < ends:
            try:
                served = await self._by_canary(asked, release.canary, level, reasons)
            except CandidateError as error:
                failure = error.kind
                self._metrics.canary_failures.labels(failure).inc()
            else:
                served.marks = (start, read, time.perf_counter())
                return served
        served = await self._by_stable(asked, release, table, level, reasons, ends)
        served.marks = (start, read, *served.marks)
        # Where nothing may be shown, that is not the candidate's failure.
        served.failure = (None if failure == "empty" and not served.items else failure) or served.failure
        return served

    async def _by_canary(self, asked: Asked, canary: ChildScorer, level: Level, reasons: list[Reason]) -> _Served:
        answer = await rank(canary, asked, self._reads, self._canary_timeout_s)
        self._metrics.candidates.add(answer.candidates.items())
        if not answer.pairs_read:
            level = "item_side"
            reasons.append("pair_features_unavailable")
        return _Served(
            level,
            answer.items,
            reasons,
            asked.user,
            asked.known,
            answer.seen,
            arm=canary.arm,
            explored=answer.explored,
        )

    async def _by_stable(
        self, asked: Asked, release: Release, table: ItemTable, level: Level, reasons: list[Reason], ends: float
    ) -> _Served:
        stage, read = self._metrics.stage, time.perf_counter()
        user, known, now_us = asked.user, asked.known, asked.now_us
        recommender = release.bundle.recommender
        try:
            draft = recommender.draft(
                user,
                table,
                now_us,
                k=asked.k,
                exclude=asked.exclude,
                repeats=asked.repeats,
                diversity=asked.diversity,
            )
            count = len(draft.candidates)
            drafted = time.perf_counter()
            stage["retrieve"].observe(drafted - read)
            pairs = await self._reads.drafted(draft, within_s=ends - drafted) if known and count else None
            pairs_read = pairs is not None
            if pairs is None:
                pairs = null_rows(USER_ITEM, count)
                if known and count:
                    level = "item_side"
                    reasons.append("pair_features_unavailable")
            paired = time.perf_counter()
            stage["pair_read"].observe(paired - drafted)
            slate = recommender.finish(draft, pairs, asked.exploring if level == "full" else None)
            _require_numbers(slate)
            ranked = time.perf_counter()
            stage["rank"].observe(ranked - paired)
        except Exception as error:  # a bug in a model must not take the shop's page down; it is counted and logged
            _LOG.exception("bundle %s failed on a request", release.bundle.bundle_id)
            self._metrics.model_failures.inc()
            items = popular_in_table(table, asked.k, exclude=asked.exclude)
            failure: Failure = "non_finite" if isinstance(error, _NotANumberError) else "error"
            return _Served("popularity", items, [*reasons, "model_failed"], user, known, failure=failure)
        names = [g.name for g in recommender.generators]
        brought = np.bincount(draft.candidates.source, minlength=len(names)).tolist()
        self._metrics.candidates.add(zip(names, brought, strict=True))
        seen = seen_of(recommender.service, draft, pairs, slate, pairs_read=pairs_read, keep_all=asked.all_candidates)
        marks, arm = (read, drafted, paired, ranked), release.plan.stable
        return _Served(level, slate.items, reasons, user, known, seen, slate, arm, marks=marks, explored=slate.explored)

    async def _explained(self, served: _Served, release: Release | None) -> Sequence[RankedItem]:
        """Explain a list; as it is, with a reason, where that cannot be done now."""
        if served.slate is None and served.seen is not None:  # a candidate's process explains nothing
            served.reasons.append("explanation_unavailable")
            return served.items
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
            served.explained = time.perf_counter()
            self._metrics.stage["explain"].observe(served.explained - start)
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
                summary=EXPLORED + why.summary if item.slot == "explored" else why.summary,
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
            return _Served("popularity_file", items, ["no_item_table"], user, arm=release.plan.stable)
        raise UnavailableError("neither a model bundle nor the item table has been loaded yet; try again in a moment")

    def _record(
        self, answer: Recommendations, served: _Served, k: int, now_us: int, latency_ms: float, epoch: int
    ) -> None:
        self._metrics.served_items.add((item.source, 1) for item in served.items)
        for reason in served.reasons:
            self._metrics.reasons.labels(reason).inc()
        if served.seen is not None and served.items:
            self._metrics.top_score[answer.arm].observe(served.items[0].score)
            if served.seen.candidates is None:  # a row per served item, not per candidate
                self._metrics.missing.add(served.seen.service, served.seen.matrix)
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
                latency_ms=round(latency_ms, 3),
                failure=served.failure,
                epoch=epoch,
                propensities=propensities_of(len(served.items), served.explored) if served.explored else None,
                explored=list(served.explored) or None,
            )
        )


def _asked(
    wish: Wish,
    user: UserRows,
    known: bool,
    now_us: int,
    *,
    keep_all: bool = False,
    exploring: Exploring | None = None,
) -> Asked:
    return Asked(user, known, now_us, wish.k, wish.exclude, wish.repeats, wish.diversity, keep_all, exploring)


def _user_seq(served: _Served) -> int:
    stats = served.user.stats
    return (int(stats.seq[0]) if stats.present[0] else 0) if served.user_read else NOT_READ


class _NotANumberError(ValueError):
    pass


def _require_numbers(slate: Slate) -> None:
    """Refuse a list with a score that is no number."""
    if not all(math.isfinite(item.score) for item in slate.items):
        raise _NotANumberError("the model gave a score that is not a number")
