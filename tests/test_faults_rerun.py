"""Backfill and materialise killed half-way, and run again: the same bytes as if nothing had happened."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from feature_repo.datasets import make_dataset, write_dataset
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.offline_layout import MANIFEST, read_manifest
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from larder.services.ports import HOST
from larder.services.stack import settings_env
from tests.fault_processes import Shop, fault_settings
from tests.test_faults_kills import now_us

pytestmark = pytest.mark.faults

EVENTS, USERS, ITEMS = 260_000, 300, 100  # two chunks of a backfill
SEEDS = (1, 2)


def write_history(settings: Settings) -> None:
    """Import a history long enough that a kill can come in the middle of the work."""
    rng = np.random.default_rng(5)
    time_us = np.sort(now_us() - DAY_US - rng.integers(0, 60 * DAY_US, EVENTS))
    kinds = np.array(["view", "cart", "purchase", "impression"])[rng.choice(4, EVENTS, p=[0.6, 0.1, 0.2, 0.1])]
    columns = {
        "event_id": [f"e{n}" for n in range(EVENTS)],
        "user_id": [f"u{n}" for n in rng.integers(0, USERS, EVENTS)],
        "item_id": [f"i{n}" for n in rng.integers(0, ITEMS, EVENTS)],
        "event_type": kinds,
        "value": np.where(kinds == "purchase", 250.0, np.nan),
        "event_timestamp": time_us,
        "received_at": time_us,
        "category": [f"c{n}" for n in rng.integers(0, 8, EVENTS)],
    }
    nothing = pa.nulls(EVENTS)
    table = pa.table(
        [
            pa.array(columns[f.name], f.type, from_pandas=True) if f.name in columns else nothing.cast(f.type)
            for f in EVENT_SCHEMA
        ],
        schema=EVENT_SCHEMA,
    )
    items = [{"item_id": f"i{n}", "title": f"Item {n}", "price": n, "available": True} for n in range(ITEMS)]
    catalogue = pa.Table.from_pylist(items, schema=ITEM_SCHEMA)
    write_dataset(make_dataset("shop", table, catalogue, QUARANTINE_SCHEMA.empty_table()), settings)


def features(settings: Settings, command: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "larder.cli", "features", command]
    return subprocess.Popen(line, env=settings_env(settings), stdout=subprocess.DEVNULL)


def run(settings: Settings, command: str) -> None:
    assert features(settings, command).wait(300) == 0


def killed(settings: Settings, command: str, due: Callable[[], bool]) -> bool:
    """Run a command until it is due, then kill it; return whether it was still running."""
    process = features(settings, command)
    while process.poll() is None and not due():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def offline_bytes(settings: Settings) -> dict[str, str]:
    """Return the hash of the manifest and of every file it names; other files must not be there."""
    directory = settings.offline_dir
    named = {MANIFEST, *read_manifest(directory).paths()}
    there = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert {name for name in there if not Path(name).name.startswith(".")} == named
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in sorted(named)}


def online_rows(client: redis.Redis, project: str) -> dict[bytes, Any]:
    """Return everything Redis holds of the project; of the change feed only which items, as the rest is times."""
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: set(client.zrange(key, 0, -1)),
        b"stream": lambda key: client.xinfo_stream(key)["last-generated-id"],
    }
    keys = list(client.scan_iter(f"{project}:*", count=1000))
    return {key: read[client.type(key)](key) for key in keys}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project with a history and an offline store that nobody disturbed."""
    settings = fault_settings(tmp_path_factory.mktemp("whole") / "home")
    write_history(settings)
    shutil.copytree(settings.home, settings.home.with_name("before"))
    run(settings, "backfill")
    return settings


@pytest.mark.parametrize("seed", SEEDS)
def test_backfill_killed_half_way_and_run_again_writes_the_same_bytes(
    whole: Settings, tmp_path: Path, seed: int
) -> None:
    settings = replace(whole, home=tmp_path / "home")
    shutil.copytree(whole.home.with_name("before"), settings.home)
    files = len(read_manifest(whole.offline_dir).paths())
    rng = random.Random(seed)
    for _ in range(2):
        after = rng.randrange(files)  # files begun; the last ones come with the commit

        def due(after: int = after) -> bool:
            return sum(1 for _ in settings.offline_dir.glob("*/*.parquet")) > after

        assert killed(settings, "backfill", due), "killed before it ended"
        assert not (settings.offline_dir / MANIFEST).exists(), "nothing was committed"
    run(settings, "backfill")
    assert offline_bytes(settings) == offline_bytes(whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_materialise_killed_half_way_and_run_again_writes_the_same_rows(whole: Settings, seed: int) -> None:
    with Shop(whole) as shop, redis.Redis(HOST, whole.redis_port) as client:

        def received() -> int:
            return client.info("stats")["total_net_input_bytes"]

        client.flushall()
        before = received()
        run(whole, "materialize")
        in_total, expected = received() - before, online_rows(client, whole.project)
        rng = random.Random(seed)
        for clean in (True, False):  # the second one goes on where the first one was killed
            if clean:
                client.flushall()
            share = received() + rng.uniform(0.02, 0.95) * in_total
            assert killed(whole, "materialize", lambda share=share: received() > share), "killed before it ended"
            assert online_rows(client, whole.project) != expected or not clean
        run(whole, "materialize")
        assert online_rows(client, whole.project) == expected
        assert shop.starts["redis"] == 1
