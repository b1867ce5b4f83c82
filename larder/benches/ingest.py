"""Speed of ingest: events a second of one worker on one core with Redis on the other, and acknowledged-to-visible.

The real worker process (`larder ingest run`) folds events of the simulator out of a full stream, in the simulator's
order, and writes the offline log too. Then events are appended at a fixed pace, and it is measured when each is in the
features.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import redis

from feature_repo.datasets import load_dataset
from feature_repo.ingest import LOG_EVENTS, read_status
from feature_repo.ingest_log import log_watermark
from feature_repo.online_keys import watermark_key
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import Append, append_events, run_appends
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service

EVENTS = 300_000
#: Folded before the clock runs: rows and lists are then as full as in the middle of a day.
WARM_EVENTS = 60_000
PACE_PER_S = 1_000
PACED_S = 10
_APPEND = 250
_TICK_S = 0.01


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Fold a full stream, then a steady one."""
    figures: dict[str, float] = {}
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="ingest", redis_port=any_free_port())
        service = start(redis_service(own), own.home).wait()
        try:
            os.sched_setaffinity(service.pid, {cores[-1]})
            own = replace(own, redis_port=service.port)
            with connect(own, timeout_ms=30_000) as client:
                events = _events(own)
                figures |= _throughput(own, client, events, cores[0])
                figures |= _latency(own, client, events[: PACE_PER_S * PACED_S], cores[0])
                figures["server_longest_block_ms"] = _longest_script_ms(client)
        finally:
            service.stop()
    return figures, {
        "events_per_s": (">", 25_000.0),
        "visible_p95_ms": ("<", 1_000.0),
    }


def _events(settings: Settings) -> list[dict[str, Any]]:
    """Return events of the simulator in its order, all of the last hours: a stream takes nothing older than a week."""
    table = load_dataset("simulator", settings, n_events=EVENTS + WARM_EVENTS, end=datetime(2026, 1, 1, tzinfo=UTC))
    rows: list[dict[str, Any]] = table.events.drop_columns(["event_timestamp", "received_at"]).to_pylist()
    return rows


def _now_us() -> int:
    return time.time_ns() // 1000


def _timed(rows: list[dict[str, Any]], first_id: str) -> list[dict[str, Any]]:
    """Give events an id of their own and the time of this moment."""
    now_us = _now_us()
    times = {"event_timestamp": now_us, "received_at": now_us}
    return [row | times | {"event_id": f"{first_id}{k}"} for k, row in enumerate(rows)]


