"""Metrics that the event loop alone writes read as the client library's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from serving.loop_metrics import LabelledSums, LabelledTimes

disable_created_metrics()
BOUNDS = (0.001, 0.0025, 1.0)
LABELS = st.sampled_from(["a", 'b"\n', "c"])


@given(st.lists(st.lists(st.tuples(LABELS, st.integers(0, 400)))))
def test_sums(added: list[list[tuple[str, int]]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    sums, counter = LabelledSums("larder_n", "What", "kind"), Counter("larder_n", "What", ("kind",), registry=theirs)
    ours.register(sums)
    for counts in added:
        sums.add(counts)
        for value, count in counts:
            counter.labels(value).inc(count)
    assert generate_latest(ours) == generate_latest(theirs)


@pytest.mark.parametrize("bounds", [BOUNDS, (0.0, 5.0)])
@given(st.lists(st.tuples(LABELS, st.sampled_from([*BOUNDS, 0.0]) | st.floats(-10, 10))))
def test_observations(bounds: tuple[float, ...], observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    times = LabelledTimes("larder_s", "What", "kind", bounds)
    histogram = Histogram("larder_s", "What", ("kind",), buckets=bounds, registry=theirs)
    ours.register(times)
    for value, amount in observed:
        times.labels(value).observe(amount)
        histogram.labels(value).observe(amount)
    assert generate_latest(ours) == generate_latest(theirs)
