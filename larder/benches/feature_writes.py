"""Speed of writing features, and their memory: Feast's stock path, our batch engine and the bulk writer, same rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from feature_repo.redis_scripts import connect
from feature_repo.row_writer import write_batches
from feature_repo.settings import Settings
from feature_repo.store import import_feast, repo_config
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service

#: Rows that the three ways write in turn, and rounds.
ROWS = 50_000
ROUNDS = 3
#: Rows of the bulk writer and of the comparison of memory.
MANY = 100_000
FEATURES = 30
_VIEW = "bench_items"
#: Event time of all rows; what is materialised is the day around it.
_NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=12)
_DAY = (_NOW - timedelta(hours=12), _NOW + timedelta(hours=12))


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Write the same rows by each way in turn."""
    import_feast()
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="bench", redis_port=any_free_port(), redis_timeout_ms=30_000)
        own.offline_dir.mkdir(parents=True)
        with _redis(own) as client:
            figures = _speed(own, client) | _scripts(own, client) | _memory(own, client)
    _plot(figures, settings.results_dir / "feature_writes.png")
    return figures, {
        "materialize_times_stock": (">=", 10.0),
        "bulk_writer_times_stock": (">=", 20.0),
        "script_rows_per_s": (">=", 150_000.0),
        "script_block_ms_p99": ("<", 2.0),
    }


@contextmanager
def _redis(settings: Settings) -> Iterator[redis.Redis]:
    running = start(redis_service(settings), settings.home).wait()
    try:
        with connect(settings) as client:
            yield client
    finally:
        running.stop()


def _speed(settings: Settings, client: redis.Redis) -> dict[str, float]:
    table = _table(ROWS)
    pq.write_table(table, settings.offline_dir / f"{_VIEW}.parquet", coerce_timestamps="us")
    stock = _store(settings, {"type": "redis", "connection_string": f"{settings.redis_host}:{settings.redis_port}"})
    ours = _store(settings, None)
    view = ours.get_feature_view(_VIEW)
    ways: dict[str, Callable[[], Any]] = {
        "stock": lambda: stock.materialize(*_DAY),
        "materialize": lambda: ours.materialize(*_DAY),
        "bulk_writer": lambda: _bulk(settings, client, view, table),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with progress(
        f"write {ROWS:,} rows of {FEATURES} features by Feast, our engine and the bulk writer, in turn", ROUNDS
    ) as bar:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                rates[name].append(ROWS / (time.perf_counter() - began))
            bar.advance()
    figures = {f"{name}_rows_per_s": median(values) for name, values in rates.items()}
    for name in ("materialize", "bulk_writer"):
        figures[f"{name}_times_stock"] = median(a / b for a, b in zip(rates[name], rates["stock"], strict=True))
    return figures


def _scripts(settings: Settings, client: redis.Redis) -> dict[str, float]:
    """Measure inside Redis how long each script of a bulk write keeps everybody else waiting."""
    client.flushall()
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 10 * MANY)
    view, table = _store(settings, None).get_feature_view(_VIEW), _table(MANY)
    client.config_resetstat()
    began = time.perf_counter()
    _bulk(settings, client, view, table)
    seconds = time.perf_counter() - began
    log: Any = client.slowlog_get(10 * MANY)
    blocked = np.array([entry["duration"] for entry in log if entry["command"].startswith(b"EVALSHA")]) / 1000
    stats: Any = client.info("commandstats")
    client.config_set("slowlog-log-slower-than", -1)
    return {
        "bulk_writer_100k_rows_per_s": MANY / seconds,
        "script_rows_per_s": MANY / (stats["cmdstat_evalsha"]["usec"] / 1e6),
        "script_block_ms_p50": float(np.quantile(blocked, 0.5)),
        "script_block_ms_p99": float(np.quantile(blocked, 0.99)),
        "script_block_ms_max": float(blocked.max()),
    }


