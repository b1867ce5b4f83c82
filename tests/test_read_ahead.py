"""What ingest reads ahead is used only where it follows what was written; a failed write brings its own batch again."""

import random
import threading
import time

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.backfill import backfill
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.read_ahead import ReadAhead
from feature_repo.redis_scripts import connect
from feature_repo.stream import append_events
from tests.live_shop import assert_online_equals_offline, import_history, logged_seqs, random_event


def now_us() -> int:
    return time.time_ns() // 1000


@given(begun=st.integers(0, 5), wanted=st.integers(0, 5))
def test_a_batch_is_handed_out_once_and_only_for_its_place(begun, wanted):
    ahead = ReadAhead(lambda after: f"after {after}")
    assert ahead.take(wanted) is None
    ahead.begin(begun)
    assert ahead.take(wanted) == (f"after {begun}" if begun == wanted else None)
    assert ahead.take(begun) is None
    ahead.close()


def test_a_failure_in_the_thread_is_raised_where_the_batch_is_taken():
    def fails(after):
        raise redis.ConnectionError("away")

    ahead = ReadAhead(fails)
    ahead.begin(1)
    with pytest.raises(redis.ConnectionError):
        ahead.take(1)
    assert ahead.take(1) is None
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("larder-read-ahead")]


@pytest.mark.parametrize("written", [False, True], ids=["nothing written", "answer lost"])
def test_a_batch_whose_write_fails_counts_once_though_the_next_was_read_ahead(settings, written):
    rng = random.Random(5)
    with connect(settings, timeout_ms=5000) as client:
        import_history(settings, [random_event(rng, f"h{i}", now_us() - 10**10 + i) for i in range(20)])
        backfill(settings, full=True)
        materialize(settings)
        worker = IngestWorker(settings, client, batch_events=3)
        worker.start()
        events = [random_event(rng, f"e{i}", now_us()) for i in range(20)]
        append_events(client, settings.project, events, now_us() // 1000)
        write, failures = worker._rows.write, iter([False, True, False, True, True])

        def failing(*arguments):
            fails = next(failures, False)
            if written or not fails:
                write(*arguments)
            if fails:
                raise redis.ConnectionError("cut off")
            return True

        worker._rows.write = failing
        for _ in range(20):
            try:
                worker.step()
            except redis.ConnectionError:
                worker._find_place()
        worker.flush()
        worker.close()
        assert len(logged_seqs(settings)) == 40
        assert_online_equals_offline(settings, client, now_us())
