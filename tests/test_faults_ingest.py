"""Kills real processes at random moments: every acknowledged event counts exactly once, equal to the offline store."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.datasets import read_events
from feature_repo.errors import UnavailableError
from feature_repo.ingest import IngestWorker
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import append_events
from feature_repo.views import DAY_US
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service
from tests.live_shop import assert_online_equals_offline, live_files, logged_seqs, random_event

pytestmark = pytest.mark.faults

KILLS = 10


def now_us() -> int:
    return time.time_ns() // 1000


@contextlib.contextmanager
def worker_process(settings):
    """Run `larder ingest run`; ready when the context begins, gone when it ends."""
    options = ["-p", settings.project, "--home", str(settings.home)]
    environment = {"LARDER_REDIS_PORT": str(settings.redis_port), "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "larder.cli", *options, "ingest", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            first = process.stdout.readline()
            assert first.startswith("ingest ready"), first + process.stdout.read()
            yield process
        finally:
            process.kill()
            process.wait()


class Shop(threading.Thread):
    """Sends events until stopped, some twice, and repeats what was not acknowledged, as a client should."""

    def __init__(self, settings, seed: int) -> None:
        super().__init__()
        self.settings, self.rng = settings, random.Random(seed)
        self.acknowledged: dict[str, int] = {}
        self.refused = 0
        self.failure: BaseException | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            with connect(self.settings, timeout_ms=2000) as client:
                number = 0
                while not self.stopping.is_set():
                    size = self.rng.randint(1, 20)
                    batch = [random_event(self.rng, f"e{number + k}", now_us()) for k in range(size)]
                    number += size
                    self._send(client, batch)
                    if self.rng.random() < 0.2:
                        self._send(client, self.rng.choices(batch, k=3))
                    time.sleep(0.01)
        except BaseException as error:
            self.failure = error

    def _send(self, client, batch) -> None:
        while True:
            try:
                results = append_events(client, self.settings.project, batch, now_us() // 1000)
            except UnavailableError:
                self.refused += 1
                time.sleep(0.05)
                continue
            for event, result in zip(batch, results, strict=True):
                before = self.acknowledged.setdefault(event["event_id"], result.seq)
                assert before == result.seq, "a repeated event has the seq of the first"
            return

    def finish(self) -> list[int]:
        """Stop sending and return the seq of every acknowledged event, in order."""
        self.stopping.set()
        self.join(30)
        if self.failure is not None:
            raise self.failure
        return sorted(self.acknowledged.values())


def complete(settings, client) -> None:
    """Fold and log what is left, as the next start of the worker does."""
    worker = IngestWorker(settings, client)
    worker.start()
    while worker.step():
        pass
    worker.flush()
    worker.close()


def check(settings, client, seqs: list[int]) -> None:
    assert logged_seqs(settings) == seqs
    assert_online_equals_offline(settings, client, now_us() + DAY_US)


def test_the_worker_killed_at_random_moments_counts_every_event_once(settings):
    rng = random.Random(20)
    shop = Shop(settings, seed=21)
    shop.start()
    for _ in range(KILLS):
        with worker_process(settings) as process:
            time.sleep(rng.uniform(0.0, 0.6))
            process.send_signal(signal.SIGKILL)
    seqs = shop.finish()
    with connect(settings, timeout_ms=5000) as client:
        before = OnlineReader(client, settings.project).watermark()
        complete(settings, client)
        assert seqs[0] < before <= seqs[-1], "the killed workers did part of the work"
        check(settings, client, seqs)


def test_a_worker_that_comes_back_from_a_pause_is_fenced(settings, tmp_path):
    """As after a long stop of a virtual machine: meanwhile another machine took over, with a log of its own."""
    elsewhere = replace(settings, home=tmp_path / "other machine")
    shop = Shop(settings, seed=22)
    shop.start()
    with worker_process(settings) as paused, connect(settings, timeout_ms=5000) as client:
        time.sleep(0.3)
        paused.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        other = IngestWorker(elsewhere, client)
        other.start()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            other.step()
        paused.send_signal(signal.SIGCONT)
        while paused.poll() is None:
            other.step(wait_ms=10)
            assert time.monotonic() < deadline + 10
        assert "another writer moved the watermark" in paused.stdout.read()
        assert paused.returncode == 1
        seqs = shop.finish()
        other.close()
        complete(elsewhere, client)
        both = [read_events(place) for place in (settings, elsewhere) if live_files(place)]
        log = pa.concat_tables(both).sort_by("seq")
        first = np.r_[True, np.diff(log["seq"].to_numpy()) > 0]  # the other machine logged again what it found
        merged = replace(settings, home=tmp_path / "merged")
        (merged.events_dir / "day=merged").mkdir(parents=True)
        pq.write_table(log.filter(pa.array(first)), merged.events_dir / "day=merged" / "all.parquet")
        check(merged, client, seqs)


def test_redis_killed_and_restarted_loses_no_acknowledged_event(tmp_path):
    settings = Settings(home=tmp_path, project="shop", redis_port=any_free_port(), redis_timeout_ms=1000)
    service = redis_service(settings)
    running = start(service, tmp_path).wait()
    shop = Shop(settings, seed=23)
    try:
        with worker_process(settings) as process:
            shop.start()
            rng = random.Random(24)
            for _ in range(4):
                time.sleep(rng.uniform(0.3, 0.8))
                os.kill(running.pid, signal.SIGKILL)
                time.sleep(rng.uniform(0.0, 0.3))
                running.stop()
                running = start(service, tmp_path).wait()
                assert running.port == settings.redis_port
            time.sleep(1.0)
            assert process.poll() is None, "the worker waits for Redis"
            process.send_signal(signal.SIGTERM)
            assert "ingest stopped" in process.stdout.read()
        seqs = shop.finish()
        assert shop.refused > 0
        with connect(settings, timeout_ms=5000) as client:
            complete(settings, client)
            check(settings, client, seqs)
    finally:
        shop.stopping.set()
        running.stop()
