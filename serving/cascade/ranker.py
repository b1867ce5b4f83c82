"""CatBoost behind the Ranker contract, with isotonic calibration. PURE: the loaded model comes as an argument."""

from __future__ import annotations

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
class CatBoostRanker:
    """A `.cbm` model that scores float32 rows."""

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
        width = len(self.model.feature_names_)
        if matrix.shape[1] != width:
            raise BadInputError(f"the model takes {width} features, the matrix has {matrix.shape[1]}")
        # One thread: a request must not take the second core from its neighbours, and scores stay reproducible.
        return np.asarray(self.model.predict(matrix, prediction_type="RawFormulaVal", thread_count=1), np.float64)

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.calibration(scores)
