"""Speed of reading features: 1 user + 300 items + 300 pairs by Feast's Redis store, by ours, and as packed arrays."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.fold import State, new_state
from feature_repo.online_reader import AsyncOnlineReader, OnlineReader
from feature_repo.packed_row import pack_rows
from feature_repo.read_request import ReadRows, RowsOf
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.settings import Settings
from feature_repo.store import import_feast, repo_config
from feature_repo.views import DAY_US, ITEM_STATS, NULL_INT, USER_ITEM, USER_STATS, View
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service
from serving.cascade.items import build_item_table, catalog_entry

ITEMS = 300
ROUNDS = 12
#: Calls of each way in a round; the slow ones fewer. The first of each is not counted.
CALLS = {"stock": 3, "stock_async": 3, "store": 10, "store_async": 10}
FAST_CALLS = 60
_VIEWS = (USER_STATS, ITEM_STATS, USER_ITEM)
_USER = "u00001"

Way = Callable[[], Any]


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Read the same rows by each way in turn."""
    import_feast()
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="bench", redis_port=any_free_port(), redis_timeout_ms=30_000)
        own.offline_dir.mkdir(parents=True)
        running = start(redis_service(own), own.home).wait()
        try:
            seconds = _measure(own)
        finally:
            running.stop()
    figures = _figures(seconds)
    _plot(figures, settings.results_dir / "feature_reads.png")
    return figures, {
        "store_times_stock": (">=", 8.0),
        "packed_times_stock": (">=", 45.0),
        "packed_async_times_stock": (">=", 35.0),
        "packed_ms_p50": ("<", 1.3),
        "packed_async_ms_p50": ("<", 1.6),
        "packed_beside_writer_ms_p99": ("<", 6.0),
        "item_table_ms_p50": ("<", 0.5),
    }


def _measure(settings: Settings) -> dict[str, list[list[float]]]:
    """Return seconds by way, round and call."""
    items, now_us = [f"item{i:05d}" for i in range(ITEMS)], time.time_ns() // 1000
    stores = [_store(settings, stock=stock) for stock in (True, False)]
    states = _write(stores, items, now_us)
    stock, ours = stores
    asked: dict[str, Any] = {
        "features": [f"{view.name}:{column.name}" for view in _VIEWS for column in view.columns],
        "entity_rows": {"user_id": [_USER] * ITEMS, "item_id": items},
    }
    requests = [RowsOf(USER_STATS, [_USER]), RowsOf(ITEM_STATS, items), RowsOf(USER_ITEM, _USER, items)]
    with connect(settings) as client, asyncio.Runner() as runner:
        reader, async_client = OnlineReader(client, settings.project), connect_async(settings)
        async_reader = AsyncOnlineReader(async_client, settings.project)
        stats, entries = reader.read_items(items)
        catalog = [catalog_entry(item, entry) for item, entry in zip(items, entries, strict=True)]
        table = build_item_table(catalog, stats, now_us)

        candidates = table.lookup(items)  # retrieval brings item indices

        def with_item_table() -> Any:
            pairs = RowsOf(USER_ITEM, _USER, [table.ids[i] for i in candidates])
            return reader.read([requests[0], pairs], now_us), table.inputs.take(candidates, axis=0)

        _check_equal(
            states, [store.get_online_features(**asked).to_dict() for store in stores], now_us, reader, requests
        )
        ways: dict[str, Way] = {
            "stock": lambda: stock.get_online_features(**asked),
            "store": lambda: ours.get_online_features(**asked),
            "packed": lambda: reader.read(requests, now_us),
            "item_table": with_item_table,
        }
        async_ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "stock_async": lambda: stock.get_online_features_async(**asked),
            "store_async": lambda: ours.get_online_features_async(**asked),
            "packed_async": lambda: async_reader.read(requests, now_us),
        }
        seconds: dict[str, list[list[float]]] = {}
        with progress(f"read 1 user, {ITEMS} items and {ITEMS} pairs by each way in turn", ROUNDS) as bar:
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    seconds.setdefault(name, []).append(_timed(way, CALLS.get(name, FAST_CALLS)))
                for name, ask in async_ways.items():
                    calls = CALLS.get(name, FAST_CALLS)
                    seconds.setdefault(name, []).append(runner.run(_timed_async(ask, calls)))
                with _bulk_writer(settings):
                    seconds.setdefault("packed_beside_writer", []).append(_timed(ways["packed"], 2 * FAST_CALLS))
                bar.advance()
        runner.run(async_client.aclose())
        runner.run(ours._get_provider().online_store.close())
    return seconds


