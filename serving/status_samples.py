"""What an API process did in each of the newest intervals, and the sum of several processes. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

EVERY_S: Final = 2


class Sample(msgspec.Struct, frozen=True):
    """One interval of `EVERY_S` seconds; of several processes, their sum.

    Attributes
    ----------
    at
        End of the interval, seconds since the epoch, a multiple of `EVERY_S`.
    statuses, levels, arms
        Lists answered in the interval, by class of status ("2xx"), rung of the ladder, and arm.
    buckets
        Of the time to make a list, in seconds: upper bound (as text; "+Inf" is the last) to lists within it and the
        bound before.
    events
        Events accepted in the interval.
    folded
        Events a second ingest folded; None if it has not said so lately.
    feature_age_s, ingest_lag_s
        As they stood; None if unknown.
    breakers
        Of those for reads and writes, whether they were open.
    """

    at: int
    statuses: dict[str, float]
    levels: dict[str, float]
    arms: dict[str, float]
    buckets: dict[str, float]
    events: float
    folded: float | None
    feature_age_s: float | None
    ingest_lag_s: float | None
    breakers: tuple[bool, bool]

    @property
    def lists(self) -> float:
        """Lists asked for, refused ones included."""
        return sum(self.statuses.values())


def merged(histories: Iterable[bytes]) -> list[Sample]:
    """Add up the samples of several processes, oldest first.

    The newest interval is left out where not every process has sampled it yet.
    """
    decoded = [msgspec.json.decode(text, type=list[Sample]) for text in histories]
    by_time: dict[int, list[Sample]] = {}
    for sample in (one for history in decoded for one in history):
        by_time.setdefault(sample.at, []).append(sample)
    complete = [at for at in sorted(by_time) if len(by_time[at]) >= len(decoded)]
    return [_sum(by_time[at]) for at in sorted(by_time) if complete and at <= complete[-1]]


def _sum(samples: list[Sample]) -> Sample:
    return Sample(
        at=samples[0].at,
        statuses=total(sample.statuses for sample in samples),
        levels=total(sample.levels for sample in samples),
        arms=total(sample.arms for sample in samples),
        buckets=total(sample.buckets for sample in samples),
        events=sum(sample.events for sample in samples),
        folded=_largest(sample.folded for sample in samples),
        feature_age_s=_largest(sample.feature_age_s for sample in samples),
        ingest_lag_s=_largest(sample.ingest_lag_s for sample in samples),
        breakers=(any(sample.breakers[0] for sample in samples), any(sample.breakers[1] for sample in samples)),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def quantile(buckets: dict[str, float], share: float) -> float | None:
    """Return a quantile of a histogram in seconds, as Prometheus' `histogram_quantile` does; None without counts.

    Parameters
    ----------
    buckets
        Upper bound to what lies between it and the bound before.

    Examples
    --------
    >>> quantile({"0.01": 10.0, "0.02": 10.0}, 0.75)
    0.015
    >>> quantile({"1.0": 1.0, "+Inf": 9.0}, 0.95)
    1.0
    >>> quantile({}, 0.5) is None
    True
    """
    total, reached, lower = sum(buckets.values()), 0.0, 0.0
    for bound in sorted(buckets, key=float):
        upper, count = float(bound), buckets[bound]
        if reached + count >= share * total > 0:
            return lower if math.isinf(upper) else lower + (upper - lower) * (share * total - reached) / count
        reached, lower = reached + count, upper
    return None


def total(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the sums by name."""
    sums: dict[str, float] = {}
    for one in counts:
        for name, value in one.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
