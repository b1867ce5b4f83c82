"""LightGBM LambdaRank (Burges 2010), kept small: LightGBM scores many times slower than CatBoost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from serving.cascade.ranker import LightGBMRanker
from training.candidate_rows import RankerRows
from training.rankers.contract import UNCALIBRATED, Grown


@dataclass(frozen=True, slots=True)
class LambdaRankParams:
    """Settings of LambdaRank.

    Attributes
    ----------
    iterations, leaves
        Together they decide how long 300 rows take: at most 3 ms by one thread (`larder bench ranker_latency`).
    weight_power
        Rows count with their inverse sampling rate to this power.
    truncation
        Pairs count where one of the two is above this rank.
    """

    loss: Literal["lambdarank"] = "lambdarank"
    iterations: int = 80
    learning_rate: float = 0.1
    leaves: int = 15
    min_rows: int = 50
    l2: float = 5.0
    feature_share: float = 0.7
    weight_power: float = 1.0
    truncation: int = 30
    early_stopping: int = 20

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
        import lightgbm

        params = {
            "objective": self.loss,
            "metric": "ndcg",
            "eval_at": [10],
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_rows,
            # The hessians of pairs are far below 1: the default of 1e-3 stays what decides.
            "min_sum_hessian_in_leaf": 1e-3,
            "lambda_l2": self.l2,
            "lambdarank_truncation_level": self.truncation,
            "feature_fraction": self.feature_share,
            "seed": seed,
            "num_threads": threads,
            "deterministic": True,
            "force_row_wise": True,  # else it times both ways and takes the faster: results would depend on the machine
            "verbosity": -1,
        }
        data = self._dataset(rows, features)
        watch: dict[str, Any] = {}
        if held is not None:
            watch["valid_sets"] = [self._dataset(held, features, data)]
            watch["callbacks"] = [lightgbm.early_stopping(self.early_stopping, verbose=False)]
        model = lightgbm.train(params, data, num_boost_round=trees, **watch)
        if held is not None and model.best_iteration > 0:
            # Scoring takes the best trees only; so does the file.
            model = lightgbm.Booster(model_str=model.model_to_string(num_iteration=model.best_iteration))
        importance = model.feature_importance("gain").astype(np.float64)
        return Grown(
            LightGBMRanker(model, UNCALIBRATED),
            max(int(model.num_trees()), 1),
            100.0 * importance / max(float(importance.sum()), 1e-12),
        )

    def _dataset(self, rows: RankerRows, features: tuple[str, ...], like: Any = None) -> Any:
        import lightgbm

        return lightgbm.Dataset(
            rows.matrix,
            rows.label,
            weight=rows.weight**self.weight_power if self.weight_power else None,
            group=np.unique(rows.group, return_counts=True)[1],  # rows lie slate by slate
            feature_name=list(features),
            reference=like,
        )
