"""Latency of whole recommendations with real feature reads, candidate and champion in turn."""

from __future__ import annotations

import time

import numpy as np

from deployment.checks.contract import GateContext
from deployment.live import Live
from deployment.verdict import Check, Result, holds
from serving.cascade.recommender import Recommender
from training.metrics import F64

WARM_UP = 20
K = 20


class Latency:
    """p50, p95 and p99 of requests one after the other, in this process, without HTTP.

    Each request goes to both models, in turn first and second, so that a busy machine slows both alike. Where the
    champion misses a limit, too, the machine is at fault or the limit is: inconclusive.
    """

    name = "latency"

    def run(self, context: GateContext) -> list[Check]:
        """Time the requests and compare the percentiles."""
        demanded = context.thresholds
        models = [context.bundle.recommender] + ([context.champion.recommender] if context.champion else [])
        spent = timings(models, context.live, context.now_us, demanded.latency_requests)
        limits = {0.5: demanded.latency_p50_ms, 0.95: demanded.latency_p95_ms, 0.99: demanded.latency_p99_ms}
        return [_judge(q, limit, spent) for q, limit in limits.items()]


def timings(models: list[Recommender], live: Live, now_us: int, requests: int) -> list[F64]:
    """Milliseconds of each request by each model."""
    for model in models:
        for user_id in live.users[:WARM_UP]:
            model.recommend(live.reader, live.table, user_id, now_us, k=K)
    spent: list[list[float]] = [[] for _ in models]
    for i in range(requests):
        turn = list(range(len(models)))
        for which in turn if i % 2 else reversed(turn):
            start = time.perf_counter()
            models[which].recommend(live.reader, live.table, live.users[i % len(live.users)], now_us, k=K)
            spent[which].append((time.perf_counter() - start) * 1e3)
    return [np.array(one) for one in spent]


def quantile_interval(values: F64, q: float) -> tuple[float, float]:
    """95 % interval of a quantile from order statistics (normal approximation of the binomial)."""
    n, spread = len(values), 1.96 * np.sqrt(len(values) * q * (1 - q))
    ordered = np.sort(values)
    low, high = (int(np.clip(round(n * q + sign * spread), 0, n - 1)) for sign in (-1, 1))
    return float(ordered[low]), float(ordered[high])


def _judge(q: float, limit: float, spent: list[F64]) -> Check:
    value = float(np.quantile(spent[0], q))
    text = f"{q:.0%} of {len(spent[0])} recommendations with features read from Redis were faster."
    result: Result = "pass" if holds(value, "<", limit) else "fail"
    if len(spent) > 1:
        champion = float(np.quantile(spent[1], q))
        text += f" The champion, asked in turn: {champion:.1f} ms."
        if result == "fail" and not holds(champion, "<", limit):
            result = "inconclusive"
            text += " It misses the limit, too: judge again on a machine with nothing else to do."
    return Check(f"latency_p{q * 100:.0f}", result, value, "<", limit, "ms", text, *quantile_interval(spent[0], q))
