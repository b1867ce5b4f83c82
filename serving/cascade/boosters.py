"""LightGBM and XGBoost behind the Ranker contract. PURE: the loaded model comes as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.errors import BadInputError
from serving.cascade.ranker import F32, F64, Calibration


@dataclass(frozen=True, eq=False)
class LightGBMRanker:
    """A `lightgbm.Booster` that scores float32 rows."""

    model: Any
    calibration: Calibration

    def score(self, matrix: F32) -> F64:
        """Return raw scores (log odds), shape (n,), by one thread: see `CatBoostRanker`.

        Raises
        ------
        BadInputError
            If the matrix has another number of features than the model.
        """
        _check_width(matrix, int(self.model.num_feature()))
        if not len(matrix):
            return np.empty(0)
        return np.asarray(self.model.predict(matrix, raw_score=True, num_threads=1), np.float64)

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.calibration(scores)


@dataclass(frozen=True, eq=False)
class XGBoostRanker:
    """An `xgboost.Booster` (with `nthread` 1) that scores float32 rows."""

    model: Any
    calibration: Calibration

    def score(self, matrix: F32) -> F64:
        """Return raw scores (log odds), shape (n,).

        Raises
        ------
        BadInputError
            If the matrix has another number of features than the model.
        """
        _check_width(matrix, int(self.model.num_features()))
        if not len(matrix):
            return np.empty(0)
        return np.asarray(self.model.inplace_predict(matrix, predict_type="margin"), np.float64)

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.calibration(scores)


def _check_width(matrix: F32, width: int) -> None:
    if matrix.shape[1] != width:
        raise BadInputError(f"the model takes {width} features, the matrix has {matrix.shape[1]}")
