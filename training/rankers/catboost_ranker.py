"""CatBoost: a classifier of what is taken (log loss, the default), or YetiRank, which compares items of one slate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from serving.cascade.ranker import CatBoostRanker
from training.candidate_rows import RankerRows
from training.rankers.contract import UNCALIBRATED, Grown


@dataclass(frozen=True, slots=True)
class CatBoostParams:
    """Settings of CatBoost; the defaults were tuned on windows before the test.

    Attributes
    ----------
    weight_power
        Rows count with their inverse sampling rate to this power. At 0 the model does not know that easy negatives
        were drawn thinly; at 1 a few heavy rows rule. On the two windows before the test of Online Retail, 0.5 and 1
        gave nDCG@10 of .369 / .313 and .359 / .309.
    early_stopping
        Growth ends where the held rows saw no better loss for so many trees.
    slack
        Of those, the last one counts whose log loss is within this share of the least. The curve is flat there, and
        where its least lies is chance: on one window 245 trees gave nDCG@10 of .310, 442 (slack .005) .316.
    """

    loss: Literal["YetiRank", "Logloss"] = "Logloss"
    iterations: int = 500
    learning_rate: float = 0.08
    depth: int = 6
    l2: float = 5.0
    weight_power: float = 0.5
    early_stopping: int = 200
    slack: float = 0.005

    def fit(
        self,
        rows: RankerRows,
        held: RankerRows | None,
        features: tuple[str, ...],
        trees: int,
        *,
        seed: int,
        threads: int,
    ) -> Grown:
        """Fit once (`training.rankers.contract`)."""
        from catboost import CatBoost, Pool

        model = CatBoost(
            {
                "loss_function": self.loss,
                "eval_metric": "NDCG:top=10" if self.loss == "YetiRank" else "Logloss",
                "iterations": trees,
                "learning_rate": self.learning_rate,
                "depth": self.depth,
                "l2_leaf_reg": self.l2,
                # The default of 10 Newton steps per leaf for log loss costs twice the time and overfits the leaves.
                "leaf_estimation_iterations": 1,
                "random_seed": seed,
                "thread_count": threads,
                "allow_writing_files": False,
                "logging_level": "Silent",
            }
        )
        if held is None:
            model.fit(self._pool(rows, features))
        else:
            watch = {"eval_set": self._pool(held, features), "early_stopping_rounds": self.early_stopping}
            model.fit(self._pool(rows, features), use_best_model=self.loss == "YetiRank", **watch)
            if self.loss == "Logloss":
                model.shrink(_last_good(model.get_evals_result()["validation"]["Logloss"], self.slack))
        # By change of prediction, which needs no data; for YetiRank that is not the library's choice.
        importance = model.get_feature_importance(type="PredictionValuesChange")
        ranker = CatBoostRanker(model, UNCALIBRATED, Pool)
        return Grown(ranker, max(int(model.tree_count_), 1), np.asarray(importance, np.float64))

    def _pool(self, rows: RankerRows, features: tuple[str, ...]) -> Any:
        from catboost import Pool

        if self.loss == "YetiRank":
            return Pool(rows.matrix, rows.label, group_id=rows.group, feature_names=list(features))
        return Pool(rows.matrix, rows.label, weight=rows.weight**self.weight_power, feature_names=list(features))


def _last_good(losses: list[float], slack: float) -> int:
    """Return how many trees the last good iteration has."""
    good = np.flatnonzero(np.array(losses) <= min(losses) * (1.0 + slack))
    return int(good[-1]) + 1
