"""Metrics of the API for Prometheus. Labels come from closed sets: a label per user or item would cost gigabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serving.answers import REASONS
from serving.assignment import ARMS
from serving.impressions import FAILURES
from serving.loop_metrics import LabelledSums, LabelledTimes
from serving.missing_features import MissingFeatures
from serving.plan import Arm

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()  # type: ignore[no-untyped-call] # a second series per counter, which nothing asks for

_LATENCY_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
_STAGE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1)
#: Of events and catalogue entries.
_STATUSES = ("accepted", "duplicate", "rejected")
_SHARES = tuple(round(0.1 * n, 1) for n in range(11))
#: Parts of a recommendation request.
STAGES = ("user_read", "retrieve", "pair_read", "rank", "explain", "encode")
#: Of the first item's score: rankers of ours give probabilities, those of others any number.
_SCORES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


class Children:
    """The series of a counter by their labels, kept: finding one by its labels takes longer than counting."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._known: dict[tuple[str, ...], Counter] = {}

    def of(self, *labels: str) -> Counter:
        """Return the series of these labels, of closed sets, in the order of the counter's."""
        found = self._known.get(labels)
        if found is None:
            found = self._known[labels] = self._counter.labels(*labels)
        return found


class Metrics:
    """All metrics of one app, in a registry of their own: two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Answers", "route", "status", "level", "arm")
        self.requests_of = Children(self.requests)
        self.request_seconds = self._times("request_seconds", "Time to answer", _LATENCY_S, "route")
        stage_seconds = self._times("stage_seconds", "Parts of a recommendation request", _STAGE_S, "stage")
        self.stage = {name: stage_seconds.labels(name) for name in STAGES}
        self.shed = self._counter("shed", "Requests refused because there was too much to do", "kind")
        self.served_items = self._sums("served_items", "Items served by the candidate generator", "source")
        self.candidates = self._sums("candidates", "Candidates by the generator that ranked them highest", "source")
        self.explored_places = self._counter(
            "explored_places", "Places of lists drawn by chance, by policy and outcome", "kind", "pool", "drawn"
        )
        self.reasons = self._counter("reasons", "Lists that are not what they could be at best, by why", "reason")
        top_score = self._times("top_score", "Score of a list's first item", _SCORES, "arm")
        self.top_score = {name: top_score.labels(name) for name in ARMS}
        self.missing = MissingFeatures()
        self.registry.register(self.missing)
        self.events = self._counter("events", "Events by what became of them", "status")
        self.items = self._counter("items", "Catalogue entries by what became of them", "status")
        self.refused = self._counter("refused", "Events and entries that were refused, by reason", "reason")
        self.quarantine_lost = self._counter("quarantine_lost", "Refused rows that could not be kept in quarantine")
        self.redis_failures = self._counter("redis_failures", "Reads and writes Redis did not answer", "operation")
        self.model_failures = self._counter("model_failures", "Requests on which the model failed")
        self.bundle_load_failures = self._counter("bundle_load_failures", "Bundles that were refused")
        self.plans_refused = self._counter("plans_refused", "Plans that were not obeyed", "reason")
        self.impressions_dropped = self._counter("impressions_dropped", "Records of answers that were lost")
        self.traces = self._counter("traces", "Traces of requests by what became of them", "result")
        self.all_arms_seconds = self._times(
            "arm_seconds", "Time to make a recommendation, by the arm the user belongs to", _LATENCY_S, "arm"
        )
        self.arm_seconds = {name: self.all_arms_seconds.labels(name) for name in ARMS}
        self.canary_failures = self._counter(
            "canary_failures", "Canary requests the stable model answered, by what the candidate did", "kind"
        )
        self.child_restarts = self._counter("child_restarts", "Candidates' processes that ended, by how", "reason")
        self.shadow = self._counter("shadow", "Requests for a shadow by what became of them", "result")
        self.shadow_overlap = self._histogram(
            "shadow_overlap_ratio", "Share of the served list's items in the shadow's", _SHARES
        )
        self.shadow_seconds = self._histogram("shadow_seconds", "Time a shadow took to answer", _LATENCY_S)
        for counter, values in (
            (self.reasons, REASONS),
            (self.events, _STATUSES),
            (self.items, _STATUSES),
            (self.redis_failures, ("user_read", "pair_read", "append")),
            (self.plans_refused, ("older_epoch", "conflicting_epoch")),
            (self.canary_failures, FAILURES),
            (self.traces, ("exported", "dropped", "failed")),
            (self.child_restarts, ("died", "hung", "refused")),
            (self.shadow, ("compared", "dropped", "error")),
        ):
            for value in values:
                counter.labels(value)  # a series that begins at 1 has no increase that an alert could see
        self._model_info = self._gauge("model_info", "The bundles of the plan", "bundle_id", "model_version", "arm")

    def observe(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge that is asked for when Prometheus is."""
        self._gauge(name, text).set_function(value)

    def observe_each(self, name: str, text: str, label: str, values: Mapping[str, Callable[[], float]]) -> None:
        """Register a gauge for each value of a label; they are asked for when Prometheus is."""
        gauge = self._gauge(name, text, label)
        for key, value in values.items():
            gauge.labels(key).set_function(value)

    def set_models(self, arms: Mapping[str, Arm]) -> None:
        """Name the bundle of each arm; those of the last plan go."""
        self._model_info.clear()
        for name, arm in arms.items():
            self._model_info.labels(arm.bundle_id, arm.model_version, name).set(1)

    def exposition(self, worker: str | None = None) -> bytes:
        """Return all metrics in Prometheus' text format.

        Parameters
        ----------
        worker
            Number of this process among several; each sample gets it as a label.
        """
        return generate_latest(self.registry if worker is None else _OfWorker(self.registry, worker))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"larder_{name}", text, labels, registry=self.registry)

    def _sums(self, name: str, text: str, label: str) -> LabelledSums:
        found = LabelledSums(f"larder_{name}", text, label)
        self.registry.register(found)
        return found

    def _times(self, name: str, text: str, buckets: tuple[float, ...], label: str) -> LabelledTimes:
        found = LabelledTimes(f"larder_{name}", text, label, buckets)
        self.registry.register(found)
        return found

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"larder_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"larder_{name}", text, labels, buckets=buckets, registry=self.registry)


class _OfWorker(Collector):
    """What a registry has, each sample labelled with the process it is of."""

    def __init__(self, registry: CollectorRegistry, worker: str) -> None:
        self._registry = registry
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [s._replace(labels={**s.labels, "worker": self._worker}) for s in family.samples]
            yield family