def stock_store(settings: Settings) -> Any:
    """Return a feature store on Feast's own Redis store."""
    import_feast()
    settings.offline_dir.mkdir(parents=True, exist_ok=True)
    return _store(settings, stock=True)


def write_stock(store: Any, items: list[str]) -> str:
    """Write one user, some items and their pairs into a store through Feast; return the user's id."""
    _write([store], items, time.time_ns() // 1000)
    return _USER


def _timed(way: Way, calls: int) -> list[float]:
    way()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - began)
    return seconds


async def _timed_async(ask: Callable[[], Awaitable[Any]], calls: int) -> list[float]:
    await ask()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - began)
    return seconds


def _figures(seconds: dict[str, list[list[float]]]) -> dict[str, float]:
    every = {name: 1000 * np.concatenate(rounds) for name, rounds in seconds.items()}
    figures = {f"{name}_ms_p50": float(np.median(ms)) for name, ms in every.items()}
    figures["packed_ms_p99"] = float(np.quantile(every["packed"], 0.99))
    figures["packed_beside_writer_ms_p99"] = float(np.quantile(every["packed_beside_writer"], 0.99))
    stock = [np.median(one) for one in seconds["stock"]]
    for name in ("store", "store_async", "packed", "packed_async", "packed_beside_writer", "item_table"):
        # Within a round both saw the same machine.
        figures[f"{name}_times_stock"] = float(
            np.median([a / np.median(b) for a, b in zip(stock, seconds[name], strict=True)])
        )
    return figures


def _store(settings: Settings, *, stock: bool) -> Any:
    from feast import FeatureStore, RepoConfig

    from feature_repo.feature_definitions import category, item, item_stats, user, user_item_interactions, user_stats

    config = repo_config(settings)
    if stock:
        config = RepoConfig(
            project=f"{settings.project}_stock",
            provider="local",
            registry=config.registry_config,
            offline_store=config.offline_store.model_dump(),
            online_store={"type": "redis", "connection_string": f"{settings.redis_host}:{settings.redis_port}"},
            entity_key_serialization_version=3,
        )
    store = FeatureStore(config=config)
    store.apply([user, item, category, user_stats, item_stats, user_item_interactions])
    return store


def _state(view: View, n: int, now_us: int, rng: np.random.Generator) -> State:
    """Make rows with counts, money, times, decayed sums, and a third of the nullable cells null."""
    state = new_state(view, n)
    for i, name in enumerate(view.ints):
        times = name.endswith("_time")
        state.ints[:, i] = now_us - rng.integers(1, 30 * DAY_US, n) if times else rng.integers(0, 5_000, n)
    state.ints[:, 0], state.ints[:, 1] = now_us - rng.integers(1, DAY_US, n), rng.integers(2**59, 2**60, n)
    state.floats[:] = rng.lognormal(size=state.floats.shape)
    for column in view.columns[2:]:
        if column.nullable and column.kind == "int64":
            state.ints[rng.random(n) < 1 / 3, view.ints.index(column.name)] = NULL_INT
    return state


