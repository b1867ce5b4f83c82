"""Staleness and cost of the item table: 20,000 items and 1,000 events a second through a real worker."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import redis

from feature_repo.item_changes import ItemChange
from feature_repo.online_reader import AsyncOnlineReader, OnlineReader
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.settings import Settings
from feature_repo.stream import Append, append_events, run_appends
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service
from larder.services.stack import project_service
from serving.item_table_source import ItemTableSource

ITEMS = 20_000
EVENTS_PER_S = 1_000
SECONDS = 30.0
_PROBE_EVERY_S = 0.1
_BATCH = 20
_TIMEOUT_MS = 10_000


@dataclass
class _Probes:
    """Items that get one event each: when it was acknowledged, and when the table shows it."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Measure, in a Redis and a worker of their own."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="table", redis_host="127.0.0.1", redis_port=any_free_port())
        server = start(redis_service(own), own.home).wait()
        worker = start(project_service(own, "ingest", ["ingest", "run"], ready=lambda _: True), own.home)
        try:
            with closing(connect(own, timeout_ms=_TIMEOUT_MS)) as client:
                with progress(f"catalogue of {ITEMS:,} items"):
                    _fill(own, client)
                with progress(f"{EVENTS_PER_S} events/s for {SECONDS:.0f} s"):
                    figures = _measure(own, client)
        finally:
            worker.stop()
            server.stop()
    return figures, {"staleness_p95_s": ("<", 2.0), "probes_never_seen": ("==", 0.0)}


def _fill(settings: Settings, client: redis.Redis) -> None:
    now_us = time.time_ns() // 1000
    changes = [
        ItemChange(f"c{n}", f"i{n:05d}", now_us, title=f"Item {n}", category=f"c{n % 90}", price=100 + n)
        for n in range(ITEMS)
    ]
    for at in range(0, ITEMS, 1_000):
        part = changes[at : at + 1_000]
        appends = [Append.of_changes(settings.project, part[k : k + 200]) for k in range(0, 1_000, 200)]
        last = run_appends(client, appends)[-1].seq
    reader = OnlineReader(client, settings.project)
    while reader.watermark() < last:
        time.sleep(0.05)


def _measure(settings: Settings, client: redis.Redis) -> dict[str, float]:
    stop, probes, sent = threading.Event(), _Probes(), [0]
    sender = threading.Thread(target=_send, args=(settings, stop, probes, sent))
    sender.start()
    began = time.monotonic()
    try:
        figures = asyncio.run(_refresh(settings, probes, began + SECONDS))
    finally:
        stop.set()
        sender.join()
    waited = np.array([seen - probes.acknowledged[item] for item, seen in probes.seen.items()])
    shown_by = began + SECONDS - 3.0
    missing = [item for item, at in probes.acknowledged.items() if at < shown_by and item not in probes.seen]
    figures |= {
        "events_per_s": sent[0] / SECONDS,
        "probes": float(len(waited)),
        "probes_never_seen": float(len(missing)),
        "staleness_p50_s": float(np.quantile(waited, 0.5)),
        "staleness_p95_s": float(np.quantile(waited, 0.95)),
        "staleness_max_s": float(waited.max()),
    }
    return figures


def _send(settings: Settings, stop: threading.Event, probes: _Probes, sent: list[int]) -> None:
    """Send events at a constant rate; every tenth of a second one of an item nobody else touches."""
    rng, began, next_probe = np.random.default_rng(1), time.monotonic(), 0.0
    with closing(connect(settings, timeout_ms=_TIMEOUT_MS)) as client:
        while not stop.is_set():
            now_us = time.time_ns() // 1000
            # Popular items are looked at more often.
            items = [f"i{n:05d}" for n in np.minimum(rng.zipf(1.3, _BATCH) + rng.integers(0, 50, _BATCH), ITEMS // 2)]
            elapsed = time.monotonic() - began
            probe = f"i{ITEMS // 2 + len(probes.acknowledged) + 1:05d}" if elapsed >= next_probe else None
            if probe is not None:
                items[0], next_probe = probe, next_probe + _PROBE_EVERY_S
            events = [
                {"event_id": f"e{sent[0] + k}", "user_id": f"u{rng.integers(5_000)}", "item_id": item,
                 "event_type": "view", "event_timestamp": now_us, "received_at": now_us}
                for k, item in enumerate(items)
            ]  # fmt: skip
            append_events(client, settings.project, events, now_us // 1000)
            if probe is not None:
                probes.acknowledged[probe] = time.monotonic()
            sent[0] += _BATCH
            time.sleep(max(sent[0] / EVENTS_PER_S - (time.monotonic() - began), 0.0))


async def _refresh(settings: Settings, probes: _Probes, until: float) -> dict[str, float]:
    """Keep a table as the API does; note what a refresh and the first request after it cost."""
    client = connect_async(settings, timeout_ms=_TIMEOUT_MS)
    source = ItemTableSource(AsyncOnlineReader(client, settings.project), lambda: time.time_ns() // 1000)
    began = time.perf_counter()
    await source.refresh()
    first_s = time.perf_counter() - began
    refreshes, requests, sizes = [], [], []
    while time.monotonic() < until:
        await asyncio.sleep(settings.item_refresh_ms / 1000)
        before = source.table
        began = time.perf_counter()
        await source.refresh()
        refreshes.append(time.perf_counter() - began)
        table = source.table
        if table is None or table is before:
            continue
        now = time.monotonic()
        views = table.columns["item_views"]
        for item in [item for item in probes.acknowledged if item not in probes.seen]:
            if views[table.index[item]] > 0:
                probes.seen[item] = now
        sizes.append(len(table))
        began = time.perf_counter()
        for window in ("7d", "30d", "all"):
            table.most_popular(window)
        requests.append(time.perf_counter() - began)
    await client.aclose()
    return {
        "items": float(sizes[-1]),
        "full_load_ms": first_s * 1e3,
        "refresh_p50_ms": float(np.quantile(refreshes, 0.5)) * 1e3,
        "refresh_p95_ms": float(np.quantile(refreshes, 0.95)) * 1e3,
        "full_load_over_refresh": first_s / float(np.quantile(refreshes, 0.5)),
        "first_request_after_swap_ms": float(np.quantile(requests, 0.5)) * 1e3,
    }
