"""Fits the CatBoost ranker: early stopping on the latest rolling window, calibration there, then a refit on all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.cascade.ranker import Calibration, CatBoostRanker
from training.candidate_rows import RankerRows, stack_rows

Loss = Literal["YetiRank", "Logloss"]


@dataclass(frozen=True, slots=True)
class RankerParams:
    """Settings of the ranker; the defaults were tuned on windows before the test.

    Attributes
    ----------
    weight_power
        Rows count with their inverse sampling rate to this power. At 0 the model does not know that easy negatives
        were drawn thinly; at 1 a few heavy rows rule. On the two windows before the test of Online Retail, 0.5 and 1
        gave nDCG@10 of .369 / .313 and .359 / .309.
    """

    loss: Loss = "Logloss"
    iterations: int = 500
    learning_rate: float = 0.08
    depth: int = 6
    l2: float = 5.0
    weight_power: float = 0.5
    early_stopping: int = 40


@dataclass(frozen=True)
class FittedRanker:
    """A ranker with what is worth logging about its fit."""

    ranker: CatBoostRanker
    best_iteration: int
    importance: dict[str, float]


def fit_ranker(
    windows: list[RankerRows], features: tuple[str, ...], params: RankerParams, *, seed: int, threads: int
) -> FittedRanker:
    """Fit on rolling windows, oldest first.

    With more than one window the latest decides how many trees are grown and calibrates the scores; then all windows
    train the final model with that many trees. With one window its last fifth of slates takes that part.
    """
    train, held = (windows[:-1], windows[-1]) if len(windows) > 1 else _tail(windows[0])
    scout = _fit(stack_rows(train), held, features, params, params.iterations, seed=seed, threads=threads)
    trees = max(int(scout.tree_count_), 1)
    calibration = fit_calibration(scout.predict(held.matrix, prediction_type="RawFormulaVal"), held)
    final = _fit(stack_rows(windows), None, features, params, trees, seed=seed, threads=threads)
    importance = final.get_feature_importance()  # by change of prediction: needs no data
    return FittedRanker(
        CatBoostRanker(final, calibration),
        trees,
        dict(sorted(zip(features, map(float, importance), strict=True), key=lambda pair: -pair[1])),
    )


def fit_calibration(scores: npt.NDArray[np.float64], rows: RankerRows) -> Calibration:
    """Isotonic regression of labels on scores (Zadrozny and Elkan 2002), kept as its knots.

    Rows count with their weights, so that a probability is that of the full catalogue, not of the sample.
    """
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
        scores, rows.label, sample_weight=rows.weight
    )
    return Calibration(np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64))


def _tail(rows: RankerRows) -> tuple[list[RankerRows], RankerRows]:
    """Split one window by slates: the last fifth is held out."""
    cut = int(rows.group[-1] * 0.8)
    head, tail = rows.group <= cut, rows.group > cut
    return [_take(rows, head)], _take(rows, tail)


def _take(rows: RankerRows, keep: npt.NDArray[np.bool_]) -> RankerRows:
    """Rows of some whole slates, groups numbered from 0."""
    group = rows.group[keep]
    return RankerRows(rows.matrix[keep], rows.label[keep], rows.weight[keep], group - group[0])


def _pool(rows: RankerRows, features: tuple[str, ...], params: RankerParams) -> Any:
    from catboost import Pool

    if params.loss == "YetiRank":  # compares rows of one slate; sampling rates mean nothing to it
        return Pool(rows.matrix, rows.label, group_id=rows.group, feature_names=list(features))
    return Pool(rows.matrix, rows.label, weight=rows.weight**params.weight_power, feature_names=list(features))


def _fit(
    rows: RankerRows,
    held: RankerRows | None,
    features: tuple[str, ...],
    params: RankerParams,
    trees: int,
    *,
    seed: int,
    threads: int,
) -> Any:
    from catboost import CatBoost

    model = CatBoost(
        {
            "loss_function": params.loss,
            "eval_metric": "NDCG:top=10" if params.loss == "YetiRank" else "Logloss",
            "iterations": trees,
            "learning_rate": params.learning_rate,
            "depth": params.depth,
            "l2_leaf_reg": params.l2,
            # The default of 10 Newton steps per leaf for log loss costs twice the time and overfits the leaves.
            "leaf_estimation_iterations": 1,
            "random_seed": seed,
            "thread_count": threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
        }
    )
    watch = (
        {"eval_set": _pool(held, features, params), "early_stopping_rounds": params.early_stopping}
        if held is not None
        else {}
    )
    model.fit(_pool(rows, features, params), **watch)
    return model
