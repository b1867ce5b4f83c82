"""A candidate's process that behaves as badly as the item asked to be excluded says: an entry for tests only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving.cascade.recommender import Draft, Recommender, Slate
from serving.child_scorer.scoring import main

_draft, _finish = Recommender.draft, Recommender.finish


def draft(self: Recommender, user: Any, table: Any, now_us: int, *, exclude: Sequence[str] = (), **rest: Any) -> Draft:
    """Do what an excluded "item" says."""
    if "hang" in exclude:
        time.sleep(60.0)
    if "slow" in exclude:
        time.sleep(0.4)
    if "die" in exclude:
        os._exit(3)
    if "grow" in exclude:
        bytearray(8 * 1024**3)  # beyond what it may take
    if "raise" in exclude:
        raise RuntimeError("a bug")
    found = _draft(self, user, table, now_us, exclude=exclude, **rest)
    return replace(found, k=-1) if "nothing" in exclude else replace(found, k=-2) if "nan" in exclude else found


def finish(self: Recommender, asked: Draft, pairs: Any, exploring: Any = None) -> Slate:
    """Give a list of nothing, or of scores that are no numbers."""
    slate = _finish(self, replace(asked, k=abs(asked.k)), pairs, exploring)
    if asked.k == -1:
        return Slate([], slate.matrix, slate.ranked[:0])
    if asked.k == -2:
        return Slate([replace(item, score=float("nan")) for item in slate.items], slate.matrix, slate.ranked)
    return slate


if __name__ == "__main__":
    Recommender.draft, Recommender.finish = draft, finish  # type: ignore[method-assign, assignment]
    main()
