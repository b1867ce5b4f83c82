"""Metrics of trainings: a run is no server, so it leaves a file that whoever watches models shows to Prometheus.

The file has Prometheus' text format, as the node exporter's textfile collector reads it too.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, write_to_textfile
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from feature_repo.settings import Settings

Result = Literal["succeeded", "failed"]
#: Figures of the newest bundle that are shown; nDCG and recall are of warm users.
FIGURES: Final = ("ndcg_at_10", "recall_at_20", "auc", "candidate_recall")


def metrics_path(settings: Settings) -> Path:
    """Where the project's file is."""
    return settings.root / "metrics" / "training.prom"


@contextmanager
def recorded_run(settings: Settings) -> Iterator[dict[str, float]]:
    """Record a training, however it ends.

    Yields
    ------
    dict
        For the figures of the bundle, by name of `FIGURES`.
    """
    began, figures = time.monotonic(), dict[str, float]()
    try:
        yield figures
    except BaseException:
        write_run(settings, "failed", time.monotonic() - began)
        raise
    write_run(settings, "succeeded", time.monotonic() - began, figures)


def write_run(settings: Settings, result: Result, seconds: float, figures: Mapping[str, float] | None = None) -> None:
    """Add a training to the counts, and replace what is known of the newest one.

    Parameters
    ----------
    seconds
        How long it took.
    figures
        By name of `FIGURES`; None where there are none: those of the last success stay.
    """
    path = metrics_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _samples(path)
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series per counter, which nothing asks for
        registry = CollectorRegistry()
        runs = Counter("larder_training_runs", "Trainings by how they ended", ["result"], registry=registry)
        for word in get_args(Result):
            runs.labels(word).inc(before.get(("larder_training_runs_total", word), 0.0) + (word == result))
        took = Gauge("larder_training_duration_seconds", "How long the newest took", registry=registry)
        took.set(seconds)
        ended = Gauge("larder_training_end_timestamp_seconds", "When the newest ended", ["result"], registry=registry)
        quality = Gauge("larder_training_quality", "Figures of the newest bundle", ["figure"], registry=registry)
        for word in get_args(Result):
            at = time.time() if word == result else before.get(("larder_training_end_timestamp_seconds", word), 0.0)
            ended.labels(word).set(at)
        for name in FIGURES:
            value = before.get(("larder_training_quality", name)) if figures is None else figures[name]
            if value is not None:
                quality.labels(name).set(value)
        write_to_textfile(str(path), registry)


class LastTrainings(Collector):
    """Shows the project's file among the metrics of a process that runs."""

    def __init__(self, settings: Settings) -> None:
        self._path = metrics_path(settings)

    def describe(self) -> Iterator[Metric]:
        """Promise nothing: the file may be written later."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Give what the file has; nothing before the first training."""
        yield from text_string_to_metric_families(_text(self._path))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


def _samples(path: Path) -> dict[tuple[str, str], float]:
    """Return values by name and the one label."""
    families = text_string_to_metric_families(_text(path))
    return {(s.name, next(iter(s.labels.values()), "")): s.value for family in families for s in family.samples}
