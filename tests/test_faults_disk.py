"""The disk of the offline log is full: features stay live, nothing is lost, and the log completes itself."""

from __future__ import annotations

import resource
import time

import pytest

from feature_repo.ingest import LOG_EVENTS, IngestStatus, read_status
from feature_repo.ingest_log import log_watermark
from feature_repo.online_keys import events_key
from feature_repo.redis_scripts import connect
from feature_repo.stream import seq_from
from feature_repo.views import DAY_US
from tests.fault_checker import findings
from tests.fault_clients import Customer, into_stream, together
from tests.fault_processes import Shop, fault_settings, worker_service
from tests.test_faults_kills import all_folded, now_us

pytestmark = pytest.mark.faults


def test_what_the_log_cannot_take_waits_in_the_stream(tmp_path):
    """A limit on the size of files makes the system refuse writes with EFBIG, as a full disk does with ENOSPC."""
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    unlimited = resource.RLIM_INFINITY
    customers = [Customer(f"client{n}", into_stream(settings), 30 + n, pause_s=0.01, largest=60) for n in range(2)]
    with Shop(settings, worker=worker_service(settings)) as shop, connect(settings, timeout_ms=5000) as client:
        shop.start_all()
        for customer in customers:
            customer.start()

        def status() -> IngestStatus:
            return read_status(client, settings.project)

        def waiting() -> set[int]:
            return {seq_from(stream_id) for stream_id, _ in client.xrange(events_key(settings.project))}

        shop.wait_until("the log is written", lambda: log_watermark(settings.events_dir) > 0)
        pid = shop.running["worker"].pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited))
        shop.wait_until("the log cannot be written", lambda: status().log_errors > 0)
        before, files, cpu, began = (
            status(),
            set(settings.events_dir.rglob("*")),
            shop.cpu_s("worker"),
            time.monotonic(),
        )
        logged = log_watermark(settings.events_dir)
        # So many that what waits would be due for the log by its number alone.
        shop.wait_until("many events wait", lambda: status().events - before.events > LOG_EVENTS + 2_000)
        shop.pause(2.0)
        busy, elapsed = shop.cpu_s("worker") - cpu, time.monotonic() - began
        during = status()
        assert during.lag_ms < 2_000, "features stay live"
        assert log_watermark(settings.events_dir) == logged
        acknowledged = {seq for customer in customers for seq in list(customer.told.acknowledged.values())}
        assert {seq for seq in acknowledged if seq > logged} <= waiting(), "what is not logged is not trimmed"
        assert during.log_errors - before.log_errors < 2 * elapsed, "it tries again now and then"
        assert busy < 0.7 * elapsed
        assert set(settings.events_dir.rglob("*")) == files, "nothing is left on a disk that is full"

        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        shop.wait_until("the log goes on by itself", lambda: log_watermark(settings.events_dir) >= during.watermark)
        told = together(customers)
        shop.wait_until("all is folded", lambda: all_folded(client, settings))
        shop.wait_until("all is logged", lambda: log_watermark(settings.events_dir) == max(told.acknowledged.values()))
        shop.wait_until("the stream is trimmed, in whole nodes", lambda: len(waiting()) <= 200)
        assert shop.starts["worker"] == 1
        shop.stop("worker")
        assert not findings(settings, client, told, now_us() + DAY_US)


def test_a_worker_killed_while_the_disk_is_full_loses_nothing(tmp_path):
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    customer = Customer("client", into_stream(settings), 33, pause_s=0.01)
    with Shop(settings, worker=worker_service(settings)) as shop, connect(settings, timeout_ms=5000) as client:
        shop.start_all()
        customer.start()
        resource.prlimit(shop.running["worker"].pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        shop.wait_until("the log fails", lambda: read_status(client, settings.project).log_errors > 0)
        shop.kill("worker")
        shop.wait_ready("worker")
        told = together([customer])
        shop.wait_until("all is folded", lambda: all_folded(client, settings))
        shop.stop("worker")
        assert not findings(settings, client, told, now_us() + DAY_US)
