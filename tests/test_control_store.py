"""Plan, ledger, rollouts, lease: committed together, one wins, nothing is rewritten unseen. On both databases."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deployment.store import database
from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerBrokenError, NewEntry, RolloutRow
from deployment.store.schema import NEWEST
from feature_repo.errors import BadInputError, ConflictError, UnavailableError
from feature_repo.settings import Settings, SettingsError
from larder.services.ports import HOST, any_free_port
from serving.plan import Plan, encode_plan
from tests.store_moves import KEY, NOW, arm, commit, entry, sql


@pytest.fixture
def embedded(tmp_path: Path) -> Settings:
    """Settings of an empty store on SQLite."""
    return Settings(home=tmp_path, project="shop")


def test_a_move_is_in_plan_and_ledger(place: Settings) -> None:
    """What was committed is what a new process reads; what is no move leaves the plan."""
    store = ControlStore(place, KEY)
    assert store.plan() is None and store.ledger() == [] and store.verify() == 0
    commit(store, 1, 0)
    commit(store, 2, 1)
    store.append(NewEntry("gate", "verdict", "judged", arm(3).bundle_id, "3", {"verdict": {"x": float("nan")}}), NOW)
    again = ControlStore(place, KEY)
    plan = again.plan()
    assert plan is not None and (plan.epoch, plan.stable, plan.published_at) == (2, arm(2), NOW)
    lines = [(e.entry, e.action, e.epoch, e.previous_version, e.model_version) for e in again.ledger()]
    assert lines == [(3, "verdict", 2, "2", "3"), (2, "promote", 2, "1", "2"), (1, "promote", 1, "", "1")]
    assert again.ledger(1)[0].body == {"verdict": {"x": "nan"}}
    assert [e.moved for e in again.ledger()] == [False, True, True]
    verdict = again.verdict(arm(3).bundle_id)
    assert verdict is not None and verdict.entry == 3 and again.verdict(arm(2).bundle_id) is None
    assert again.verify() == 3


def test_projects_share_a_database_and_nothing_else(place: Settings) -> None:
    other = replace(place, project=f"{place.project}-other")
    commit(ControlStore(place, KEY), 1, 0)
    assert ControlStore(other, KEY).plan() is None
    commit(ControlStore(other, KEY), 2, 0)
    plan = ControlStore(place, KEY).plan()
    assert plan is not None and plan.stable == arm(1)
    assert ControlStore(place, KEY).verify() == ControlStore(other, KEY).verify() == 1


def test_an_epoch_that_was_published_is_never_used_again(place: Settings) -> None:
    """A database restored from an old copy moves on above what serving has seen."""
    store = ControlStore(place, KEY)
    commit(store, 1, 0)
    assert commit(store, 2, 1, seen_epoch=41).epoch == 42
    assert commit(store, 1, 42, seen_epoch=7).epoch == 43
    assert store.verify() == 3


def test_of_many_operators_exactly_one_wins(place: Settings) -> None:
    """Eight start on an empty database at once and commit on the same epoch: one goes through, seven are told."""
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def race(version: int) -> None:
        store = ControlStore(place, KEY)
        barrier.wait()
        try:
            commit(store, version, 0)
            outcomes.append("won")
        except ConflictError as error:
            outcomes.append(f"told {error.status}")

    threads = [threading.Thread(target=race, args=(version,)) for version in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["told 409"] * 7 + ["won"]
    assert ControlStore(place, KEY).verify() == 1


_RACER = """
import sys
from pathlib import Path
from datetime import UTC, datetime
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.errors import ConflictError
from feature_repo.settings import Settings
from serving.plan import Arm, Plan

store = ControlStore(Settings(Path(sys.argv[1]), sys.argv[2], platform_url=sys.argv[3]), b"k" * 32)
arm = Arm("0" * 31 + sys.argv[4], sys.argv[4])
print("ready", flush=True)
for line in sys.stdin:
    now = datetime.now(UTC)
    try:
        entry = NewEntry("racer", "promote", "race", arm.bundle_id, arm.model_version)
        store.commit(lambda old: Plan(0, arm, now), expected_epoch=int(line), entry=entry, now=now)
        print("won", flush=True)
    except ConflictError:
        print("told", flush=True)
