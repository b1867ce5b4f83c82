"""The recommendation cascade: retrieve, filter, rank, re-rank, cut. PURE; the same object answers online and offline.

The caller brings the features: `draft` needs the user's rows, `finish` the pair rows of the draft's candidates. Online
the two reads between them are asynchronous, offline they come from Parquet; the cascade cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from feature_repo.events import Repeats
from feature_repo.rows import FeatureReader, Rows, UserRows
from feature_repo.services import feature_list
from serving.candidates.contract import F32, I32, CandidateGenerator, ItemSimilarity
from serving.cascade.explanation import Explanation, explain_below, explain_row, explain_unscored
from serving.cascade.exploration import Drawn, ExploredSlot, Exploring, explore
from serving.cascade.features import Asked, Candidates, ask, feature_matrix, retrieval_columns
from serving.cascade.fusion import Fusion
from serving.cascade.items import ItemTable
from serving.cascade.rerank import Diversity, DiversityKind, NewItems, diversify, is_new, keep_new_slot

F64 = npt.NDArray[np.float64]

#: Source of items that no generator brought.
POPULAR = "popular"


class Ranker(Protocol):
    """Scores rows of the feature matrix; higher is better."""

    def score(self, matrix: F32) -> F64:
        """Return one score per row, shape (n,)."""
        ...

    def probability(self, scores: F64) -> F64:
        """Turn scores into calibrated probabilities, shape (n,)."""
        ...

    def contributions(self, matrix: F32) -> F64:
        """Return what each feature adds to the score and, last, the mean score, shape (n, f + 1); rows sum to it."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be shown.

    Attributes
    ----------
    repeats
        `keep` where people buy the same thing again (shops), `drop` where they do not (media).
    candidates
        How many candidates are ranked.
    quotas
        How many items each generator may contribute.
    diversity
        How alike the items of one list may be; a request may ask for another kind.
    new_items
        The place kept for a new item.
    """

    repeats: Repeats
    candidates: int
    quotas: tuple[int, ...]
    diversity: Diversity = field(default_factory=Diversity)
    new_items: NewItems = field(default_factory=NewItems)


@dataclass(frozen=True, slots=True)
class Draft:
    """A request between its two reads: candidates are known, pair features are not."""

    user: UserRows
    table: ItemTable
    now_us: int
    k: int
    candidates: Candidates
    allowed: npt.NDArray[np.bool_]
    diversity: Diversity = field(default_factory=Diversity)

    @property
    def item_ids(self) -> list[str]:
        """Ids of the candidates, in order: the pairs to read."""
        return [self.table.ids[i] for i in self.candidates.items]


@dataclass(slots=True)  # frozen, the lines of one list would take eight times as long to make
class RankedItem:
    """One line of a slate; `rank` is 1-based. Nobody changes one.

    `slot` says by which rule, not by its score, an item has its place: "new" in the place kept for a new item,
    "explored" where it was drawn.
    """

    item_id: str
    rank: int
    score: float
    source: str
    slot: Literal["new", "explored"] | None = None


@dataclass(frozen=True, slots=True)
class Slate:
    """A ranked list and what the model saw.

    Attributes
    ----------
    items
        The list.
    matrix
        Input of the ranker, one row per candidate in the order of the draft.
    ranked
        Candidates that are the first items of the list (popular ones may follow), best first.
    explored
        Places that were drawn.
    """

    items: list[RankedItem]
    matrix: F32
    ranked: npt.NDArray[np.intp]
    explored: tuple[ExploredSlot, ...] = ()


@dataclass(frozen=True, eq=False)
class Recommender:
    """Generators, ranker and policy of one bundle."""

    generators: tuple[CandidateGenerator, ...]
    ranker: Ranker
    service: str
    policy: Policy
    popular_window: str = "30d"
    fusion: Fusion | None = None  #: how the generators' lists become one; None: by reciprocal ranks

    def draft(
        self,
        user: UserRows,
        table: ItemTable,
        now_us: int,
        *,
        k: int,
        exclude: Sequence[str] = (),
        repeats: Repeats | None = None,
        diversity: DiversityKind | None = None,
        asked: Asked | None = None,
    ) -> Draft:
        """Retrieve and filter candidates; none for a user of whom nothing is known, who gets what is popular.

        The ranker learned from people with a history; its lists for strangers are worse than popularity
        (docs/models.md).

        Parameters
        ----------
        k
            Length of the list wanted; may exceed the catalogue.
        exclude
            Items that must not be shown.
        repeats, diversity
            Override the policy for this request.
        asked
            What `ask` gave for this known user, table and time, where the caller has it; the generators are asked if
            None.
        """
        allowed = table.available.copy()
        blocked = list(exclude)
        if (repeats or self.policy.repeats) == "drop":
            blocked += user.recent.item_ids
        if blocked:
            indices = table.lookup(blocked)
            allowed[indices[indices >= 0]] = False
        generators, quotas = (self.generators, self.policy.quotas) if user.known else ((), ())
        asked = ask(generators, quotas, user, table, now_us) if asked is None else asked
        candidates = asked.merge(self.policy.candidates, allowed, self._fusion if generators else None)
        chosen = self.policy.diversity if diversity is None else replace(self.policy.diversity, kind=diversity)
        return Draft(user, table, now_us, k, candidates, allowed, chosen)

    def finish(self, draft: Draft, pairs: Rows, exploring: Exploring | None = None) -> Slate:
        """Rank the candidates, re-rank and cut the list; popular items fill what the generators could not.

        Parameters
        ----------
        exploring
            How places are drawn; None: everything is as the model has it.
        """
        found = draft.candidates
        if not len(found):
            return Slate(self._popular(draft, []), np.empty((0, 0), np.float32), np.empty(0, np.intp))
        matrix = self.matrix(draft.user, draft.table, found.items, pairs, found.retrieval, draft.now_us)
        scores = self.ranker.score(matrix)
        ranked = np.lexsort((found.items, -scores))
        order, kept = self._rerank(draft, ranked, scores)
        if exploring is not None:
            order, drawn = self._explore(draft, order, ranked, scores, exploring)
        ids, generators = draft.table.ids, self.generators
        shown = self.ranker.probability(scores[order]).tolist()
        lines = zip(found.items[order].tolist(), shown, found.source[order].tolist(), strict=True)
        items = [
            RankedItem(ids[item], rank, value, generators[source].name)
            for rank, (item, value, source) in enumerate(lines, start=1)
        ]
        if kept is not None:
            items[kept] = replace(items[kept], slot="new")
        if exploring is None:
            return Slate(items + self._popular(draft, items), matrix, order)
        for one in drawn:
            if one.taken:
                items[one.rank - 1] = replace(items[one.rank - 1], slot="explored")
        slots = tuple(_slot(one, draft) for one in drawn)
        return Slate(items + self._popular(draft, items), matrix, order, slots)

    def _explore(
        self,
        draft: Draft,
        shown: npt.NDArray[np.intp],
        ranked: npt.NDArray[np.intp],
        scores: F64,
        exploring: Exploring,
    ) -> tuple[npt.NDArray[np.intp], list[Drawn]]:
        """Draw the declared places of a list, from candidates that may be shown."""
        items, table = draft.candidates.items, draft.table
        new = is_new(table, items, draft.now_us, self.policy.new_items) if exploring.rule.pool == "new" else None
        views, purchases = (np.nan_to_num(table.columns[name][items]) for name in ("item_views", "item_purchases"))
        evidence: F64 = (views + purchases).astype(np.float64)
        return explore(shown, ranked, new, self.ranker.probability(scores), evidence, exploring)

    def _rerank(
        self, draft: Draft, ranked: npt.NDArray[np.intp], scores: F64
    ) -> tuple[npt.NDArray[np.intp], int | None]:
        """Return the candidates of the list, best first, and the place of the one in the new item's slot."""
        items, table, rule = draft.candidates.items, draft.table, self.policy.new_items
        shown = diversify(
            ranked,
            draft.k,
            draft.diversity,
            items,
            table,
            lambda positions: self.ranker.probability(scores[positions]),
            self._similarity,
        )
        if not rule.slots:
            return shown, None
        # The slot comes after diversity: a new item may be one more of its category than the cap allows.
        return keep_new_slot(shown, ranked, draft.k, rule.rank, is_new(table, items, draft.now_us, rule))

    @cached_property
    def _fusion(self) -> Fusion:
        return self.fusion or Fusion.reciprocal(len(self.generators))

    @cached_property
    def _similarity(self) -> ItemSimilarity | None:
        """The first generator that knows how similar items are."""
        return next((g for g in self.generators if isinstance(g, ItemSimilarity)), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the ranker's columns: the service's features, then each generator's score and rank."""
        return (*feature_list(self.service), *retrieval_columns([g.name for g in self.generators]))

    def explain(self, slate: Slate, limit: int) -> list[Explanation]:
        """Say of each item of a list why it has its score.

        Takes much longer than ranking: up to a second for hundreds of items.

        Parameters
        ----------
        limit
            How many items are explained; those further down get a sentence that says so.
        """
        rows = slate.matrix[slate.ranked[:limit]]
        shap = self.ranker.contributions(rows) if len(rows) else np.empty((0, 1))
        columns = self.columns
        out = [explain_row(columns, row, one) for row, one in zip(rows, shap, strict=True)]
        out += [explain_below(limit)] * (len(slate.ranked) - len(out))
        return out + [explain_unscored(item.source) for item in slate.items[len(out) :]]

    def matrix(self, user: UserRows, table: ItemTable, items: I32, pairs: Rows, retrieval: F32, now_us: int) -> F32:
        """Assemble the ranker's input in the order it was trained on."""
        return feature_matrix(self.service, user, table, items, pairs, retrieval, now_us)

    def score(self, user: UserRows, table: ItemTable, items: I32, pairs: Rows, now_us: int) -> F64:
        """Raw ranker scores of any items of the table, retrieved or not, shape (len(items),)."""
        asked = ask(self.generators, self.policy.quotas, user, table, now_us)
        return self.ranker.score(self.matrix(user, table, items, pairs, asked.features(items), now_us))

    def recommend(
        self,
        reader: FeatureReader,
        table: ItemTable,
        user_id: str,
        now_us: int,
        *,
        k: int,
        repeats: Repeats | None = None,
        diversity: DiversityKind | None = None,
    ) -> Slate:
        """Answer one request through a synchronous reader (offline evaluation, the gate)."""
        draft = self.draft(reader.user(user_id, now_us), table, now_us, k=k, repeats=repeats, diversity=diversity)
        return self.finish(draft, reader.pairs(user_id, draft.item_ids, now_us))

    def _popular(self, draft: Draft, above: list[RankedItem]) -> list[RankedItem]:
        """Popular items, then all others in index order, until the list is as long as asked or nothing is left.

        Their score is their share of the recent purchases, at most the least of the items above.
        """
        wanted = draft.k - len(above)
        if wanted <= 0:
            return []
        allowed = draft.allowed.copy()
        allowed[draft.table.lookup([item.item_id for item in above])] = False
        popularity = draft.table.popularity(self.popular_window)
        best = draft.table.most_popular(self.popular_window)
        best = best[allowed[best]][:wanted]
        allowed[best] = False
        rest = np.flatnonzero(allowed)[: wanted - len(best)]
        ceiling = min((item.score for item in above), default=1.0)
        total = max(float(popularity.sum()), 1e-9)
        return [
            RankedItem(draft.table.ids[i], rank, min(ceiling, float(popularity[i]) / total), POPULAR)
            for rank, i in enumerate([*best.tolist(), *rest.tolist()], start=len(above) + 1)
        ]


def _slot(drawn: Drawn, draft: Draft) -> ExploredSlot:
    ids = [draft.table.ids[item] for item in draft.candidates.items[drawn.arms]]
    return ExploredSlot(drawn.rank, ids, drawn.propensities.tolist(), drawn.scores.tolist(), drawn.taken)
