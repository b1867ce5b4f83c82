"""The gate's checks, first version: quality, latency with real feature reads, outputs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from deployment.verdict import Check, compare
from feature_repo.rows import FeatureReader
from serving.bundle import Bundle
from serving.cascade.items import ItemTable
from training.evaluate import Evaluation
from training.metrics import bootstrap_mean

MIN_AUC = 0.85
MAX_P95_MS = 50.0
LATENCY_REQUESTS = 300


@dataclass(frozen=True, slots=True)
class Live:
    """The online side as serving sees it: real reads, the live item table, users to ask for."""

    reader: FeatureReader
    table: ItemTable
    users: tuple[str, ...]


def check_quality(evaluation: Evaluation) -> list[Check]:
    """AUC above its floor, and nDCG above 7-day popularity on the same users, both under the protocol."""
    mean, low, high = bootstrap_mean(evaluation.auc, seed=evaluation.seed)
    gain, gain_low, gain_high = evaluation.paired("popularity_7d")
    return [
        Check(
            "auc",
            "pass" if mean > MIN_AUC else "fail",
            mean,
            ">",
            MIN_AUC,
            "",
            "Mean AUC per user of what was taken against 100 items drawn at random. Below the floor the ranking of the "
            "whole catalogue is not to be trusted.",
            low,
            high,
        ),
        Check(
            "ndcg_over_popularity",
            "pass" if gain_low > 0 else ("inconclusive" if gain_high > 0 else "fail"),
            gain,
            ">",
            0.0,
            "nDCG@10",
            "Paired gain over the most bought items of the last 7 days; the whole interval must lie above 0. Otherwise "
            "the model is not worth its cost.",
            gain_low,
            gain_high,
        ),
    ]


def check_latency(bundle: Bundle, live: Live, now_us: int) -> Check:
    """p95 of whole recommendations with real feature reads, one after the other, in this process."""
    recommender = bundle.recommender
    for user_id in live.users[:20]:
        recommender.recommend(live.reader, live.table, user_id, now_us, k=20)
    spent = []
    for i in range(LATENCY_REQUESTS):
        start = time.perf_counter()
        recommender.recommend(live.reader, live.table, live.users[i % len(live.users)], now_us, k=20)
        spent.append((time.perf_counter() - start) * 1e3)
    return compare(
        "latency_p95",
        float(np.quantile(spent, 0.95)),
        "<",
        MAX_P95_MS,
        "ms",
        f"95th percentile of {LATENCY_REQUESTS} recommendations with features read from Redis, without HTTP.",
    )


def check_outputs(bundle: Bundle, live: Live, now_us: int) -> list[Check]:
    """Scores finite and in [0, 1], ranks complete, the same request answered alike twice."""
    asked, bad, different, short = live.users[:100], 0, 0, 0
    for user_id in asked:
        first, again = (bundle.recommender.recommend(live.reader, live.table, user_id, now_us, k=20) for _ in range(2))
        scores = [item.score for item in first.items]
        ids = [item.item_id for item in first.items]
        bad += any(not math.isfinite(s) or not 0.0 <= s <= 1.0 for s in scores)
        different += first.items != again.items
        complete = len(ids) == min(20, int(live.table.available.sum())) and len(set(ids)) == len(ids)
        short += not complete or [item.rank for item in first.items] != list(range(1, len(ids) + 1))
    users = f"of {len(asked)} users"
    return [
        compare("non_finite_outputs", bad, "==", 0, users, "Scores must be finite probabilities."),
        compare("nondeterministic", different, "==", 0, users, "The same request must get the same answer twice."),
        compare("incomplete_lists", short, "==", 0, users, "Lists must be full, without repetition, ranked 1 to k."),
    ]
