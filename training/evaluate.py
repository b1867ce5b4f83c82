"""The protocol: runs the production Recommender and the baselines over offline features and grades them.

Full-catalogue ranking, one slate per user as of the start of the test window, no test events fed in, unseen items in
the denominator, a user without an answer scores 0; warm and cold users apart, and warm users once more with new items
only (DESIGN.md section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.views import NULL_INT
from serving.candidates.contract import I32
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender
from training.baselines import FilledGenerator
from training.metrics import F64, auc, bootstrap_mean, category_diversity, coverage, per_user
from training.split import Window

TWO_STAGE = "two_stage"
#: Length of the slates that are graded.
DEPTH = 20
AUC_NEGATIVES = 100
#: Candidates of `recall_300`: what a smaller first stage would bring.
SHALLOW = 300

Targets = Mapping[str, set[str]]
Slates = dict[str, Sequence[str]]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured in one test window.

    Attributes
    ----------
    metrics
        segment -> model -> metric -> values per user, shape (n_users,).
    coverage
        model -> coverage@10 over warm users.
    diversity
        model -> mean intra-list category diversity@10 over warm users (metrics.category_diversity).
    auc
        Mean AUC per warm user of positives against uniformly drawn available items, two-stage model.
    candidate_recall
        Share of each warm user's targets among the candidates, shape (n_users,).
    recall_300
        The same among the best 300 of them, as the lists were fused, before any ranker saw them.
    slates
        segment -> model -> user -> the list that was graded.
    """

    window: Window
    metrics: dict[str, dict[str, dict[str, F64]]]
    coverage: dict[str, float]
    diversity: dict[str, float]
    auc: F64
    candidate_recall: F64
    recall_300: F64
    seed: int
    slates: dict[str, dict[str, Slates]] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """One row per segment and model: each metric with its interval."""
        rows = []
        for segment, models in self.metrics.items():
            for model, values in models.items():
                row: dict[str, Any] = {"segment": segment, "model": model, "users": len(next(iter(values.values())))}
                for name, per in values.items():
                    row[name], row[f"{name}_low"], row[f"{name}_high"] = bootstrap_mean(per, seed=self.seed)
                rows.append(row)
        return rows

    def paired(self, baseline: str, *, segment: str = "warm", metric: str = "ndcg@10") -> tuple[float, float, float]:
        """Gain of the two-stage model over a baseline: mean paired difference with a bootstrap interval."""
        models = self.metrics[segment]
        return bootstrap_mean(models[TWO_STAGE][metric] - models[baseline][metric], seed=self.seed)

    def flat(self) -> dict[str, float]:
        """Figures by name, for MLflow and the manifest."""
        out: dict[str, float] = {}
        for row in self.table():
            for name in ("ndcg@10", "recall@20", "map@10"):
                out[f"{row['segment']}.{row['model']}.{name.replace('@', '_at_')}"] = row[name]
        out |= {f"warm.{model}.coverage_at_10": value for model, value in self.coverage.items()}
        out |= {f"warm.{model}.diversity_at_10": value for model, value in self.diversity.items()}
        out["auc"] = float(self.auc.mean()) if len(self.auc) else float("nan")
        for name, values in (("candidate_recall", self.candidate_recall), ("recall_300", self.recall_300)):
            out[name] = float(values.mean()) if len(values) else float("nan")
        for baseline in ("own_history", "history_x_popularity"):
            gain, low, high = self.paired(baseline)
            out |= {f"gain_over_{baseline}": gain, f"gain_over_{baseline}_low": low, f"gain_over_{baseline}_high": high}
        return {name: value for name, value in out.items() if np.isfinite(value)}


