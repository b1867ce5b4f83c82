"""Cost of the replay skew check: 10,000 requests of 20 items each against an event log of 1 M events."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.log_chunks import log_files
from feature_repo.services import service_hash
from feature_repo.settings import Settings
from larder.progress import progress
from monitoring.outcomes import MISSING, WRONG, Comparison
from monitoring.served_features import compare_served
from serving.cascade.features import feature_matrix
from serving.impressions import ImpressionRecord, Impressions, Seen, to_record
from training.offline_table import offline_item_table

EVENTS = 1_000_000
REQUESTS = 10_000
_SERVICE = "ranking_v1"
_ITEMS = 20


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Make a log, serve from the offline store as of its end, and compare what was served with the log."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="simulator")
        with progress(f"simulate and fold {EVENTS:,} events"):
            made = load_dataset("simulator", own, n_events=EVENTS, end=datetime(2026, 1, 1, tzinfo=UTC))
            write_dataset(made, own)
            backfill(own)
        records, sizes, spent = _served(own, int(made.last_time.timestamp() * 1e6) + 1_000_000)
        figures["bytes_per_request"] = float(np.mean(sizes))
        figures["encode_us_per_request"] = float(np.median(spent)) * 1e6
        found = Comparison("served", "served against the event log", "served", "from the log")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        with progress("compare"):
            compare_served(own, records, log_files(own), found)
        figures["check_s"] = time.perf_counter() - start
    figures["values"] = float(found.total.sum())
    figures["wrong"], figures["missing"] = float(found.total[WRONG]), float(found.total[MISSING])
    figures["memory_added_gb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return figures, {"check_s": ("<", 60.0), "wrong": ("==", 0), "missing": ("==", 0), "values": (">", 0)}


def _served(settings: Settings, now_us: int) -> tuple[list[ImpressionRecord], list[int], list[float]]:
    """Return records of requests at the end of the log, their sizes in bytes, and the seconds each took to encode."""
    rng = np.random.default_rng(settings.seed)
    reader = AsOfReader(settings, now_us)
    table = offline_item_table(reader, now_us)
    users, records, sizes, spent = reader.users(), [], [], []
    with progress("serve", REQUESTS) as shown:
        for number in range(REQUESTS):
            user_id = users[rng.integers(len(users))]
            items = rng.choice(len(table), _ITEMS, replace=False).astype(np.int32)
            ids = [table.ids[i] for i in items]
            user, pairs = reader.user(user_id, now_us), reader.pairs(user_id, ids, now_us)
            nothing = np.empty((_ITEMS, 0), np.float32)
            seen = Seen(
                _SERVICE, service_hash(_SERVICE), ids,
                feature_matrix(_SERVICE, user, table, items, pairs, nothing, now_us),
                table.seq[items], table.catalog_seq[items],
                np.where(pairs.present, pairs.seq, 0), table.category_code[items], table.category_names, user,
            )  # fmt: skip
            answer = Impressions(
                f"request-{number}", now_us, user_id, "stable", "bundle", "1", "full", _ITEMS, [],
                int(user.stats.seq[0]), user.recent.seq, 0.1, [], seen,
            )  # fmt: skip
            start = time.perf_counter()
            record = to_record(answer)
            sizes.append(len(msgspec.json.encode(record)))
            spent.append(time.perf_counter() - start)
            records.append(record)
            shown.advance()
    return records, sizes, spent
