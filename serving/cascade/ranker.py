"""Trees behind the Ranker contract, with isotonic calibration. PURE: the loaded model comes as an argument."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone piecewise-linear map from score to probability.

    Attributes
    ----------
    score, probability
        Knots, ascending, each shape (m,).
    """

    score: F64
    probability: F64

    def __call__(self, scores: F64) -> F64:
        """Interpolate; constant outside the knots."""
        return np.interp(scores, self.score, self.probability)


@dataclass(frozen=True, eq=False)
class TreeRanker(ABC):
    """A loaded model that scores float32 rows by one thread, and the map of its scores to probabilities.

    One thread: a request must not take the second core from its neighbours, and scores stay reproducible.
    """

    model: Any
    calibration: Calibration

    def score(self, matrix: F32) -> F64:
        """Return raw scores, shape (n,).

        Raises
        ------
        BadInputError
            If the matrix has another number of features than the model.
        """
        if not len(matrix):
            return np.empty(0)
        if matrix.shape[1] != self._width():
            raise BadInputError(f"the model takes {self._width()} features, the matrix has {matrix.shape[1]}")
        return np.asarray(self._raw(matrix), np.float64)

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.calibration(scores)

    @abstractmethod
    def _width(self) -> int:
        """Return the number of features the model takes."""

    @abstractmethod
    def _raw(self, matrix: F32) -> Any:
        """Return raw scores (log odds, or what the model was ranked by), shape (n,)."""


class CatBoostRanker(TreeRanker):
    """A CatBoost model (`.cbm`)."""

    def _width(self) -> int:
        return len(self.model.feature_names_)

    def _raw(self, matrix: F32) -> Any:
        return self.model.predict(matrix, prediction_type="RawFormulaVal", thread_count=1)


class LightGBMRanker(TreeRanker):
    """A `lightgbm.Booster`."""

    def _width(self) -> int:
        return int(self.model.num_feature())

    def _raw(self, matrix: F32) -> Any:
        return self.model.predict(matrix, raw_score=True, num_threads=1)


class XGBoostRanker(TreeRanker):
    """An `xgboost.Booster` with `nthread` 1."""

    def _width(self) -> int:
        return int(self.model.num_features())

    def _raw(self, matrix: F32) -> Any:
        return self.model.inplace_predict(matrix, predict_type="margin")