"""


def test_of_fifty_races_of_processes_exactly_one_wins_each(place: Settings) -> None:
    """Three processes are told the same epoch at once, fifty times."""
    arguments = [str(place.home), place.project, place.platform_url]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, *arguments, str(n)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        for n in (1, 2, 3)
    ]  # fmt: skip
    try:
        lines = [(racer.stdin, racer.stdout) for racer in racers if racer.stdin and racer.stdout]
        assert [out.readline() for _, out in lines] == ["ready\n"] * 3
        for epoch in range(50):
            for write, _ in lines:
                write.write(f"{epoch}\n")
            assert sorted(out.readline() for _, out in lines) == ["told\n", "told\n", "won\n"], epoch
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert ControlStore(place, KEY).verify() == 50


def test_a_plan_that_serving_would_refuse_is_not_committed(place: Settings) -> None:
    store = ControlStore(place, KEY)
    commit(store, 1, 0)
    with pytest.raises(BadInputError, match="buckets"):
        store.commit(lambda old: replace(old, weight=6000), expected_epoch=1, entry=entry(1), now=NOW)  # type: ignore[type-var]
    with pytest.raises(BadInputError, match="why"):
        NewEntry("me", "promote", " ")
    with pytest.raises(BadInputError, match="cannot be shown"):
        NewEntry("me", "promote", "a\x00b")
    assert store.verify() == 1


def test_rollout_and_plan_move_together(place: Settings) -> None:
    """A rollout's revision is checked in the transaction that moves the plan; where it differs, nothing moves."""
    store = ControlStore(place, KEY)
    commit(store, 1, 0)
    assert store.rollout() is None
    commit(store, 1, 1, rollout=RolloutRow("r1", "shadow", {"since": 1.5}))
    assert store.rollout() == RolloutRow("r1", "shadow", {"since": 1.5}, 1)
    saved = store.save_rollout(RolloutRow("r1", "canary", {"since": 2}, 1))
    assert saved == store.rollout() == RolloutRow("r1", "canary", {"since": 2}, 2)
    with pytest.raises(ConflictError, match="revision 2"):
        commit(store, 2, 2, rollout=RolloutRow("r1", "champion", {}, 1))
    plan = store.plan()
    assert plan is not None and plan.epoch == 2 and store.verify() == 2
    store.append(NewEntry("me", "rollout_start", "next"), NOW, rollout=RolloutRow("r2", "gated", {}))
    newest, first = store.rollout(), store.rollout("r1")
    assert newest is not None and newest.rollout_id == "r2"
    assert first is not None and first.state == "canary"
    sql(place, "UPDATE larder_rollout SET state = 'champion' WHERE project = :project AND rollout_id = 'r2'")
    with pytest.raises(LedgerBrokenError, match="rollout r2"):
        store.rollout()


def test_one_controller_at_a_time(place: Settings) -> None:
    """A lease is exclusive until it expires; whoever lost it can write nothing, whatever its clock says."""
    store = ControlStore(place, KEY)
    commit(store, 1, 0)
    first = store.acquire_lease("one", 10, NOW)
    assert first is not None and store.acquire_lease("two", 10, NOW + timedelta(seconds=9)) is None
    first = store.renew_lease(first, 10, NOW + timedelta(seconds=9))
    assert store.acquire_lease("two", 10, NOW + timedelta(seconds=11)) is None
    second = store.acquire_lease("two", 10, NOW + timedelta(seconds=20))
    assert second is not None and second.token > first.token
    writes: list[Callable[[], Any]] = [
        lambda: commit(store, 2, 1, lease=first),
        lambda: store.append(NewEntry("me", "pause", "x"), NOW, lease=first),
        lambda: store.save_rollout(RolloutRow("r", "gated", {}), lease=first),
        lambda: store.renew_lease(first, 10, NOW),
    ]
    for write in writes:
        with pytest.raises(ConflictError, match="was lost"):
            write()
    store.release_lease(first)  # of somebody else by now: nothing happens
    assert commit(store, 2, 1, lease=second).epoch == 2
    store.release_lease(second)
    third = store.acquire_lease("three", 10, NOW)
    assert third is not None and third.token > second.token