def evaluate(
    recommender: Recommender,
    others: Mapping[str, FilledGenerator],
    reader: AsOfReader,
    table: ItemTable,
    window: Window,
    targets: Targets,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Grade the two-stage model and the baselines on every user with targets in the window."""
    now = window.start_us
    segments: dict[str, dict[str, set[str]]] = {"warm": {}, "cold": {}, "new_items": {}}
    slates: dict[str, dict[str, Slates]] = {segment: {} for segment in segments}
    aucs: list[float] = []
    recalls: list[tuple[float, float]] = []
    rng = np.random.default_rng([seed, 1])
    repeats = recommender.policy.repeats  # what serving would show; of a film seen, nobody asks for it again
    for done, (user_id, wanted) in enumerate(targets.items()):
        user = reader.user(user_id, now)
        segment = "warm" if user.known else "cold"
        segments[segment][user_id] = wanted
        slate = recommender.recommend(reader, table, user_id, now, k=DEPTH)
        _put(slates[segment], TWO_STAGE, user_id, [item.item_id for item in slate.items])
        for name, baseline in others.items():
            _put(slates[segment], name, user_id, baseline(user, table, now, repeats=repeats == "keep")[:DEPTH])
        if user.known:
            draft = recommender.draft(user, table, now, k=DEPTH)
            found = draft.item_ids
            recalls.append((_share(found, wanted), _share(found[:SHALLOW], wanted)))
            aucs.append(user_auc(recommender, reader, table, user_id, wanted, now, rng))
            fresh = wanted - set(_taken(reader, user_id, sorted(wanted), now))
            if fresh:
                segments["new_items"][user_id] = fresh
                slate = recommender.recommend(reader, table, user_id, now, k=DEPTH, repeats="drop")
                _put(slates["new_items"], TWO_STAGE, user_id, [item.item_id for item in slate.items])
                for name, baseline in others.items():
                    _put(slates["new_items"], name, user_id, baseline(user, table, now, repeats=False)[:DEPTH])
        if on_progress:
            on_progress(done + 1, len(targets))
    metrics = {
        segment: {model: per_user(lists, segments[segment]) for model, lists in models.items()}
        for segment, models in slates.items()
    }
    covered = {model: coverage(list(lists.values()), len(table), 10) for model, lists in slates["warm"].items()}
    diverse = {model: _diversity(lists.values(), table) for model, lists in slates["warm"].items()}
    recall, shallow = np.array(recalls).reshape(-1, 2).T
    return Evaluation(window, metrics, covered, diverse, np.array(aucs), recall, shallow, seed, slates)


def _share(found: Sequence[str], wanted: set[str]) -> float:
    return len(wanted.intersection(found)) / len(wanted)


def _diversity(lists: Iterable[Sequence[str]], table: ItemTable) -> float:
    """Mean over lists of at least two items; NaN without any."""
    known = [category_diversity([table.category[table.index[item]] for item in one], 10) for one in lists]
    return float(np.nanmean(known)) if not np.isnan(known).all() else float("nan")


def user_auc(
    recommender: Recommender,
    reader: AsOfReader,
    table: ItemTable,
    user_id: str,
    wanted: set[str],
    now_us: int,
    rng: np.random.Generator,
) -> float:
    """AUC of one user's targets against `AUC_NEGATIVES` uniformly drawn available items.

    Targets the table does not know rank below everything.
    """
    items, n_known, missing = auc_items(table, wanted, rng)
    user = reader.user(user_id, now_us)
    pairs = reader.pairs(user_id, [table.ids[i] for i in items], now_us)
    scores = recommender.score(user, table, items, pairs, now_us)
    positive = np.concatenate([scores[:n_known], np.full(missing, -np.inf)])
    return auc(positive, scores[n_known:])


def auc_items(table: ItemTable, wanted: set[str], rng: np.random.Generator) -> tuple[I32, int, int]:
    """Draw the items of one user's AUC.

    Returns
    -------
    tuple
        Items of the table, the targets first; how many of them are targets; how many targets the table does not know.
    """
    found = table.lookup(sorted(wanted))
    known = found[found >= 0]
    pool = np.setdiff1d(np.flatnonzero(table.available), known)
    negative = rng.choice(pool, min(AUC_NEGATIVES, len(pool)), replace=False)
    return np.concatenate([known, negative]).astype(np.int32), len(known), len(found) - len(known)


def _taken(reader: AsOfReader, user_id: str, item_ids: list[str], now_us: int) -> list[str]:
    """Which of the items the user had taken (bought, viewed, ...) before."""
    rows = reader.pairs(user_id, item_ids, now_us)
    return [
        item for item, there, time in zip(item_ids, rows.present, rows.time, strict=True) if there and time != NULL_INT
    ]


def _put(models: dict[str, Slates], model: str, user_id: str, slate: Sequence[str]) -> None:
    models.setdefault(model, {})[user_id] = slate