def _fill(settings: Settings, client: redis.Redis, rows: list[dict[str, Any]], name: str) -> int:
    """Append events and return the last `seq`."""
    last = 0
    for at in range(0, len(rows), 20 * _APPEND):
        appends = [
            Append.of_events(settings.project, _timed(rows[i : i + _APPEND], f"{name}{i}-"), _now_us() // 1000)
            for i in range(at, min(at + 20 * _APPEND, len(rows)), _APPEND)
        ]
        last = run_appends(client, appends)[-1].seq
    return last


@contextmanager
def _worker(settings: Settings, core: int) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "larder.cli",
        "-p",
        settings.project,
        "--home",
        str(settings.home),
        "ingest",
        "run",
    ]
    environment = os.environ | {"LARDER_REDIS_PORT": str(settings.redis_port), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603 - ours
        try:
            os.sched_setaffinity(process.pid, {core})
            if process.stdout is None or not process.stdout.readline().startswith("ingest ready"):
                raise AssertionError("the worker did not start")
            yield process
            process.terminate()
            process.wait(60)
        finally:
            process.kill()


def _wait_for(client: redis.Redis, settings: Settings, seq: int) -> None:
    key = watermark_key(settings.project)
    while int(client.get(key) or 0) < seq:  # type: ignore[arg-type] # a synchronous client answers bytes
        time.sleep(0.02)


def _throughput(settings: Settings, client: redis.Redis, rows: list[dict[str, Any]], core: int) -> dict[str, float]:
    """Fold a full stream; the clock runs from the first measured event to the last one folded.

    The worker writes the log as it goes; at most its last `LOG_EVENTS` are not in it yet when the clock stops, and are
    not counted. (Where no events follow, the log waits for its time: seconds in which nobody works.)
    """
    with progress(f"append {len(rows):,} events"):
        began = time.perf_counter()
        warm = _fill(settings, client, rows[:WARM_EVENTS], "w")
        last = _fill(settings, client, rows[WARM_EVENTS:], "e")
        appended = len(rows) / (time.perf_counter() - began)
    client.config_resetstat()
    client.slowlog_reset()
    client.config_set("slowlog-log-slower-than", 1_000)
    with progress("fold them"), _worker(settings, core) as process:
        _wait_for(client, settings, warm)
        server = int(client.info("server")["process_id"])  # type: ignore[index] # a synchronous client answers at once
        began, busy, server_busy = time.perf_counter(), _cpu_s(process.pid), _cpu_s(server)
        _wait_for(client, settings, last)
        folded = time.perf_counter() - began
        busy, server_busy = _cpu_s(process.pid) - busy, _cpu_s(server) - server_busy
        while log_watermark(settings.events_dir) < last:
            time.sleep(0.02)
        status = read_status(client, settings.project)
    return {
        "events_per_s": (EVENTS - LOG_EVENTS) / folded,
        "worker_cpu_us_per_event": busy / EVENTS * 1e6,
        "redis_cpu_us_per_event": server_busy / EVENTS * 1e6,
        "appended_events_per_s": appended,
        "events_per_batch": status.events / status.batches if status and status.batches else 0.0,
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _latency(settings: Settings, client: redis.Redis, rows: list[dict[str, Any]], core: int) -> dict[str, float]:
    """Append at a fixed pace; an event is visible when the watermark has reached it."""
    acknowledged: list[tuple[int, float]] = []
    seen: list[tuple[int, float]] = []
    done = threading.Event()
    last = 0

    def look() -> None:
        key = watermark_key(settings.project)
        with connect(settings, timeout_ms=5_000) as own:
            while not done.is_set() or (seen and seen[-1][0] < last):
                seen.append((int(own.get(key) or 0), time.perf_counter()))
                time.sleep(0.001)

    with progress(f"{PACE_PER_S:,} events a second for {PACED_S} s"), _worker(settings, core):
        watcher = threading.Thread(target=look)
        watcher.start()
        batch = round(PACE_PER_S * _TICK_S)
        began = time.perf_counter()
        for tick, at in enumerate(range(0, len(rows), batch)):
            time.sleep(max(began + tick * _TICK_S - time.perf_counter(), 0.0))
            results = append_events(
                client, settings.project, _timed(rows[at : at + batch], f"p{at}-"), _now_us() // 1000
            )
            now, last = time.perf_counter(), results[-1].seq
            acknowledged += [(result.seq, now) for result in results]
        paced = time.perf_counter() - began
        done.set()
        watcher.join(30)
    reached, at_time = np.array([seq for seq, _ in seen]), np.array([when for _, when in seen])
    first = np.searchsorted(reached, [seq for seq, _ in acknowledged])
    waits = 1000 * np.maximum(at_time[first] - np.array([when for _, when in acknowledged]), 0.0)
    return {
        "paced_events_per_s": len(rows) / paced,
        "visible_p50_ms": float(np.percentile(waits, 50)),
        "visible_p95_ms": float(np.percentile(waits, 95)),
        "visible_max_ms": float(waits.max()),
    }


def _longest_script_ms(client: redis.Redis) -> float:
    """Return how long the longest command of ingest kept Redis from answering others, from its slow log."""
    entries: Any = client.slowlog_get(10_000)
    return max((entry["duration"] for entry in entries), default=0) / 1000
