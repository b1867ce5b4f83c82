"""What the gate judged becomes a rollout by itself, once; and the whole process beside a real MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from deployment.promotion import ControlPlane
from deployment.rollout.collected import Collected
from deployment.rollout.controller import Controller
from deployment.rollout.intake import Intake
from deployment.rollout.moves import Moves
from deployment.rollout.report import report_path
from deployment.rollout.states import Decision
from deployment.store.records import Lease
from deployment.verdict import Verdict, compare
from deployment.verdict_entries import record_verdict
from feature_repo.settings import Settings
from larder.rollout_commands import RolloutCommands
from larder.services.ports import any_free_port
from serving.signature import signing_key
from tests.judged_models import judge, registered
from tests.rollout_traffic import CANDIDATE, STABLE, START, Clock, Traffic, first_champion, tiny_profile
from tests.running_api import wait_until
from training.tracking import client


class Gate:
    """A champion, an intake, and verdicts as the test wants them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        first_champion(settings)
        self.plane = ControlPlane(settings)
        self.moves = Moves(settings, self.plane.store, signing_key(settings))
        self.stale: list[str] = []
        self.intake = self.another()
        self.at = START
        lease = self.plane.store.acquire_lease("me", 1000.0, START)
        assert lease is not None
        self.lease: Lease = lease

    def another(self) -> Intake:
        return Intake(self.plane, tiny_profile, "controller", self.stale.append)

    def judged(self, version: str, *, passed: bool = True, champion: str = "1") -> None:
        self.at += timedelta(minutes=1)
        check = compare("latency_p95", 20.0 if passed else 80.0, "<", 50.0, "ms", "as the test wants it")
        verdict = Verdict(
            self.settings.model_name, version, version * 32, self.at.isoformat(), (check,), champion_version=champion
        )
        record_verdict(self.plane.store, verdict, "gate", self.at)

    def next(self):
        self.at += timedelta(minutes=1)
        return self.intake.next(self.moves, Collected, self.at, self.lease)

    def end(self, kind: str) -> None:
        self.moves.carry_out(self.moves.running(), Decision(kind, "so"), who="controller", now=self.at)


def test_a_version_that_passed_is_tried_once(settings):
    gate = Gate(settings)
    assert gate.next() is None
    gate.judged("2")
    started = gate.next()
    assert (started.rollout.candidate, started.rollout.stable) == (CANDIDATE, STABLE)
    assert gate.plane.store.plan().canary == CANDIDATE
    assert gate.next() is None
    gate.end("roll_back")
    assert gate.next() is None
    gate.intake = gate.another()  # after a restart
    assert gate.next() is None


def test_a_version_the_gate_stopped_is_seen_with_what_stopped_it(settings):
    gate = Gate(settings)
    gate.judged("2", passed=False)
    rejected = gate.next()
    assert rejected.rollout.state == "rejected"
    assert rejected.rollout.reason == "the gate stopped version 2: latency_p95 (fail)"
    assert gate.plane.store.plan().stable == STABLE
    gate.intake = gate.another()
    assert gate.next() is None
    gate.judged("3")
    assert gate.next().rollout.candidate.model_version == "3"
    gate.judged("4", passed=False)  # no rejection hides a rollout that runs
    assert gate.next() is None
    assert gate.moves.current().rollout.active


def test_a_version_that_waited_for_another_is_judged_against_the_new_champion(settings):
    gate = Gate(settings)
    gate.judged("2")
    gate.next()
    gate.judged("3")
    assert gate.next() is None
    gate.end("advance")
    gate.end("promote")
    assert gate.next() is None
    assert gate.stale == ["3"]
    gate.judged("3", champion="2")
    assert gate.next().rollout.stable == CANDIDATE


