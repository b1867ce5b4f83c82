"""Latencies counted in buckets that grow by a tenth: quantiles within 5 % from a short list of numbers. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_GROWTH: Final = math.log(1.1)
#: 1.1^145 ms is longer than a quarter of an hour.
BUCKETS: Final = 146


def bucket_of(ms: float) -> int:
    """Return the bucket of a latency; what is no number counts as the longest."""
    if not ms < 1e6:
        return BUCKETS - 1
    return min(int(math.log(max(ms, 1.0)) / _GROWTH), BUCKETS - 1)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return a quantile in ms, None where nothing was counted.

    Examples
    --------
    >>> counts = [0] * BUCKETS
    >>> for ms in range(1, 101):
    ...     counts[bucket_of(ms)] += 1
    >>> 90 < quantile(counts, 0.95) < 100
    True
    """
    total = sum(counts)
    if not total:
        return None
    wanted, seen = math.ceil(share * total), 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return math.exp((bucket + 0.5) * _GROWTH)
    return None
