"""Each defence on its own: with it nothing is lost or doubled, with it removed the checker says what went wrong."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.backfill import backfill
from feature_repo.datasets import read_events
from feature_repo.materialize import materialize
from feature_repo.online_keys import watermark_key
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from larder.services.process import RunningService, start
from tests.fault_checker import findings
from tests.fault_clients import Customer, into_stream, together
from tests.fault_processes import Shop, api_service, fault_settings, without, worker_service
from tests.live_shop import live_files
from tests.test_faults_kills import all_folded, now_us, open_shop, run_kills

pytestmark = pytest.mark.faults


def found_after_kills(tmp_path: Path, *, worker: str | None = None, api: str | None = None) -> list[str]:
    """Run the scenario of the fifty kills with three, one of each kind, and a defence of worker or API removed."""
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    services = {"worker": worker_service(settings), "api": api_service(settings)}
    services |= {name: without(what, services[name]) for name, what in (("worker", worker), ("api", api)) if what}
    with Shop(settings, **services) as shop:
        open_shop(settings)
        shop.start_all()
        told = run_kills(shop, 1, 3)
        with connect(settings, timeout_ms=5000) as client:
            return findings(settings, client, told, now_us() + DAY_US)


def test_without_memory_of_duplicates_repeated_events_count_twice(tmp_path):
    found = found_after_kills(tmp_path, api="duplicate_memory")
    assert any(finding.startswith("acknowledged twice: ") for finding in found)
    assert any(finding.startswith("log: ") and finding.endswith("is there 2 times") for finding in found)
    assert any(finding.startswith("online user_stats") for finding in found)


def test_with_trimming_ahead_of_the_log_acknowledged_events_are_lost(tmp_path):
    found = found_after_kills(tmp_path, worker="trimming_behind_the_log")
    assert any(finding.startswith("log: acknowledged ") and "is not there" in finding for finding in found)


@pytest.mark.parametrize("removed", [None, "watermark_compare"])
def test_a_writer_that_comes_back_from_a_pause_is_fenced(tmp_path, removed):
    """As after a long stop of a virtual machine: meanwhile another machine took over, with a log of its own."""
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    elsewhere = replace(settings, home=tmp_path / "other machine")
    services = [worker_service(place) for place in (settings, elsewhere)]
    first, second = [without(removed, service) for service in services] if removed else services
    customer = Customer("client", into_stream(settings), 22)
    with Shop(settings, worker=first) as shop:
        shop.start_all()
        customer.start()
        shop.pause(0.5)
        shop.stopped.add("worker")  # nobody starts it again
        shop.signal("worker", signal.SIGSTOP)
        with running(second, elsewhere):
            shop.pause(0.5)
            shop.signal("worker", signal.SIGCONT)
            deadline = time.monotonic() + (3 if removed else 30)
            while not (fenced := shop.ended("worker")) and time.monotonic() < deadline:
                time.sleep(0.05)
            told = together([customer])
            with connect(settings, timeout_ms=5000) as client:
                shop.wait_until("all is folded", lambda: all_folded(client, settings))
        assert fenced == (removed is None), shop.log("worker")
        if removed:
            return
        assert "another writer moved the watermark" in shop.log("worker")
        with connect(settings, timeout_ms=5000) as client:
            assert not findings(merged(tmp_path / "merged", settings, elsewhere), client, told, now_us() + DAY_US)


@contextmanager
def running(service, settings: Settings) -> Iterator[RunningService]:
    process = start(service, settings.home).wait()
    try:
        yield process
    finally:
        process.stop()


def merged(home: Path, *places: Settings) -> Settings:
    """Put the logs of two machines together: the second logged again what it found in the stream."""
    both = [read_events(place) for place in places if live_files(place)]
    log = pa.concat_tables(both).sort_by("seq")
    first = np.r_[True, np.diff(log["seq"].to_numpy()) > 0]
    settings = replace(places[0], home=home)
    (settings.events_dir / "day=merged").mkdir(parents=True)
    pq.write_table(log.filter(pa.array(first)), settings.events_dir / "day=merged" / "all.parquet")
    return settings


@pytest.mark.parametrize("removed", [None, "row_seq"])
def test_rows_that_are_ahead_of_the_watermark_are_not_folded_twice(tmp_path, removed):
    """Redis came back from an older copy, and materialise was killed after it wrote the rows from the log."""
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    worker = worker_service(settings)
    with Shop(settings, worker=without(removed, worker) if removed else worker) as shop:
        open_shop(settings)
        customer = Customer("client", into_stream(settings), 25, pause_s=0.005)
        customer.start()
        time.sleep(1.0)
        told = together([customer])
        data = shop.redis_settings.home / "redis"
        shop.stop("redis")
        shutil.copytree(data, tmp_path / "copy")
        shop.start("redis").wait()
        shop.start_all()
        with connect(settings, timeout_ms=5000) as client:
            shop.wait_until("all is folded", lambda: all_folded(client, settings))
        shop.stop("worker")
        shop.stop("redis")
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "copy", data)
        shop.start("redis").wait()
        with connect(settings, timeout_ms=5000) as client:
            place = client.get(watermark_key(settings.project))
            backfill(settings)
            materialize(settings)
            client.set(watermark_key(settings.project), place)  # it was killed before it moved the watermark
            shop.start("worker").wait()
            shop.wait_until("all is folded", lambda: all_folded(client, settings))
            shop.stop("worker")
            found = findings(settings, client, told, now_us() + DAY_US)
        assert bool(found) == (removed is not None), found[:20]
        assert all(finding.startswith("online") for finding in found)
