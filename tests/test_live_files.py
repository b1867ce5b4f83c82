"""Merging small files of the live log: the same events before, half-way and after; readers keep their files."""

import itertools
import random
import time
from contextlib import closing, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo import live_files
from feature_repo.backfill import backfill
from feature_repo.event_log import read_events
from feature_repo.events import LOG_SCHEMA
from feature_repo.ingest_log import LiveLog
from feature_repo.live_files import files_kept, log_paths, merge_small
from feature_repo.log_chunks import log_files
from feature_repo.settings import Settings
from feature_repo.stream import StreamBatch
from tests.live_shop import random_event


class Crash(BaseException):
    pass


FIRST_US = 1_760_000_000_000_000


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Runs of five files are long, files of 20 kB big."""
    monkeypatch.setattr(live_files, "MERGED_FILES", 5)
    monkeypatch.setattr(live_files, "SMALL_BYTES", 20_000)


def write(settings: Settings, rng: random.Random, sizes: list[int], log: LiveLog) -> None:
    """Append batches; the day changes now and then, and once goes back, as at midnight."""
    for size in sizes:
        seq, day = log.watermark, rng.choice([0, 0, 0, 0, 1])
        events = [
            random_event(rng, f"e{seq + k}", FIRST_US + day * 86_400_000_000) | {"seq": seq + k}
            for k in range(1, size + 1)
        ]
        columns = {f.name: pa.array([event.get(f.name) for event in events], f.type) for f in LOG_SCHEMA}
        log.append(StreamBatch(pa.table(columns, LOG_SCHEMA), [], [], seq + size))


def content(settings: Settings) -> list[dict]:
    return read_events(settings).to_pylist()


@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 10**6), batches=st.integers(6, 40))
def test_merging_changes_no_event_wherever_it_stops(tmp_path_factory, monkeypatch, seed, batches):
    rng = random.Random(seed)
    sizes = [rng.choice([1, 3, 3, 3, 200]) for _ in range(batches)]
    settings = Settings(home=tmp_path_factory.mktemp("home"), project="shop")
    with closing(LiveLog(settings)) as log:
        write(settings, rng, sizes, log)
    before, files = content(settings), len(log_paths(settings.events_dir))
    stops = rng.randrange(8)  # a crash after so many files were taken away

    calls, real = itertools.count(), Path.unlink

    def unlink(path, *args, **kwargs):
        if path.name.startswith("live-") and next(calls) == stops:
            raise Crash
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with suppress(Crash):
            while merge_small(settings.events_dir, LOG_SCHEMA):
                pass
    assert content(settings) == before
    assert sum(file.rows for file in log_files(settings)) == len(before)
    with closing(LiveLog(settings)) as log:  # the next start takes away what a crash left
        assert log.watermark == before[-1]["seq"]
        while log.merge_small():
            pass
    assert content(settings) == before
    assert sorted(settings.events_dir.glob("day=*/live-*.parquet")) == log_paths(settings.events_dir)
    assert len(log_paths(settings.events_dir)) <= files
    for path in log_paths(settings.events_dir):
        days = {str(received.date()) for received in pq.read_table(path, partitioning=None)["received_at"].to_pylist()}
        assert path.parent.name == f"day={days.pop()}"
        assert not days


def test_small_files_become_few_and_a_backfill_gives_the_same(tmp_path):
    rng, settings = random.Random(3), Settings(home=tmp_path, project="shop")
    with closing(LiveLog(settings)) as log:
        write(settings, rng, [3] * 60, log)
        first = backfill(settings)
        assert len(log_paths(settings.events_dir)) == 60
        while log.merge_small():
            pass
        assert len(log_paths(settings.events_dir)) <= 50
        assert backfill(settings).events == 0, "what was folded is not folded again"
        again = backfill(settings, full=True)
        assert (again.events, again.rows) == (first.events, first.rows) == (180, first.rows)
        write(settings, rng, [3], log)
        assert backfill(settings).events == 3


def test_files_stay_while_somebody_reads_them(tmp_path):
    settings = Settings(home=tmp_path, project="shop")
    log = LiveLog(settings)
    write(settings, random.Random(1), [2] * 30, log)
    before = log_paths(settings.events_dir)
    with files_kept(settings.events_dir):
        began = time.monotonic()
        assert log.merge_small() == 0, "ingest does not wait for readers"
        assert time.monotonic() - began < 5
        assert log_paths(settings.events_dir) == before
    assert log.merge_small() >= 5
    log.close()
