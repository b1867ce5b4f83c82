"""Kills the control plane in the middle of its commits: plan, ledger and rollout are before or after, never between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from deployment.store.control_store import ControlStore
from feature_repo.settings import Settings

pytestmark = pytest.mark.faults

KEY = b"k" * 32
KILLS = 6
SEED = int(os.environ.get("LARDER_FAULTS_SEED", "7"))

_COMMITTER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry, RolloutRow
from feature_repo.settings import Settings
from serving.plan import Arm, Plan

store = ControlStore(Settings(Path(sys.argv[1]), sys.argv[2], platform_url=sys.argv[3]), b"k" * 32)
plan, rollout = store.plan(), store.rollout()
epoch, revision = plan.epoch if plan else 0, rollout.revision if rollout else 0
while True:
    now, arm = datetime.now(UTC), Arm(f"{epoch + 1:032x}", str(epoch + 1))
    entry = NewEntry("victim", "promote", "again", arm.bundle_id, arm.model_version)
    row = RolloutRow("r", "canary", {"epoch": epoch + 1}, revision)
    store.commit(lambda old: Plan(0, arm, now), expected_epoch=epoch, entry=entry, now=now, rollout=row)
    epoch, revision = epoch + 1, revision + 1
    print(epoch, flush=True)
"""


def test_a_kill_leaves_before_or_after(place: Settings) -> None:
    """Whatever was acknowledged is there, at most one commit more, and everything belongs together."""
    rng = random.Random(SEED)
    arguments = [str(place.home), place.project, place.platform_url]
    epochs = [0]
    for _ in range(KILLS):
        command = [sys.executable, "-c", _COMMITTER, *arguments]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert victim.stdout is not None
        told = [int(victim.stdout.readline())]
        time.sleep(rng.uniform(0, 0.2))
        victim.kill()
        told += [int(line) for line in victim.communicate()[0].splitlines() if line]
        store = ControlStore(place, KEY)
        count, plan, rollout = store.verify(), store.plan(), store.rollout()
        assert plan is not None and rollout is not None
        assert plan.epoch in (told[-1], told[-1] + 1)
        assert count == plan.epoch == rollout.revision == rollout.body["epoch"] == int(plan.stable.model_version)
        assert told == list(range(epochs[-1] + 1, told[-1] + 1))
        epochs.append(plan.epoch)
    assert epochs[-1] > KILLS