def _write(stores: list[Any], items: list[str], now_us: int) -> dict[str, State]:
    """Write the same rows through Feast into both stores."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    rng, states = np.random.default_rng(7), {}
    keys: dict[str, list[tuple[str, ...]]] = {
        USER_STATS.name: [(_USER,)],
        ITEM_STATS.name: [(item,) for item in items],
        USER_ITEM.name: [(_USER, item) for item in items],
    }
    for view in _VIEWS:
        state = states[view.name] = _state(view, len(keys[view.name]), now_us, rng)
        rows = []
        for r, entities in enumerate(keys[view.name]):
            key = EntityKey(join_keys=view.entities, entity_values=[Value(string_val=entity) for entity in entities])
            values = {name: Value(double_val=x) for name, x in zip(view.floats, state.floats[r].tolist(), strict=True)}
            for name, x in zip(view.ints, state.ints[r].tolist(), strict=True):
                values[name] = Value() if x == NULL_INT else Value(int64_val=x)
            # A row of the fold counts one µs after its feature time.
            at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(state.ints[r, 0]) + 1)
            rows.append((key, values, at, None))
        for store in stores:
            online = store._get_provider().online_store
            online.online_write_batch(store.config, store.get_feature_view(view.name), rows, None)
    return states


def _check_equal(
    states: dict[str, State], answers: list[dict[str, Any]], now_us: int, reader: OnlineReader, requests: list[RowsOf]
) -> None:
    """Refuse to measure ways that do not say the same."""
    stock, ours = answers
    if stock != ours:
        raise AssertionError(f"our store differs from Feast's in {[n for n in stock if stock[n] != ours.get(n)]}")
    read: list[ReadRows] = reader.read(requests, now_us)
    for view, rows in zip(_VIEWS, read, strict=True):
        state, found = states[view.name], rows.rows(view)
        if not (np.array_equal(found.ints, state.ints) and np.array_equal(found.floats, state.floats)):
            raise AssertionError(f"the packed read differs in {view.name}")
        for column in view.columns:
            values = rows.values(column.name)
            if stock[column.name] != (values * ITEMS if len(values) == 1 else values):
                raise AssertionError(f"the packed read differs from Feast's store in {column.name}")


@contextmanager
def _bulk_writer(settings: Settings) -> Iterator[None]:
    """Let another process write rows as fast as it can."""
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    writer = context.Process(target=_write_until, args=(settings, ready, stop))
    writer.start()
    try:
        if not ready.wait(60):
            raise AssertionError("the bulk writer did not start")
        yield
    finally:
        stop.set()
        writer.join()


def _write_until(settings: Settings, ready: Event, stop: Event) -> None:
    n, now_us = 5_000, time.time_ns() // 1000
    state = _state(ITEM_STATS, n, now_us, np.random.default_rng(8))
    with closing(connect(settings)) as client:
        while not stop.is_set():
            state.ints[:, 1] += 1
            rows = pack_rows(ITEM_STATS, state.ints, state.floats)
            write_rows(client, settings.project, ViewRows(ITEM_STATS.name, [f"other{i}" for i in range(n)], rows))
            ready.set()


def _plot(figures: dict[str, float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = {
        "stock_async": "Feast's Redis store, async",
        "stock": "Feast's Redis store",
        "store_async": "Feast on our store, async",
        "store": "Feast on our store",
        "packed_async": "packed read, async",
        "packed_beside_writer": "packed read beside a bulk writer",
        "packed": "packed read",
        "item_table": "packed read, items in process",
    }
    figure, axis = plt.subplots(figsize=(8, 3.6))
    values = [figures[f"{name}_ms_p50"] for name in names]
    bars = axis.barh(list(names.values())[::-1], values[::-1], color="#2b6cb0")
    axis.bar_label(bars, fmt="%.2f ms", padding=3)
    axis.set_xscale("log")
    axis.set_xlim(right=4 * max(values))
    axis.set_xlabel("ms (p50, log scale)")
    axis.set_title(f"1 user, {ITEMS} items, {ITEMS} pairs")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
