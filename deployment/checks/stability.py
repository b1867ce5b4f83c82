"""Stability: other users, noise on the features, missing features, other times, and floors for every segment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deployment.checks.contract import GateContext
from deployment.measure import CANDIDATE, QUARTERS, Measured
from deployment.verdict import Check, Result, compare
from training.metrics import F64, bootstrap_mean

HALVES = 20


class Halves:
    """AUC on random halves of the users: a figure that hangs on a few of them is none."""

    name = "halves"

    def run(self, context: GateContext) -> list[Check]:
        """Judge the worst half."""
        values, rng = context.measured.auc, np.random.default_rng([context.settings.seed, 7])
        worst = min(
            (float(rng.permutation(values)[: (len(values) + 1) // 2].mean()) for _ in range(HALVES)),
            default=float("nan"),
        )
        return [
            compare(
                "auc_of_worst_half",
                worst,
                ">",
                context.thresholds.auc - context.thresholds.halves_drop,
                "",
                f"Lowest AUC of {HALVES} random halves of the users.",
            )
        ]


class FeatureNoise:
    """AUC under a little noise on every feature: counts are late by seconds, times are never exact."""

    name = "noise"

    def run(self, context: GateContext) -> list[Check]:
        """Judge the mean loss, on the same rows."""
        share, rng = context.thresholds.noise, np.random.default_rng([context.settings.seed, 8])
        matrix = context.measured.rows.matrix
        noisy = matrix * (1.0 + share * rng.standard_normal(matrix.shape, np.float32))
        return [
            _loss(
                "auc_under_noise",
                context,
                noisy,
                context.thresholds.noise_drop,
                f"AUC lost when every feature is off by {share:.0%} (standard deviation). A model that breaks on that "
                "has learned exact values, often a feature that gives the label away.",
            )
        ]


class MissingFeatures:
    """AUC with values missing at random: rows expire, views are added, Redis loses a shard."""

    name = "missing features"

    def run(self, context: GateContext) -> list[Check]:
        """Judge the mean loss, on the same rows."""
        share, rng = context.thresholds.missing, np.random.default_rng([context.settings.seed, 9])
        matrix = context.measured.rows.matrix.copy()
        matrix[rng.random(matrix.shape, np.float32) < share] = np.nan
        return [
            _loss(
                "auc_with_missing",
                context,
                matrix,
                context.thresholds.missing_drop,
                f"AUC lost when {share:.0%} of all values are null. A model that breaks on that hangs on one feature.",
            )
        ]


class TimeSlices:
    """AUC in every quarter of the window: a model must not be good on its first day only."""

    name = "time slices"

    def run(self, context: GateContext) -> list[Check]:
        """Judge the worst quarter that has enough users."""
        measured, few = context.measured, context.thresholds.segment_users
        quarter = measured.quarter[measured.warm]
        values = {q: measured.auc[quarter == q] for q in range(QUARTERS) if (quarter == q).sum() >= few}
        if not values:
            return []
        worst = min(values, key=lambda q: float(values[q].mean()))
        mean, low, high = bootstrap_mean(values[worst], seed=context.settings.seed)
        floor = context.thresholds.auc - context.thresholds.slice_drop
        return [
            Check(
                "auc_of_worst_quarter",
                _floor(mean, high, floor),
                mean,
                ">",
                floor,
                "",
                f"AUC of the {len(values[worst])} users whose first take lies in quarter {worst + 1} of the window, "
                f"the worst of those with {few} users and more.",
                low,
                high,
            )
        ]


class Segments:
    """nDCG@10 against popularity for strangers, for those little is known of, and for regulars."""

    name = "segments"

    def run(self, context: GateContext) -> list[Check]:
        """Judge every segment that has enough users."""
        measured, demanded = context.measured, context.thresholds
        gains = measured.ndcg[CANDIDATE] - measured.ndcg["popularity_7d"]
        return [
            _segment(name, gains[who], demanded.segment_margin, context.settings.seed)
            for name, who in segments(measured).items()
            if who.sum() >= demanded.segment_users
        ]


def segments(measured: Measured) -> dict[str, npt.NDArray[np.bool_]]:
    """Users nobody knew, and known ones by how much was known."""
    known = measured.events[measured.warm]
    median = float(np.median(known)) if len(known) else 0.0
    return {
        "cold": ~measured.warm,
        "light": measured.warm & (measured.events <= median),
        "heavy": measured.warm & (measured.events > median),
    }


def _segment(name: str, gains: F64, margin: float, seed: int) -> Check:
    mean, low, high = bootstrap_mean(gains, seed=seed)
    who = {"cold": "nothing is known of", "light": "little is known of", "heavy": "much is known of"}[name]
    return Check(
        f"ndcg_of_{name}_users",
        _floor(mean, high, -margin),
        mean,
        ">",
        -margin,
        "nDCG@10",
        f"Gain over 7-day popularity for the {len(gains)} users {who}: nobody may be served worse than by a list that "
        "is the same for all.",
        low,
        high,
    )


def _floor(mean: float, high: float, floor: float) -> Result:
    """Judge by the mean; below the floor, one whose interval reaches it is not shown to be bad."""
    return "pass" if mean > floor else ("inconclusive" if high > floor else "fail")


def _loss(name: str, context: GateContext, matrix: npt.NDArray[np.float32], limit: float, explanation: str) -> Check:
    measured = context.measured
    scores = context.bundle.recommender.ranker.score(matrix)
    mean, low, high = bootstrap_mean(measured.auc - measured.rows.auc(scores), seed=context.settings.seed)
    result: Result = "pass" if mean < limit else ("inconclusive" if low < limit else "fail")
    return Check(name, result, mean, "<", limit, "AUC", explanation, low, high)
