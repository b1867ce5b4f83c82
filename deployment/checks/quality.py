"""Quality floors: AUC, ranking against simple baselines, and whether shown probabilities are true."""

from __future__ import annotations

import numpy as np

from deployment.checks.contract import GateContext
from deployment.measure import BASELINES, CANDIDATE
from deployment.verdict import Check, Result, holds
from training.metrics import F64, bootstrap_mean, interval, resampled_means

BINS = 10
_WORDS = {
    "own_history": "what each user took before, most often first, then what is popular",
    "popularity_7d": "the most taken items of the last 7 days",
}


class AucFloor:
    """Mean AUC per user under the protocol."""

    name = "AUC"

    def run(self, context: GateContext) -> list[Check]:
        """Compare the mean with its floor."""
        floor = context.thresholds.auc
        mean, low, high = bootstrap_mean(context.measured.auc, seed=context.settings.seed)
        return [
            Check(
                "auc",
                "pass" if holds(mean, ">", floor) else "fail",
                mean,
                ">",
                floor,
                "",
                f"Mean over {len(context.measured.auc)} known users of the chance that what they took is scored above "
                "one of 100 items drawn at random. Below the floor the order of the whole catalogue is not to be "
                "trusted: look at the features' importance and at what the negatives of the training were.",
                low,
                high,
            )
        ]


class OverBaselines:
    """nDCG@10 above each simple baseline, and MAP@10 above the better of them, on the same users."""

    name = "simple baselines"

    def run(self, context: GateContext) -> list[Check]:
        """Ask for intervals of the paired gain that lie above the thresholds."""
        measured, demanded, seed = context.measured, context.thresholds, context.settings.seed
        who = measured.warm if measured.warm.any() else np.ones(len(measured.users), np.bool_)
        checks = [
            gain_check(
                f"ndcg_over_{name}",
                (measured.ndcg[CANDIDATE] - measured.ndcg[name])[who],
                demanded.baseline_gain,
                "nDCG@10",
                f"Paired gain over {_WORDS[name]}, on the same known users. Where it is not above the threshold with "
                "its whole interval, the model is not worth its cost.",
                seed,
            )
            for name in BASELINES
        ]
        precision = measured.average_precision
        best = max(BASELINES, key=lambda name: float(precision[name][who].mean()))
        return [
            *checks,
            gain_check(
                "average_precision",
                (precision[CANDIDATE] - precision[best])[who],
                demanded.average_precision,
                "MAP@10",
                f"Gain in average precision at 10 over the better baseline ({best}), paired; {CANDIDATE} "
                f"{precision[CANDIDATE][who].mean():.4f}.",
                seed,
            ),
        ]


class CalibrationError:
    """Expected calibration error of what is shown (Naeini et al. 2015), over bins of equal size."""

    name = "calibration"

    def run(self, context: GateContext) -> list[Check]:
        """Compare shown probabilities with how often what they were shown for was taken."""
        limit = context.thresholds.calibration_error
        error, low, high = calibration_error(context.measured.shown, context.measured.taken, context.settings.seed)
        result: Result = "pass" if holds(error, "<=", limit) else ("inconclusive" if low <= limit else "fail")
        return [
            Check(
                "calibration_error",
                result,
                error,
                "<=",
                limit,
                "",
                "Mean distance between the probability shown with an item and the share of such items that were taken. "
                "Scores are read as probabilities by applications: calibrate on rows that stand for the whole "
                "catalogue (column `weight`), of a window nothing was trained on.",
                low,
                high,
            )
        ]


def gain_check(name: str, gains: F64, threshold: float, unit: str, explanation: str, seed: int) -> Check:
    """Judge a paired gain by its interval: all above passes, all below fails, else nobody can tell."""
    mean, low, high = bootstrap_mean(gains, seed=seed)
    result: Result = "pass" if low > threshold else ("inconclusive" if high > threshold else "fail")
    return Check(name, result, mean, ">", threshold, unit, explanation, low, high)


def calibration_error(shown: F64, taken: F64, seed: int) -> tuple[float, float, float]:
    """Return the error with a bootstrap interval over users; NaN where nothing was shown.

    Parameters
    ----------
    shown, taken
        Probability and outcome per user and place, shape (n, k); NaN where there is none.

    Examples
    --------
    >>> p = np.tile([0.2, 0.8], (50, 1))
    >>> y = np.array([[1.0, 1.0]] * 10 + [[0.0, 1.0]] * 30 + [[0.0, 0.0]] * 10)
    >>> round(calibration_error(p, y, 1)[0], 6)
    0.0
    """
    some = np.isfinite(shown) & np.isfinite(taken)
    if not some.any():
        return float("nan"), float("nan"), float("nan")
    edges = np.quantile(shown[some], np.linspace(0.0, 1.0, BINS + 1)[1:-1])
    bin_of = np.searchsorted(edges, np.where(some, shown, 0.0), side="left")
    gap = np.where(some, shown - taken, 0.0)
    sums = np.stack([np.where(bin_of == b, gap, 0.0).sum(axis=1) for b in range(BINS)], axis=1)
    means = resampled_means(np.column_stack([sums, some.sum(axis=1)]), seed=seed)
    low, high = interval(np.abs(means[:, :BINS]).sum(axis=1) / means[:, BINS])
    return float(np.abs(sums.sum(axis=0)).sum() / some.sum()), float(low), float(high)
