"""The worker makes each check by itself: what fails is said, and the others go on; the commands say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from deployment.store.signals import SignalStore
from feature_repo.settings import Settings
from larder.services.ports import any_free_port
from larder.services.stack import settings_env
from larder.watching.worker import MonitorWorker
from tests.drifting_shop import RULES, WINDOW_MINUTES, make_drifting_shop

pytestmark = pytest.mark.faults


def larder(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "larder.cli", "monitor", *arguments]
    return subprocess.run(command, env=os.environ | settings_env(settings), capture_output=True, text=True, check=False)


def value(worker: MonitorWorker, name: str, **labels: str) -> float | None:
    return worker.metrics.registry.get_sample_value(name, labels)


def test_each_check_fails_by_itself_and_state_survives(settings: Settings, redis_url: str) -> None:
    """Redis is away: ages are unknown, and that is said; drift needs only files and the database."""
    settings = replace(settings, drift_window_minutes=WINDOW_MINUTES, drift_sample=RULES.sample, threads=1)
    shop = make_drifting_shop(settings)
    shop.serve(0)
    lonely = MonitorWorker(replace(settings, redis_port=any_free_port()), reports=False, rules=RULES)
    lonely.look(shop.end_us(1))
    assert value(lonely, "larder_monitor_problem_status", check="freshness") == 1
    assert value(lonely, "larder_monitor_problem_status", check="skew") == 1
    assert value(lonely, "larder_monitor_problem_status", check="drift") == 0
    assert value(lonely, "larder_drift_windows") == 1

    shop.serve(1)
    worker, stop = MonitorWorker(settings, reports=False, rules=RULES), threading.Event()
    stop.set()
    worker.run(stop)
    assert value(worker, "larder_drift_windows") == 1, "what the one before found is shown from the start"
    worker.look(shop.end_us(2))
    for check in ("freshness", "skew", "drift", "quality"):
        assert value(worker, "larder_monitor_problem_status", check=check) == 0
    assert value(worker, "larder_drift_windows") == 2
    assert (value(worker, "larder_quality_lists", arm="stable", segment="all") or 0) > 0
    assert value(worker, "larder_drift_alarm", kind="features") is not None
    assert (value(worker, "larder_freshness_age_seconds", subject="champion") or 0) > 0
    assert value(worker, "larder_freshness_age_seconds", subject="features") is None, "ingest never ran"
    assert {row.subject for row in SignalStore(settings).newest(10, "freshness")} == {"champion", "offline_store"}

    again = larder(settings, "drift", "--no-report", "--json")
    assert json.loads(again.stdout)["last"]["requests"] == RULES.sample, again.stderr
    aged = larder(settings, "freshness")
    assert "offline_store" in aged.stdout
    rows = larder(settings, "signals", "--all", "--kind", "drift", "--json").stdout.splitlines()
    assert json.loads(rows[0])["kind"] == "drift"
    assert "drift" in larder(settings, "signals", "--all").stdout


def test_a_project_without_a_champion_is_told_so(tmp_path: Path) -> None:
    said = larder(Settings(home=tmp_path, project="empty"), "drift")
    assert said.returncode == 1
    assert "no champion to watch" in said.stderr
    assert larder(Settings(home=tmp_path, project="empty"), "signals").stdout == "no alarm is open\n"
