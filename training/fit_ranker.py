"""Fits a ranker of any kind: early stopping on the latest rolling window, calibration there, then a refit on all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serving.cascade.ranker import Calibration, TreeRanker
from training.candidate_rows import RankerRows, stack_rows
from training.rankers.contract import RankerParams


@dataclass(frozen=True)
class FittedRanker:
    """A ranker with what is worth logging about its fit."""

    ranker: TreeRanker
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
    scout = params.fit(stack_rows(train), held, features, params.iterations, seed=seed, threads=threads)
    calibration = fit_calibration(scout.ranker.score(held.matrix), held)
    final = params.fit(stack_rows(windows), None, features, scout.trees, seed=seed, threads=threads)
    return FittedRanker(
        replace(final.ranker, calibration=calibration),
        scout.trees,
        dict(sorted(zip(features, map(float, final.importance), strict=True), key=lambda pair: -pair[1])),
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
