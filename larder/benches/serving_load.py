"""Rising open-loop load on one server: percentiles at each rate, and the rate it can carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil

from larder.benches.open_loop import LoadResult, open_loop, schedule

#: A server carries a rate while this share of the answers is faster than the objective.
OBJECTIVE_MS: Final = 50.0
SECONDS: Final = 8.0
_STEP: Final = 1.25
_MOST_RPS: Final = 1_500.0
#: A generator that sends later than that, or takes more of its core, measures itself.
_LATE_MS: Final = 5.0
_BUSY: Final = 0.7


@dataclass(frozen=True)
class Point:
    """One rate.

    Attributes
    ----------
    cpu_ms
        Processor time of the server's processes per request.
    """

    rps: float
    p50: float
    p95: float
    p99: float
    failed: float
    cpu_ms: float
    generator_cpu: float
    late_ms: float

    @property
    def carried(self) -> bool:
        """Whether the objective was met."""
        return self.p95 <= OBJECTIVE_MS and self.failed < 0.001


def measure(port: int, requests: Sequence[bytes], rps: float, pids: Sequence[int], seconds: float = SECONDS) -> Point:
    """Send requests at a rate and say what came of it."""
    rng = np.random.default_rng(int(rps * 1000))
    before = _cpu(pids)
    result = open_loop("127.0.0.1", port, requests, schedule(rps, seconds, rng))
    cpu_ms = (_cpu(pids) - before) * 1e3 / len(result.status)
    p50, p95, p99 = (result.quantile_ms(q) for q in (0.5, 0.95, 0.99))
    return Point(rps, p50, p95, p99, result.failed, cpu_ms, result.generator_cpu, _late(result))


def capacity(port: int, requests: Sequence[bytes], start: float, pids: Sequence[int]) -> tuple[float, list[Point]]:
    """Raise the rate until the objective is missed, then look between; return the last rate carried, and all points.

    The rate below `start` is sought downwards, so that a slow server has a figure, too.
    """
    points: list[Point] = []
    rate, good, bad = start, 0.0, np.inf
    while rate < _MOST_RPS and rate > 0.5 and not (good and np.isfinite(bad)):
        point = measure(port, requests, rate, pids)
        points.append(point)
        if point.carried:
            good, rate = rate, rate * _STEP
        else:
            bad, rate = rate, rate / _STEP
    for _ in range(2):
        if not np.isfinite(bad) or not good:
            break
        point = measure(port, requests, (good + bad) / 2, pids)
        points.append(point)
        good, bad = (point.rps, bad) if point.carried else (good, point.rps)
    return good, sorted(points, key=lambda one: one.rps)


def generator_is_fit(points: Sequence[Point]) -> bool:
    """Whether the generator was in time, and not busy, at every rate that counted as carried."""
    return all(one.late_ms < _LATE_MS and one.generator_cpu < _BUSY for one in points if one.carried)


def family(pid: int) -> list[int]:
    """Return a process and those it started."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def _cpu(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _late(result: LoadResult) -> float:
    return float(np.nanquantile(result.lateness_ms, 0.95))
