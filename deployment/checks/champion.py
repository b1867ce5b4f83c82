"""Paired comparison with what serves now, on the same users and rows."""

from __future__ import annotations

import numpy as np

from deployment.checks.contract import GateContext
from deployment.measure import CANDIDATE, CHAMPION
from deployment.verdict import Check, Result
from training.metrics import F64, bootstrap_mean


class NotWorseThanChampion:
    """nDCG@10 and hard-negative AUC not worse than the champion's by more than a margin; superiority is reported.

    Without a champion there is nothing to be worse than: own history and popularity take its part (quality.py).
    """

    name = "champion"

    def run(self, context: GateContext) -> list[Check]:
        """Judge the lower end of the paired interval."""
        if context.champion_problem:
            return [_unknown(context, context.champion_problem)]
        if context.champion is None:
            return []
        measured, demanded, seed = context.measured, context.thresholds, context.settings.seed
        if measured.compared:
            return [_unknown(context, measured.compared)]
        champion = measured.ndcg[CHAMPION]
        gains = measured.ndcg[CANDIDATE] - champion
        low = bootstrap_mean(gains, seed=seed)[1]
        better = "It is better: the whole interval lies above 0." if low > 0 else "It is not shown to be better."
        hard = measured.hard_auc
        return [
            not_worse(
                "ndcg_against_champion",
                gains,
                demanded.ndcg_margin_share * float(champion.mean()),
                "nDCG@10",
                f"Paired difference to version {context.champion_version} on {len(gains)} users neither has learned "
                f"from (champion {champion.mean():.4f}). {better} A margin of {demanded.ndcg_margin_share:.0%} of "
                "the champion's is allowed.",
                seed,
            ),
            not_worse(
                "hard_auc_against_champion",
                hard[CANDIDATE] - hard[CHAMPION],
                demanded.hard_auc_margin,
                "AUC",
                "Paired difference in AUC among the candidates alone, where random items would be too easy: both rank "
                f"the same items of {len(hard[CANDIDATE])} users.",
                seed,
            ),
        ]


def not_worse(name: str, gains: F64, margin: float, unit: str, explanation: str, seed: int) -> Check:
    """Judge non-inferiority: all of the interval above -margin passes, all below fails, else nobody can tell."""
    mean, low, high = bootstrap_mean(gains, seed=seed)
    result: Result = "pass" if low >= -margin else ("fail" if high < -margin else "inconclusive")
    if np.isnan(mean):
        result = "inconclusive"
    return Check(name, result, mean, ">=", -margin, unit, explanation, low, high)


def _unknown(context: GateContext, why: str) -> Check:
    return Check(
        "ndcg_against_champion",
        "inconclusive",
        float("nan"),
        ">=",
        0.0,
        "nDCG@10",
        f"Version {context.champion_version} serves, but there is no fair comparison with it: {why}. Train on newer "
        "events, or move the champion first.",
    )
