"""What the ranker saw of a list, taken by reference for the impression log."""

from __future__ import annotations

import numpy as np

from feature_repo.rows import Rows
from feature_repo.services import service_hash
from serving.cascade.recommender import Draft, Slate
from serving.impressions import NOT_READ, Seen


def seen_of(service: str, draft: Draft, pairs: Rows, slate: Slate, *, pairs_read: bool, keep_all: bool) -> Seen | None:
    """Return what the ranker saw of the list, or of all candidates: a few copies of some rows, the rest is shared."""
    if not len(draft.candidates):
        return None
    which = slice(None) if keep_all else slate.ranked
    items = draft.candidates.items[which]
    return Seen(
        service=service,
        service_hash=service_hash(service),
        candidates=draft.item_ids if keep_all else None,
        matrix=slate.matrix[which],
        item_seq=draft.table.seq[items],
        catalog_seq=draft.table.catalog_seq[items],
        pair_seq=pairs.held(which) if pairs_read else np.full(len(items), NOT_READ),
        category=draft.table.category_code[items],
        category_names=draft.table.category_names,
        user=draft.user,
    )
