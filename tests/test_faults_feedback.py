"""Kills API, worker and Redis while people give feedback: every acknowledged verdict counts once, and is settled."""

from __future__ import annotations

import os
import time

import pytest

from feature_repo.datasets import read_events
from feature_repo.redis_scripts import connect
from feature_repo.views import DAY_US
from monitoring.live_quality.measure import Extent, measure
from tests.fault_checker import findings
from tests.fault_clients import as_feedback
from tests.fault_processes import Shop, api_service, fault_settings, worker_service
from tests.test_faults_kills import now_us, open_shop, run_kills

pytestmark = pytest.mark.faults

KILLS = 12
SEED = int(os.environ.get("LARDER_FAULTS_SEED", "11"))
VERDICTS = ("confirm", "reject")


def test_no_acknowledged_verdict_is_lost_and_lists_of_dead_processes_are_known(tmp_path):
    print(f"seed {SEED} (LARDER_FAULTS_SEED)")
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    began = time.monotonic()
    with Shop(settings, worker=worker_service(settings), api=api_service(settings)) as shop:
        open_shop(settings)
        shop.start_all()
        told = run_kills(shop, SEED, KILLS, as_feedback)
        print(f"acknowledged {len(told.acknowledged)}, refused {told.refused}, given up {len(told.given_up)}")
        with connect(settings, timeout_ms=5000) as client:
            found = findings(settings, client, told, now_us() + DAY_US)
        shop.stop("api")  # what it had answered goes to its log
        report = measure(settings, now_us(), Extent(wait_us=0))
    print(f"{len(report.settled)} kinds of fates: {report.settled}, {time.monotonic() - began:.0f} s")
    assert not found, f"seed {SEED}: " + "\n".join(found[:20])
    assert told.refused > 0
    assert len(told.acknowledged) > 100
    log = read_events(settings, columns=["event_type"])["event_type"].to_pylist()
    assert report.events("settled", "no_record", kinds=VERDICTS) == sum(log.count(kind) for kind in VERDICTS), (
        "no list of another user, none without the item"
    )
    unchecked = sum(one.events for one in report.settled if one.fate == "settled" and not one.claimed)
    assert unchecked > 0, "its process was gone when the verdict came: the log of what was served knew the list"
    checked = [one for one in report.settled if one.claimed]
    assert sum(one.rank_differs for one in checked) == 0
    confirmed = sum(group.figures["confirmed"].denominator for group in report.of("all"))
    assert 0 < confirmed <= report.events("settled", kinds=VERDICTS), "one verdict for each item of a list: the last"
