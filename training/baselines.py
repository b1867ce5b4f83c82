"""Simple recommenders every model is measured against, over the same offline features. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import CandidateGenerator, top_k
from serving.candidates.history import OwnHistory
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.cascade.items import ItemTable


@dataclass(frozen=True)
class FilledGenerator:
    """A candidate generator as a recommender of its own: its list first, popular items behind.

    Attributes
    ----------
    repeats
        Whether items of the user's recent events may be recommended.
    """

    generator: CandidateGenerator
    filler: Popularity | None
    depth: int = 100

    def __call__(self, user: UserRows, table: ItemTable, now_us: int, *, repeats: bool = True) -> list[str]:
        """Rank for one user.

        Returns
        -------
        list
            At most `depth` item ids, best first.
        """
        scores = self.generator.query(user, table, now_us).scores(np.arange(len(table), dtype=np.int32)).copy()
        fill = np.zeros_like(scores) if self.filler is None else table.popularity(self.filler.window)
        allowed = table.available.copy()
        if not repeats:
            indices = table.lookup(user.recent.item_ids)
            allowed[indices[indices >= 0]] = False
        # Everything the generator scores stays above everything it does not.
        total = np.where(scores > 0, scores + 1.0 + float(fill.max(initial=0.0)), fill)
        total = np.where(allowed, total, 0.0).astype(np.float32)
        return [table.ids[i] for i in top_k(total, self.depth)]


#: Plain counts of what the user did, ties broken by popularity (the floor makes popularity a tie-break).
PLAIN_HISTORY = OwnHistory(half_life_days=1e6, popularity_floor=1e3)


def baselines(generators: tuple[CandidateGenerator, ...]) -> dict[str, FilledGenerator]:
    """Return the baselines of the protocol: popularity, own history, and each generator of a bundle by itself.

    `own_history` counts and fills with 30-day popularity; `history_x_popularity` is the bundle's own generator, which
    is far stronger: the two-stage model is reported against both.
    """
    month, week = Popularity("30d"), Popularity("7d")
    found = {
        "popularity_all": FilledGenerator(Popularity("all"), None),
        "popularity_7d": FilledGenerator(week, None),
        "own_history": FilledGenerator(PLAIN_HISTORY, month),
    }
    for generator in generators:
        if isinstance(generator, OwnHistory) and "history_x_popularity" not in found:  # the first: the longest memory
            found["history_x_popularity"] = FilledGenerator(generator, month)
        elif not isinstance(generator, Popularity | CategoryPopularity):
            found[generator.name] = FilledGenerator(generator, month)
    return found