def test_a_verdict_that_was_forged_is_not_followed(settings):
    import sqlite3

    gate = Gate(settings)
    gate.judged("2", passed=False)
    with sqlite3.connect(settings.platform_uri) as connection:
        connection.execute('UPDATE larder_ledger SET body = replace(body, \'"result":"fail"\', \'"result":"pass"\')')
    connection.close()
    assert gate.next() is None
    assert gate.plane.store.plan().release == ""


def test_a_controller_starts_watches_and_ends_by_itself(settings):
    gate = Gate(settings)
    gate.plane.store.release_lease(gate.lease)
    clock = Clock()
    controller = Controller(settings, store=gate.plane.store, intake=gate.intake, now=clock.now, clock=clock)
    traffic = Traffic(settings)
    assert controller.tick() == "idle"
    gate.judged("2")
    said = []
    while said[-1:] != ["champion"] and len(said) < 30:
        plan = gate.plane.store.plan()
        traffic.serve(plan, 150)
        clock.pass_(1)
        said.append(controller.tick())
    assert (said[0], said[-1]) == ("canary", "champion")


@pytest.fixture
def running(mlflow_settings: Settings):
    """Two registered versions, the first the champion, and `larder controller run` as a process."""
    settings = replace(mlflow_settings, admin_port=any_free_port())
    first, second = registered(settings, 2)
    plane = ControlPlane(settings)
    judge(plane, settings, "1", first)
    plane.promote("1", why="the first", judge=False)
    check = compare("latency_p95", 20.0, "<", 50.0, "ms", "as the test wants it")
    at = datetime.now(UTC).isoformat()
    record_verdict(
        plane.store, Verdict(settings.model_name, "2", second, at, (check,), champion_version="1"), "gate", START
    )
    environment = {
        **os.environ, "LARDER_REDIS_PORT": str(settings.redis_port), "LARDER_ROLLOUT_AUTO": "false",
        "LARDER_MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri, "LARDER_ADMIN_PORT": str(settings.admin_port),
        "LARDER_ADMIN_TOKEN": "the tests' own token, known to nobody else", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "larder.cli", "-p", settings.project, "--home", str(settings.home)]

    log = settings.home / "controller.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "controller", "run", "--no-gate"], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            wait_until(lambda: "controller ready" in log.read_text() or process.poll() is not None, 60)
            yield settings, plane, log
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
    assert "controller stopped" in log.read_text()


def test_the_process_with_commands_aliases_report_and_api(running, redis_url):
    settings, plane, log = running
    commands = RolloutCommands(settings)
    started = commands.start("2", "demo", "new arrivals")
    assert (started.rollout.state, started.rollout.candidate.model_version) == ("shadow", "2")
    wait_until(lambda: plane.registry.aliases() == {"champion": "1", "challenger": "2"}, 30)
    wait_until(lambda: "waiting: 0 of 100 answers of the shadow" in commands.status().reason, 20)
    request = urllib.request.Request(
        f"http://127.0.0.1:{settings.admin_port}/admin/plan",
        headers={"Authorization": "Bearer the tests' own token, known to nobody else"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        assert b'"shadow":{' in answer.read()
    commands.abort("wrong data")
    current = Moves(settings, plane.store, signing_key(settings)).current()
    assert (current.rollout.state, current.rollout.reason) == ("aborted", "wrong data")
    wait_until(lambda: plane.registry.aliases() == {"champion": "1"}, 30)
    moves = Moves(settings, plane.store, signing_key(settings))
    wait_until(lambda: moves.current().kept.reported, 30)
    mlflow, run_id = client(settings), plane.registry.version("2").run_id
    assert [file.path for file in mlflow.list_artifacts(run_id, "rollout")] == [
        f"rollout/{current.row.rollout_id}.html"
    ]
    assert "wrong data" in report_path(settings, current.row.rollout_id).read_text("utf-8")
    plane.store.verify()
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.exists(f"{settings.project}:rollout_status")
    assert datetime.fromisoformat(current.rollout.started_at).tzinfo is not None
    assert "Traceback" not in log.read_text()
