"""One request answered by a candidate's process: its two questions, with the API's own read of pair rows between."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from feature_repo.events import Repeats
from feature_repo.rows import UserRows, null_rows
from feature_repo.services import service_hash
from feature_repo.views import USER_ITEM
from serving.cascade.exploration import ExploredSlot, Exploring, require_sound
from serving.cascade.recommender import RankedItem
from serving.cascade.rerank import DiversityKind
from serving.child_scorer.child import CandidateError, ChildScorer
from serving.feature_reads import FeatureReads
from serving.impressions import NOT_READ, Seen


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of a model: the user's rows are read already."""

    user: UserRows
    known: bool  #: whether they could be read
    now_us: int
    k: int
    exclude: list[str]
    repeats: Repeats | None = None
    diversity: DiversityKind | None = None
    all_candidates: bool = False
    exploring: Exploring | None = None  #: None: nothing is drawn


@dataclass(frozen=True, slots=True)
class CandidateAnswer:
    """A candidate's list; `candidates` counts them by generator."""

    items: list[RankedItem]
    pairs_read: bool
    seen: Seen | None
    candidates: dict[str, int]
    explored: tuple[ExploredSlot, ...] = ()


async def rank(child: ChildScorer, asked: Asked, reads: FeatureReads, timeout_s: float) -> CandidateAnswer:
    """Answer a request by a candidate.

    Parameters
    ----------
    timeout_s
        Longest wait for the candidate; waiting for Redis does not count, as it is not its fault.

    Raises
    ------
    CandidateError
        If it is not up, fails, is late, or its list has a score that is no number, or nothing.
    """
    table, ready = child.table, child.ready
    if table is None or ready is None:
        raise CandidateError("fallback")
    start = time.monotonic()
    drafted = await child.draft(
        asked.user,
        asked.now_us,
        timeout_s,
        k=asked.k,
        exclude=asked.exclude,
        repeats=asked.repeats,
        diversity=asked.diversity,
    )
    left_s = timeout_s - (time.monotonic() - start)
    try:
        indices, source = drafted.items.unpack().astype(np.int64), drafted.source.unpack().astype(np.int64)
        item_ids = [table.ids[i] for i in indices]
        counts = np.bincount(source, minlength=len(ready.generators)).tolist()
    except (ValueError, IndexError) as error:
        raise CandidateError("error", f"candidates that are none: {error}") from None
    pairs = await reads.pairs(asked.user, item_ids, asked.now_us) if asked.known and item_ids else None
    pairs_read = pairs is not None or not item_ids or not asked.known
    rows = null_rows(USER_ITEM, len(item_ids)) if pairs is None else pairs
    finished = await child.finish(
        drafted,
        rows,
        left_s,
        all_candidates=asked.all_candidates,
        exploring=asked.exploring if asked.known and pairs_read else None,
    )
    _check(finished.items, asked.k)
    try:
        require_sound(finished.explored, [item.item_id for item in finished.items])
        matrix, which = finished.matrix.unpack().astype(np.float32), finished.which.unpack().astype(np.int64)
        items = indices[which]
        pair_seq = np.where(rows.present, rows.seq, 0)[which]
    except (ValueError, IndexError) as error:
        raise CandidateError("error", f"features or draws that are none: {error}") from None
    seen = Seen(
        service=ready.service,
        service_hash=service_hash(ready.service),
        candidates=item_ids if asked.all_candidates else None,
        matrix=matrix,
        item_seq=table.seq[items],
        catalog_seq=table.catalog_seq[items],
        pair_seq=pair_seq if pairs is not None else np.full(len(items), NOT_READ),
        category=table.category_code[items],
        category_names=table.category_names,
        user=asked.user,
    )
    candidates = dict(zip(ready.generators, counts, strict=False))
    seen_if_any = seen if item_ids else None
    return CandidateAnswer(finished.items, pairs_read, seen_if_any, candidates, finished.explored)


def _check(items: list[RankedItem], k: int) -> None:
    """Refuse a list that must not be shown."""
    if not items:
        raise CandidateError("empty")
    if not all(math.isfinite(item.score) for item in items):
        raise CandidateError("non_finite")
    if len(items) > k or len({item.item_id for item in items}) != len(items):
        raise CandidateError("error", "a list that is too long, or has an item twice")
