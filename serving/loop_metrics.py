"""Counters and histograms of the hot path, written by the event loop alone: no lock, and one call for many numbers.

The client library's own take a lock and three calls for each number; a request has some forty of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class LabelledSums(Collector):
    """A counter with one label, of a closed set.

    Parameters
    ----------
    name, text, label
        As of `prometheus_client.Counter`.
    """

    def __init__(self, name: str, text: str, label: str) -> None:
        self._name, self._text, self._label = name, text, label
        self._sums: dict[str, int] = {}

    def add(self, counts: Iterable[tuple[str, int]]) -> None:
        """Add to several values of the label."""
        sums = self._sums
        for value, count in counts:
            sums[value] = sums.get(value, 0) + count

    def collect(self) -> Iterator[Metric]:
        """Give the sums to Prometheus."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in list(self._sums.items()):
            family.add_metric([value], count)
        yield family


class Observed:
    """Observations of one value of a histogram's label."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts, self._total = [0] * (len(bounds) + 1), 0.0

    def observe(self, amount: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._total += amount

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return how many were at most each bound, and the sum of all."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True)), self._total


class LabelledTimes(Collector):
    """A histogram with one label, of a closed set.

    Parameters
    ----------
    name, text, label, buckets
        As of `prometheus_client.Histogram`; the least bound is 0 or more.
    """

    def __init__(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> None:
        self._name, self._text, self._label, self._bounds = name, text, label, buckets
        self._known: dict[str, Observed] = {}

    def labels(self, value: str) -> Observed:
        """Return the series of a value."""
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = Observed(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        """Give the observations to Prometheus."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, observed in list(self._known.items()):
            buckets, total = observed.buckets()
            family.add_metric([value], buckets, total)
        yield family
