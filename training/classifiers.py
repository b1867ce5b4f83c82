"""The classifiers that `larder compare classifiers` fits on the same rows: seven kinds, seeded, threads pinned.

Weights count the pairs of the population a row stands for. Linear models and the SVM get filled, damped and scaled
columns; trees see the matrix as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.cascade.ranker import F32, F64, CatBoostRanker, LightGBMRanker, XGBoostRanker
from training.candidate_rows import RankerRows
from training.rankers.contract import UNCALIBRATED


class Scorer(Protocol):
    """A fitted classifier."""

    def score(self, matrix: F32) -> F64:
        """Return one score per row, higher is likelier, shape (n,)."""
        ...


Fit = Callable[[RankerRows, tuple[str, ...], int, int, float], Scorer]


@dataclass(frozen=True, slots=True)
class Classifier:
    """One kind of classifier.

    Attributes
    ----------
    fit
        Called with (rows, feature names, seed, threads, effort); effort is the share of the trees that are grown.
    suffix
        File format it may be served in; None where that would be a pickle.
    """

    name: str
    fit: Fit
    suffix: str | None = None


@dataclass(frozen=True, eq=False)
class _Sklearn:
    """A scikit-learn pipeline; its score is the decision function where there is one, else the probability."""

    model: Any

    def score(self, matrix: F32) -> F64:
        if hasattr(self.model, "decision_function"):
            return np.asarray(self.model.decision_function(matrix), np.float64)
        return np.asarray(self.model.predict_proba(matrix)[:, 1], np.float64)


def _trees(most: int, effort: float) -> int:
    return max(round(most * effort), 1)


def _mean_one(rows: RankerRows) -> npt.NDArray[np.float32]:
    """Weights with mean 1, so that the penalty on leaves means something beside them; CatBoost does that by itself.

    On the selection window of Online Retail, AP of LightGBM rose from .055 to .128, of XGBoost from .056 to .125.
    """
    return np.asarray(rows.weight / rows.weight.mean(), np.float32)


def _catboost(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    from catboost import CatBoost, Pool

    model = CatBoost(
        {
            "loss_function": "Logloss",
            "iterations": _trees(250, effort),
            "learning_rate": 0.08,
            "depth": 6,
            "l2_leaf_reg": 5.0,
            "leaf_estimation_iterations": 1,  # as in rankers/catboost_ranker.py
            "random_seed": seed,
            "thread_count": threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
        }
    )
    model.fit(Pool(rows.matrix, rows.label, weight=rows.weight, feature_names=list(names)))
    return CatBoostRanker(model, UNCALIBRATED, Pool)


def _lightgbm(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    import lightgbm

    params = {
        "objective": "binary",
        "learning_rate": 0.08,
        "num_leaves": 31,
        "min_data_in_leaf": 50,
        "min_sum_hessian_in_leaf": 1e-3,
        "lambda_l2": 5.0,
        "feature_fraction": 0.7,
        "seed": seed,
        "num_threads": threads,
        "deterministic": True,
        "force_col_wise": True,  # else it times both ways and takes the faster: results would depend on the machine
        "verbosity": -1,
    }
    data = lightgbm.Dataset(rows.matrix, rows.label, weight=_mean_one(rows), feature_name=list(names))
    return LightGBMRanker(lightgbm.train(params, data, num_boost_round=_trees(120, effort)), UNCALIBRATED)


def _xgboost(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    import xgboost

    params = {
        "objective": "binary:logistic",
        "eta": 0.1,
        "max_depth": 6,
        "min_child_weight": 1e-3,
        "lambda": 5.0,
        "colsample_bytree": 0.7,
        "tree_method": "hist",
        "seed": seed,
        "nthread": threads,
        "verbosity": 0,
    }
    data = xgboost.QuantileDMatrix(
        rows.matrix, rows.label, weight=_mean_one(rows), feature_names=list(names), nthread=threads
    )
    model = xgboost.train(params, data, num_boost_round=_trees(120, effort))
    model.set_param({"nthread": 1})  # from here on it scores requests
    return XGBoostRanker(model, UNCALIBRATED, xgboost.DMatrix)


def _gradient_boosting(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    from sklearn.ensemble import GradientBoostingClassifier

    # It searches every split of every column: a sample of rows and columns per tree keeps it within the budget.
    model = GradientBoostingClassifier(
        n_estimators=_trees(120, effort),
        learning_rate=0.1,
        max_depth=4,
        subsample=0.3,
        max_features="sqrt",
        random_state=seed,
    )
    # Its leaves know no regularisation: at one positive in a thousand, their first steps would be a thousand wide.
    return _filled(rows, model, _balanced(rows))


def _random_forest(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    from sklearn.ensemble import RandomForestClassifier

    # It draws rows by weight. As many draws as rows must not all be negatives: see _balanced.
    model = RandomForestClassifier(
        n_estimators=_trees(100, effort),
        min_samples_leaf=5,
        max_samples=len(rows) // 2,
        n_jobs=threads,
        random_state=seed,
    )
    fitted = _filled(rows, model, _balanced(rows))
    model.n_jobs = 1  # threads add up the trees in any order, which changes the last digits
    return fitted


def _logistic_regression(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    from sklearn.linear_model import LogisticRegression

    return _linear(rows, LogisticRegression(C=1.0, max_iter=200), rows.weight)


def _svm(rows: RankerRows, names: tuple[str, ...], seed: int, threads: int, effort: float) -> Scorer:
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    # The hinge knows no probabilities: at one positive in a thousand its best answer is "no" to everything.
    kernel = Nystroem(gamma=0.01, n_components=150, random_state=seed)
    svm = LinearSVC(C=1.0, dual=False, max_iter=300, tol=1e-3, random_state=seed)
    return _linear(rows, make_pipeline(kernel, svm), _balanced(rows), "linearsvc__")


def _balanced(rows: RankerRows) -> npt.NDArray[np.float32]:
    """Weights by which both classes count the same; the calibration brings the population back."""
    positive = rows.label > 0
    share = rows.weight / np.where(positive, rows.weight[positive].sum(), rows.weight[~positive].sum())
    return np.asarray(share * (len(rows) / 2.0), np.float32)


def _filled(rows: RankerRows, model: Any, weight: npt.NDArray[np.float32]) -> Scorer:
    """Fit trees of scikit-learn; -1 says "unknown", as no feature is negative (their own way with NaN takes long)."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline(
        [("fill", SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True)), ("model", model)]
    )
    pipeline.fit(rows.matrix, rows.label, model__sample_weight=weight)
    return _Sklearn(pipeline)


def _linear(rows: RankerRows, model: Any, weight: npt.NDArray[np.float32], step: str = "") -> Scorer:
    """Fit a model that needs scaled columns: log(1 + x), unknown as the median with a flag, unit variance."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from threadpoolctl import threadpool_limits

    pipeline = Pipeline(
        [
            ("damp", FunctionTransformer(np.log1p)),  # counts and times span orders of magnitude; none is negative
            ("fill", SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)),
            ("scale", StandardScaler()),
            ("model", model),
        ]
    )
    with threadpool_limits(1, "blas"):  # sums in one order: results repeat
        pipeline.fit(rows.matrix, rows.label, **{f"model__{step}sample_weight": weight})
    return _Sklearn(pipeline)


#: All seven; those with a suffix may be served.
CLASSIFIERS = (
    Classifier("CatBoost", _catboost, ".cbm"),
    Classifier("LightGBM", _lightgbm, ".txt"),
    Classifier("XGBoost", _xgboost, ".json"),
    Classifier("GradientBoosting", _gradient_boosting),
    Classifier("RandomForest", _random_forest),
    Classifier("LogisticRegression", _logistic_regression),
    Classifier("SVM", _svm),
)
