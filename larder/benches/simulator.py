"""Speed of the simulator, the event log and the backfill on 1 M events."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.settings import Settings
from larder.progress import progress

EVENTS = 1_000_000


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Make, write and fold 1 M events."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="simulator")
        # The compiled fold is loaded, and compiled the first time, before the clock runs.
        small = replace(own, project="warm")
        write_dataset(load_dataset("simulator", small, n_events=5_000, end=datetime(2026, 1, 1, tzinfo=UTC)), small)
        backfill(small)
        with progress(f"simulate {EVENTS:,} events"):
            start = time.perf_counter()
            made = load_dataset("simulator", own, n_events=EVENTS, end=datetime(2026, 1, 1, tzinfo=UTC))
            figures["simulate_s"] = time.perf_counter() - start
        with progress("write the log"):
            start = time.perf_counter()
            write_dataset(made, own)
            figures["write_s"] = time.perf_counter() - start
        with progress("backfill"):
            start = time.perf_counter()
            backfill(own)
            figures["backfill_s"] = time.perf_counter() - start
    figures["backfill_events_per_s"] = EVENTS / figures["backfill_s"]
    figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures, {"simulate_s": ("<", 20.0), "backfill_s": ("<", 15.0)}