def test_a_move_that_cannot_be_logged_does_not_happen(embedded: Settings) -> None:
    """Where the ledger refuses, the plan stays."""
    store = ControlStore(embedded, KEY)
    commit(store, 1, 0)
    sql(
        embedded,
        "CREATE TRIGGER full BEFORE INSERT ON larder_ledger BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    with pytest.raises(UnavailableError, match="disk full"):
        commit(store, 2, 1)
    plan = store.plan()
    assert plan is not None and plan.stable == arm(1)


def test_the_first_version_of_the_database_is_taken_over(embedded: Settings) -> None:
    """Plan and history of the old schema are the plan and the start of the chain; a foreign plan is not made ours."""
    embedded.root.mkdir(parents=True)

    def write(key: bytes) -> None:
        with sqlite3.connect(embedded.platform_uri) as old:
            old.executescript(
                """
                CREATE TABLE plan (
                    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, body TEXT NOT NULL);
                CREATE TABLE ledger (
                    entry INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL UNIQUE, at TEXT NOT NULL,
                    who TEXT NOT NULL, action TEXT NOT NULL, why TEXT NOT NULL, bundle_id TEXT NOT NULL,
                    model_version TEXT NOT NULL, previous_version TEXT NOT NULL, verdict TEXT NOT NULL);
                """
            )
            body = encode_plan(Plan(2, arm(2), NOW), key).decode()
            old.execute("INSERT INTO plan VALUES (1, 2, ?)", [body])
            for n in (1, 2):
                row = (n, NOW.isoformat(), "me", "promote", "old", arm(n).bundle_id, str(n), str(n - 1), '{"a": 1}')
                old.execute(
                    "INSERT INTO ledger (epoch, at, who, action, why, bundle_id, model_version, previous_version, "
                    "verdict) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
        old.close()

    write(b"x" * 32)
    with pytest.raises(UnavailableError, match="LARDER_SIGNING_KEY"):
        ControlStore(embedded, KEY).plan()
    for path in embedded.root.glob("platform.db*"):
        path.unlink()
    write(KEY)
    store = ControlStore(embedded, KEY)
    plan = store.plan()
    assert plan == Plan(2, arm(2), NOW)
    assert [(e.epoch, e.model_version, e.why, e.body["verdict"]) for e in store.ledger()] == [
        (2, "2", "old", {"a": 1}),
        (1, "1", "old", {"a": 1}),
    ]
    assert commit(store, 3, 2).epoch == 3
    assert ControlStore(embedded, KEY).verify() == 3


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage_instead_of_a_database_is_said(embedded: Settings, content: bytes) -> None:
    embedded.root.mkdir(parents=True)
    embedded.platform_uri.write_bytes(content)
    with pytest.raises(UnavailableError, match=r"platform\.db"):
        ControlStore(embedded, KEY).plan()


def test_a_database_of_a_newer_version_is_left_alone(place: Settings) -> None:
    commit(ControlStore(place, KEY), 1, 0)
    try:
        sql(place, "UPDATE larder_schema SET version_num = 'm9999'")
        with pytest.raises(UnavailableError, match="m9999"):
            ControlStore(place, KEY).plan()
    finally:
        sql(place, f"UPDATE larder_schema SET version_num = '{NEWEST}'")  # noqa: S608 - a name of ours


def test_a_lock_is_not_waited_for_without_end(embedded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0.3)
    store = ControlStore(embedded, KEY)
    commit(store, 1, 0)
    holder = sqlite3.connect(embedded.platform_uri, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="locked"):
        commit(store, 2, 1)
    assert time.monotonic() - start < 5
    assert store.plan() is not None  # readers do not wait for writers
    holder.close()
    assert commit(store, 2, 1).epoch == 2


def test_a_server_that_is_not_there_is_said_at_once(embedded: Settings) -> None:
    """The password is not."""
    store = ControlStore(replace(embedded, platform_url=f"postgresql://me:secret@{HOST}:{any_free_port()}/x"), KEY)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"postgresql\+psycopg://me:\*\*\*@127") as caught:
        store.plan()
    assert time.monotonic() - start < 5 and "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="platform_url"):
        ControlStore(replace(embedded, platform_url="mysql://x/y"), KEY)


def test_a_server_that_says_nothing_is_not_waited_for(embedded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes connections and never answers."""
    monkeypatch.setattr(database, "WAIT_S", 2)
    with socket.create_server((HOST, 0)) as silent:
        url = f"postgresql://me@{HOST}:{silent.getsockname()[1]}/x"
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            ControlStore(replace(embedded, platform_url=url), KEY).plan()
        assert time.monotonic() - start < 8


def test_a_server_that_is_halted_is_not_waited_for(
    embedded: Settings, postgres: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a transaction; when it goes on, nothing was committed."""
    children = Path(f"/proc/{postgres[1]}/task/{postgres[1]}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the processes of the server")
    monkeypatch.setattr(database, "TRANSACTION_S", 1)
    store = ControlStore(replace(embedded, platform_url=postgres[0], project=f"p{time.time_ns()}"), KEY)
    commit(store, 1, 0)
    halted: list[int] = []

    def halt(old: Plan | None) -> Plan:
        halted.extend(int(pid) for pid in children.read_text().split())
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        return Plan(0, arm(2), NOW)

    start = time.monotonic()
    try:
        with pytest.raises(UnavailableError):
            store.commit(halt, expected_epoch=1, entry=entry(2), now=NOW)
        assert time.monotonic() - start < 8
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
    plan = store.plan()
    assert halted and plan is not None and plan.epoch == 1