def _memory(settings: Settings, client: redis.Redis) -> dict[str, float]:
    """Compare the memory of 100,000 rows, index included; Feast's rows beyond some are copies under other keys."""
    client.flushall()
    _bulk(settings, client, _store(settings, None).get_feature_view(_VIEW), _table(MANY))
    packed = _stored_bytes(client)
    client.flushall()
    with progress(f"memory of {MANY:,} rows in Feast's layout"):
        some = 1_000
        pq.write_table(_table(some), settings.offline_dir / f"{_VIEW}.parquet", coerce_timestamps="us")
        options = {"type": "redis", "connection_string": f"{settings.redis_host}:{settings.redis_port}"}
        _store(settings, options).materialize(*_DAY)
        keys: Any = client.keys("*item*")
        rows: list[tuple[bytes, Any]] = [(key, client.dump(key)) for key in keys]
        for k in range(1, MANY // some):
            pipeline = client.pipeline(transaction=False)
            for key, row in rows:
                pipeline.restore(key.replace(b"item0000", b"item%04d" % k), 0, row)
            pipeline.execute()
        stored: Any = client.dbsize()
        if stored < MANY:
            raise AssertionError(f"{stored} rows in Feast's layout, not {MANY}")
        stock = _stored_bytes(client)
    return {
        "packed_bytes_per_row": packed / MANY,
        "stock_bytes_per_row": stock / MANY,
        "memory_stock_times_packed": stock / packed,
    }


def _stored_bytes(client: redis.Redis) -> int:
    """Return what all keys with their values take, and the slots of the table of keys.

    Not the difference of `used_memory`: buffers of clients and of the append-only file come and go in it.
    """
    keys: Any = client.keys("*")
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.memory_usage(key, samples=0)
    stats: Any = client.memory_stats()
    slots = int(stats["db.0"]["overhead.hashtable.main"]) - 40 * len(keys)  # 40: entry and object, counted with the key
    return int(sum(pipeline.execute())) + slots


def _table(n: int) -> pa.Table:
    rng = np.random.default_rng(7)
    columns: dict[str, Any] = {"item_id": pa.array([f"item{i // 1_000:04}x{i % 1_000:03}" for i in range(n)])}
    columns |= {f"f{i:02}": rng.normal(size=n) for i in range(FEATURES)}
    return pa.table(columns | {"at": pa.array([_NOW] * n, pa.timestamp("us", "UTC"))})


def _store(settings: Settings, online_store: dict[str, Any] | None) -> Any:
    """Open a store with one view of floats: ours, or one with Feast's own online store and engine."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    own = replace(settings, project="stock") if online_store else settings
    own.root.mkdir(parents=True, exist_ok=True)
    config = repo_config(own)
    config.offline_store.path = str(settings.offline_dir.resolve())
    if online_store:
        config.online_config, config.batch_engine_config = online_store, "local"
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    store = FeatureStore(config=config)
    schema = [Field(name="item_id", dtype=String), *(Field(name=f"f{i:02}", dtype=Float64) for i in range(FEATURES))]
    source = FileSource(name=f"{_VIEW}_file", path=f"{_VIEW}.parquet", timestamp_field="at")
    store.apply([item, FeatureView(name=_VIEW, entities=[item], schema=schema, source=source, ttl=timedelta(0))])
    return store


def _bulk(settings: Settings, client: redis.Redis, view: Any, table: pa.Table) -> None:
    from feature_repo.arrow_rows import pack_arrow

    parts = (table.slice(begin, 10_000) for begin in range(0, table.num_rows, 10_000))
    write_batches(client, settings.project, (pack_arrow(view, part, "at") for part in parts))


def _plot(figures: dict[str, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    ways = {"stock": "Feast, Redis", "materialize": "our engine", "bulk_writer": "bulk writer"}
    bars = left.bar(ways.values(), [figures[f"{way}_rows_per_s"] for way in ways], color="#4c72b0")
    left.bar_label(bars, fmt="{:,.0f}")
    left.set(title=f"rows of {FEATURES} features written per second", yscale="log")
    bars = right.bar(
        ["Feast's layout", "packed rows"], [figures["stock_bytes_per_row"], figures["packed_bytes_per_row"]]
    )
    right.bar_label(bars, fmt="{:,.0f}")
    right.set(title=f"bytes per row in Redis, {MANY:,} items")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
