"""Plan and ledger: committed together, one operator wins, history stays."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment.control_store import ControlStore
from feature_repo.errors import ConflictError
from serving.plan import Arm, Plan

KEY = b"k" * 32

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def arm(version: int) -> Arm:
    return Arm(f"{version:032x}", str(version))


def commit(store: ControlStore, version: int, epoch: int) -> Plan:
    return store.commit(arm(version), expected_epoch=epoch, action="promote", who="me", why="x", now=NOW, verdict={})


def test_a_move_is_in_plan_and_ledger(tmp_path: Path) -> None:
    """What was committed is what a new process reads."""
    store = ControlStore(tmp_path / "platform.db", KEY)
    assert store.plan() is None and store.history() == []
    commit(store, 1, 0)
    commit(store, 2, 1)
    again = ControlStore(tmp_path / "platform.db", KEY)
    plan = again.plan()
    assert plan is not None and (plan.epoch, plan.stable) == (2, arm(2))
    assert [(m.epoch, m.previous_version, m.model_version) for m in again.history()] == [(2, "1", "2"), (1, "", "1")]


def test_of_many_operators_exactly_one_wins(tmp_path: Path) -> None:
    """Eight commits decided on the same epoch: one goes through, seven are told."""
    store = ControlStore(tmp_path / "platform.db", KEY)
    commit(store, 1, 0)
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def race(version: int) -> None:
        barrier.wait()
        try:
            commit(ControlStore(tmp_path / "platform.db", KEY), version, 1)
            outcomes.append("won")
        except ConflictError:
            outcomes.append("told")

    threads = [threading.Thread(target=race, args=(version,)) for version in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["told"] * 7 + ["won"]
    assert len(store.history()) == 2


def test_a_move_that_cannot_be_logged_does_not_happen(tmp_path: Path) -> None:
    """Where the ledger refuses, the plan stays."""
    path = tmp_path / "platform.db"
    store = ControlStore(path, KEY)
    commit(store, 1, 0)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    connection.commit()
    connection.close()
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        commit(store, 2, 1)
    plan = store.plan()
    assert plan is not None and plan.stable == arm(1)
