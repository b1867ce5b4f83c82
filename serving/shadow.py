"""Asks a shadow candidate what the user was just shown, and writes down how its list differs. Nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_repo.rows import UserRows
from feature_repo.settings import Settings
from serving.answers import Recommendations
from serving.cascade.recommender import RankedItem
from serving.child_scorer.child import CandidateError, ChildScorer
from serving.child_scorer.ranking import Asked, rank
from serving.feature_reads import FeatureReads
from serving.impression_log import ShadowLog
from serving.impressions import Failure, ShadowRecord
from serving.metrics import Metrics
from serving.request_id import answering
from serving.state import Release, ServingState

_LOG = logging.getLogger(__name__)
#: Requests that may wait for the shadow; a candidate slower than the traffic sees a sample of it.
QUEUE_LENGTH: Final = 50
#: Its latency is judged from the log, so it may take longer than a user would wait.
TIMEOUT_S: Final = 1.0
#: So long it waits for a moment without users' requests: on a busy server it sees a sample of at least ten a second.
PATIENCE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    child: ChildScorer
    epoch: int
    asked: Asked
    answer: Recommendations
    served_latency_ms: float


class Shadow:
    """A bounded queue and the task that works through it, one request after the other, when no user waits."""

    def __init__(
        self,
        settings: Settings,
        state: ServingState,
        reads: FeatureReads,
        metrics: Metrics,
        length: int = QUEUE_LENGTH,
    ) -> None:
        self._state = state
        self._reads = reads
        self._log = ShadowLog(
            settings.shadow_dir, metrics.impressions_dropped.inc, keep_days=settings.impression_days, name="shadow"
        )
        self._metrics = metrics
        self._dropped = 0
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(length)
        self._task: asyncio.Task[None] | None = None

    def ask(self, release: Release, asked: Asked, answer: Recommendations, served_latency_ms: float) -> None:
        """Queue a request that was answered; drop it if the queue is full. Never waits."""
        child = release.shadow
        if child is None or not child.began:
            return
        try:
            self._queue.put_nowait(_Job(child, release.plan.epoch, asked, answer, served_latency_ms))
        except asyncio.QueueFull:
            self._drop()

    @property
    def waiting(self) -> int:
        """Requests that wait for the shadow."""
        return self._queue.qsize()

    def start(self) -> None:
        """Start the task and the log."""
        self._log.start()
        self._task = asyncio.create_task(self._work(), name="shadow")

    async def stop(self) -> None:
        """End it; what waits is dropped."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.2)
        await asyncio.to_thread(self._log.stop)

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            if self._gone(job.child):
                self._drop()
                continue
            await asyncio.sleep(0)  # the answer that was queued leaves first
            await self._state.idle(PATIENCE_S)
            start = time.monotonic()
            with answering(job.answer.request_id):
                try:
                    await self._compare(job)
                except Exception:  # a task that ends for good would leave the rollout without evidence
                    _LOG.exception("a shadow's answer could not be compared")
                    self._metrics.shadow.labels("error").inc()
            # Half of the time at most: under full load a comparison must not take a core from those who wait.
            await asyncio.sleep(time.monotonic() - start)

    def _gone(self, child: ChildScorer) -> bool:
        """Whether a candidate is in the plan no more: its process ends, which is no failure of its own."""
        release = self._state.release
        return release is None or release.shadow is not child

    def _drop(self) -> None:
        self._dropped += 1
        self._metrics.shadow.labels("dropped").inc()

    async def _compare(self, job: _Job) -> None:
        served, items = job.answer, list[RankedItem]()
        start = time.perf_counter()
        kind: Failure | None = None
        try:
            items = (await rank(job.child, job.asked, self._reads, TIMEOUT_S)).items
        except CandidateError as error:
            if error.kind == "empty" and not served.items:
                return
            if self._gone(job.child):
                self._drop()
                return
            kind = error.kind
        latency_ms = (time.perf_counter() - start) * 1000
        self._metrics.shadow.labels("compared" if kind is None else "error").inc()
        overlap, correlation, shift = (None, None, None) if kind else compare(served.items, items)
        if kind is None:
            self._metrics.shadow_seconds.observe(latency_ms / 1000)
        if overlap is not None:
            self._metrics.shadow_overlap.observe(overlap)
        dropped, self._dropped = self._dropped, 0
        self._log.append(
            ShadowRecord(
                request_id=served.request_id,
                time_us=job.asked.now_us,
                user_id=served.user_id,
                bundle_id=job.child.arm.bundle_id,
                stable_bundle=served.bundle_id,
                epoch=job.epoch,
                k=job.asked.k,
                overlap=overlap,
                rank_correlation=correlation,
                score_shift=shift,
                latency_ms=round(latency_ms, 3),
                served_latency_ms=round(job.served_latency_ms, 3),
                error=kind,
                known=job.asked.user.known,
                level=served.level,
                category=_category(job.asked.user),
                events=_events(job.asked.user),
                dropped=dropped,
            )
        )


def compare(
    served: Sequence[RankedItem], shadow: Sequence[RankedItem]
) -> tuple[float | None, float | None, float | None]:
    """Compare two lists, item by item.

    Returns
    -------
    tuple
        Overlap (items in both over the longer list's length), Spearman's rank correlation of the items in both, and
        the mean score of the shadow's list less that of the served one; None where it is not defined.
    """
    if not served or not shadow:
        return None, None, None
    place = {item.item_id: rank for rank, item in enumerate(shadow)}
    theirs = np.array([place[item.item_id] for item in served if item.item_id in place])
    overlap = len(theirs) / max(len(served), len(shadow))
    shift = float(np.mean([item.score for item in shadow]) - np.mean([item.score for item in served]))
    n = len(theirs)
    if n < 2:
        return overlap, None, shift
    # Ranks among the items in both, without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    difference = np.argsort(np.argsort(theirs)) - np.arange(n)
    return overlap, 1.0 - 6.0 * float(difference @ difference) / (n * (n * n - 1)), shift


def _category(user: UserRows) -> str:
    """Return the category the user bought most in; viewed most, where nothing was bought."""
    rows = user.affinities
    if not rows.present.any():
        return ""
    bought, seen = (np.nan_to_num(rows.column(name)) for name in ("affinity_purchases", "affinity_views"))
    return user.categories[int(np.lexsort((seen, bought, rows.present))[-1])]


def _events(user: UserRows) -> str:
    """Return a bucket of the user's number of views, additions to the cart and purchases."""
    counts = (user.stats.column(name)[0] for name in ("user_views", "user_carts", "user_purchases"))
    total = float(np.nansum(list(counts)))
    return "0" if total < 1 else "1-9" if total < 10 else "10-99" if total < 100 else "100+"
