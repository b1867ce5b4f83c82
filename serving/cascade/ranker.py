"""Trees behind the Ranker contract, with isotonic calibration. PURE: the loaded model comes as an argument."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from serving.cascade.oblivious_trees import ObliviousTrees

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: Kind of model to the suffix of its file: the formats that may be served.
MODEL_SUFFIXES: Final = {"catboost": ".cbm", "lightgbm": ".txt", "xgboost": ".json"}
#: Kind of model to the file of a bundle's ranker.
RANKER_FILES: Final = {kind: f"ranker{suffix}" for kind, suffix in MODEL_SUFFIXES.items()}


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

    kind: ClassVar[str]  #: key of `MODEL_SUFFIXES`

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
        self._require_width(matrix)
        return np.asarray(self._raw(matrix), np.float64)

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.calibration(scores)

    def contributions(self, matrix: F32) -> F64:
        """Return what each feature adds to the raw score: SHAP values (Lundberg 2020, path-dependent).

        Returns
        -------
        ndarray
            Shape (n, f + 1), in units of the raw score; the last column is the model's mean. Rows sum to `score`.

        Raises
        ------
        BadInputError
            If the matrix has another number of features than the model.
        """
        self._require_width(matrix)
        if not len(matrix):
            return np.empty((0, matrix.shape[1] + 1))
        return np.asarray(self._shap(matrix), np.float64)

    def _require_width(self, matrix: F32) -> None:
        if matrix.shape[1] != self._width:
            raise BadInputError(f"the model takes {self._width} features, the matrix has {matrix.shape[1]}")

    @cached_property
    def _width(self) -> int:
        """Return the number of features the model takes; the libraries take a while to say."""
        return self._count()

    @abstractmethod
    def _count(self) -> int:
        """Return the number of features the model takes."""

    @abstractmethod
    def _raw(self, matrix: F32) -> Any:
        """Return raw scores (log odds, or what the model was ranked by), shape (n,)."""

    @abstractmethod
    def _shap(self, matrix: F32) -> Any:
        """Return SHAP values of the raw scores and, last, their mean, shape (n, f + 1)."""


@dataclass(frozen=True, eq=False)
class CatBoostRanker(TreeRanker):
    """A CatBoost model (`.cbm`).

    Attributes
    ----------
    pool
        The library's own table, `catboost.Pool`.
    trees
        The same trees, faster; None: the library scores.
    """

    kind = "catboost"

    pool: Callable[[F32], Any]
    trees: ObliviousTrees | None = None

    def _count(self) -> int:
        return len(self.model.feature_names_)

    def _raw(self, matrix: F32) -> Any:
        if self.trees is not None:
            return self.trees.score(matrix)
        return self.model.predict(matrix, prediction_type="RawFormulaVal", thread_count=1)

    def _shap(self, matrix: F32) -> Any:
        return self.model.get_feature_importance(self.pool(matrix), type="ShapValues", thread_count=1)


class LightGBMRanker(TreeRanker):
    """A `lightgbm.Booster`."""

    kind = "lightgbm"

    def _count(self) -> int:
        return int(self.model.num_feature())

    def _raw(self, matrix: F32) -> Any:
        return self.model.predict(matrix, raw_score=True, num_threads=1)

    def _shap(self, matrix: F32) -> Any:
        return self.model.predict(matrix, pred_contrib=True, num_threads=1)


@dataclass(frozen=True, eq=False)
class XGBoostRanker(TreeRanker):
    """An `xgboost.Booster` with `nthread` 1; `table` is the library's own, `xgboost.DMatrix`."""

    kind = "xgboost"

    table: Callable[..., Any]

    def _count(self) -> int:
        return int(self.model.num_features())

    def _raw(self, matrix: F32) -> Any:
        return self.model.inplace_predict(matrix, predict_type="margin")

    def _shap(self, matrix: F32) -> Any:
        table = self.table(matrix, feature_names=self.model.feature_names, nthread=1)
        return self.model.predict(table, pred_contribs=True)


@dataclass(frozen=True, eq=False)
class FirstColumns:
    """A ranker that knows only the first columns of the matrix: one trained on the service's features alone."""

    ranker: TreeRanker
    width: int  #: columns it knows
    of: int  #: columns of the matrix

    @property
    def calibration(self) -> Calibration:
        """Map of the scores to probabilities."""
        return self.ranker.calibration

    def score(self, matrix: F32) -> F64:
        """Score the columns it knows, shape (n,); raises like `TreeRanker.score`."""
        if len(matrix) and matrix.shape[1] != self.of:
            raise BadInputError(f"the cascade has {self.of} columns, the matrix has {matrix.shape[1]}")
        return self.ranker.score(matrix[:, : self.width])

    def probability(self, scores: F64) -> F64:
        """Calibrate raw scores."""
        return self.ranker.probability(scores)

    def contributions(self, matrix: F32) -> F64:
        """Return what each feature adds, 0 for columns it does not see; as `TreeRanker.contributions`."""
        known = self.ranker.contributions(matrix[:, : self.width])
        unseen = np.zeros((len(matrix), matrix.shape[1] - self.width))
        return np.hstack([known[:, :-1], unseen, known[:, -1:]])
