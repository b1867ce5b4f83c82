"""Promotion and rollback on a real MLflow: verdicts decide, one of many wins, aliases follow, MLflow may be away."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
import redis
import uvicorn

from deployment.admin_app import create_admin_app
from deployment.admin_token import admin_token, create_token
from deployment.ledger_check import verify_ledger
from deployment.promotion import ControlPlane, NotJudgedError
from deployment.store.records import LedgerBrokenError, NewEntry
from deployment.verdict_entries import recorded_verdict
from deployment.version_diff import compare_versions
from feature_repo.errors import BadInputError, ConflictError, NotFoundError
from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from serving.plan import Arm, Plan, encode_plan, load_plan, plan_key
from serving.signature import SigningKeyError, signing_key
from tests.judged_models import judge, registered
from tests.running_api import wait_until
from training.tracking import client


@pytest.fixture
def shop(mlflow_settings: Settings) -> tuple[Settings, ControlPlane, list[str]]:
    """A project with three registered versions, of which two passed the gate and the third did not."""
    bundles = registered(mlflow_settings, 3)
    plane = ControlPlane(mlflow_settings)
    for number, bundle_id in enumerate(bundles, 1):
        judge(plane, mlflow_settings, str(number), bundle_id, passed=number < 3)
    return mlflow_settings, plane, bundles


class AdminServer:
    """The control plane's API on a free port, in a thread."""

    def __init__(self, settings: Settings) -> None:
        create_token(settings)
        self.token = admin_token(settings).decode()
        self.port = any_free_port()
        config = uvicorn.Config(create_admin_app(settings), host=HOST, port=self.port, ws="none", log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())

    def client(self, **headers: str) -> httpx.Client:
        """Return a client with the token."""
        given = {"Authorization": f"Bearer {self.token}"} | headers
        return httpx.Client(base_url=f"http://{HOST}:{self.port}", headers=given, timeout=20)

    def stop(self) -> None:
        """Stop it."""
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def admin(shop: tuple[Settings, ControlPlane, list[str]]) -> Iterator[AdminServer]:
    """The API of `shop`."""
    server = AdminServer(shop[0])
    yield server
    server.stop()


def test_only_what_passed_and_is_unchanged_moves(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """The verdict in the ledger decides, on the bytes that were judged; every copy says the same afterwards."""
    settings, plane, bundles = shop
    with pytest.raises(NotFoundError, match="promote a version first"):
        plane.rollback(why="nothing there")
    assert plane.promote("3", why="failed").plan is None and plane.store.plan() is None
    promotion = plane.promote("1", why="first")
    assert promotion.plan is not None and promotion.unpublished == []
    assert plane.registry.version("1").aliases == ("champion",)
    with pytest.raises(ConflictError, match="already"):
        plane.promote("1", why="again")
    with pytest.raises(NotFoundError, match="first champion"):
        plane.rollback(why="there is no earlier one")
    with pytest.raises(ConflictError, match="epoch 1"):
        plane.promote("2", why="decided before that", expected_epoch=0)

    file = settings.bundles_dir / bundles[1] / "ranker.cbm"
    good = file.read_bytes()
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(BadInputError, match="sha256"):
        plane.promote("2", why="changed after its verdict")
    file.write_bytes(good)
    assert plane.promote("2", why="second").plan is not None

    plan, failed = plane.rollback(why="test")
    assert (plan.stable, plan.epoch, failed) == (Arm(bundles[0], "1"), 3, [])
    assert load_plan(settings.plan_path, signing_key(settings)) == plan
    with redis.Redis(HOST, settings.redis_port) as connection:
        assert json.loads(connection.get(plan_key(settings.project)) or b"{}")["content"]["epoch"] == 3
    assert plane.registry.version("1").aliases == ("champion",)
    assert [e.action for e in plane.store.ledger() if e.moved] == ["rollback", "promote", "promote"]
    with pytest.raises(NotFoundError, match="first champion"):
        plane.rollback(why="back to where it came from is not back")


def test_a_version_is_judged_against_the_champion_of_now(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """No verdict, or one against an older champion, is no verdict."""
    _, plane, bundles = shop
    assert recorded_verdict(plane.store, bundles[1], "") is not None
    known = plane.store.verdict(bundles[1])
    assert known is not None
    document = known.body["verdict"]
    entry = NewEntry("gate", "verdict", "x", bundles[1], "2", {"verdict": {**document, "champion_version": "1"}})
    plane.store.append(entry, datetime.now(UTC))
    with pytest.raises(NotJudgedError, match="larder models promote 2"):
        plane.promote("2", why="compared with 1, but there is no champion", judge=False)
    plane.promote("1", why="now it is")
    assert plane.promote("2", why="fits", judge=False).plan is not None


def test_by_hand_not_while_a_rollout_runs(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """Promotion waits for the rollout's end; a rollback ends it."""
    _, plane, bundles = shop
    plane.promote("1", why="first")
    plane.promote("2", why="second")
    now = datetime.now(UTC)
    plane.store.commit(
        lambda old: Plan(0, Arm(bundles[1], "2"), now, "r1", "salt", Arm(bundles[2], "3"), 100),
        expected_epoch=2,
        entry=NewEntry("controller", "rollout_step", "1 %", bundles[2], "3"),
        now=now,
    )
    assert plane.publish() == []
    assert plane.registry.aliases() == {"champion": "2", "challenger": "3"}
    with pytest.raises(ConflictError, match="rollout r1"):
        plane.promote("1", why="impatient")
    plan, _ = plane.rollback(why="both are bad")
    assert plan.stable == Arm(bundles[0], "1") and plan.canary is None
    assert plane.registry.aliases() == {"champion": "1"}


def test_rollback_works_with_mlflow_away(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """Bundle and history are here; the alias follows when MLflow is back, and nobody is blamed."""
    settings, plane, bundles = shop
    plane.promote("1", why="first")
    plane.promote("2", why="second")
    away = ControlPlane(replace(settings, mlflow_tracking_uri=f"http://{HOST}:{any_free_port()}"))
    start = time.monotonic()
    plan, failed = away.rollback(why="MLflow is down too")
    assert time.monotonic() - start < 20
    assert plan.stable == Arm(bundles[0], "1") and load_plan(settings.plan_path, signing_key(settings)) == plan
    assert len(failed) == 1 and "MLflow" in failed[0]
    assert plane.registry.aliases() == {"champion": "2"}
    assert plane.aliases.check(datetime.now(UTC)) == []
    assert plane.registry.aliases() == {"champion": "1"}
    assert {e.action for e in plane.store.ledger()} == {"verdict", "promote", "rollback"}


def test_an_alias_moved_by_hand_is_set_back(
    shop: tuple[Settings, ControlPlane, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Moved, added and removed aliases are noticed, reported and not followed; others are nobody's business here."""
    settings, plane, _ = shop
    mlflow, name, now = client(settings), settings.model_name, datetime.now(UTC)
    mlflow.set_registered_model_alias(name, "favourite", "3")
    plane.promote("1", why="first")
    plane.promote("2", why="second")
    before = plane.store.plan()
    assert plane.aliases.check(now) == []
    for alias, number in (("champion", "3"), ("champion", "1"), ("challenger", "1"), ("champion", "")):
        if number:
            mlflow.set_registered_model_alias(name, alias, number)
        else:
            mlflow.delete_registered_model_alias(name, alias)
        resets = ControlPlane(settings).aliases.check(now)
        assert [(one.alias, one.found) for one in resets] == [(alias, number)]
        assert plane.registry.aliases() == {"champion": "2", "favourite": "3"}
        told = plane.store.ledger(1)[0]
        assert told.action == "alias_reset" and told.body["found"] == number and not told.moved
        assert "moved by hand" in caplog.text
        assert plane.aliases.check(now) == []
    assert plane.store.plan() == before
    assert verify_ledger(settings, plane.store, signing_key(settings)) == 9


def test_an_old_copy_of_the_database_is_noticed(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """It is consistent in itself, but a newer plan was published; the next move goes above that one."""
    settings, plane, _ = shop
    plane.promote("1", why="first")
    backup = settings.home / "backup.db"
    with closing(sqlite3.connect(settings.platform_uri)) as live, closing(sqlite3.connect(backup)) as copy:
        live.backup(copy)
    plane.promote("2", why="second")
    plane.rollback(why="third")
    for path in settings.root.glob("platform.db*"):
        path.unlink()
    shutil.copy(backup, settings.platform_uri)
    restored = ControlPlane(settings)
    with pytest.raises(LedgerBrokenError, match="epoch 3 was published"):
        verify_ledger(settings, restored.store, signing_key(settings))
    promotion = restored.promote("2", why="after the accident")
    assert promotion.plan is not None and promotion.plan.epoch == 4


def test_an_old_plan_that_was_replayed_is_published_over(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    settings, plane, _ = shop
    first = plane.promote("1", why="first").plan
    second = plane.promote("2", why="second").plan
    assert first is not None and second is not None
    key = signing_key(settings)
    with redis.Redis(HOST, settings.redis_port) as connection:
        connection.set(plan_key(settings.project), encode_plan(first, key))
        settings.plan_path.write_bytes(encode_plan(first, key))
        assert plane.publish_plan() == []
        assert connection.get(plan_key(settings.project)) == encode_plan(second, key)
    assert load_plan(settings.plan_path, key) == second


_RACER = """
import sys
from deployment.promotion import ControlPlane
from feature_repo.errors import ConflictError
from feature_repo.settings import Settings

plane = ControlPlane(Settings.load())
plane.registry.versions()  # MLflow's own imports take seconds
print("ready", flush=True)
for line in sys.stdin:
    number, epoch = line.split()
    try:
        done = plane.promote(number, why="race", expected_epoch=int(epoch), judge=False)
        print("won" if done.plan else "refused", flush=True)
    except ConflictError:
        print("told", flush=True)
"""


def race(plane: ControlPlane, admin: AdminServer, rounds: int, processes: list[subprocess.Popen[str]]) -> None:
    """Let processes, and callers of the API up to four racers in all, decide on the same epoch again and again."""

    def by_process(racer: subprocess.Popen[str], number: str, epoch: int) -> str:
        assert racer.stdin is not None and racer.stdout is not None
        racer.stdin.write(f"{number} {epoch}\n")
        racer.stdin.flush()
        return racer.stdout.readline().strip()

    def by_http(number: str, epoch: int) -> str:
        body = {"version": number, "why": "race", "expected_epoch": epoch}
        with admin.client() as http:
            answer = http.post("/admin/models/promote", json=body)
        assert answer.status_code in (200, 409), answer.text
        return "won" if answer.status_code == 200 else "told"

    plane.promote("1", why="first")
    with ThreadPoolExecutor(4) as pool:
        for epoch in range(1, rounds + 1):
            number = "2" if epoch % 2 else "1"
            runs = [pool.submit(by_process, racer, number, epoch) for racer in processes]
            runs += [pool.submit(by_http, number, epoch) for _ in range(4 - len(processes))]
            assert Counter(run.result(60) for run in runs) == {"won": 1, "told": 3}, epoch
    plan = plane.store.plan()
    assert plan is not None and plan.epoch == rounds + 1
    assert plane.store.verify() == 3 + plan.epoch  # three verdicts; nobody was taken for a hand that moves aliases


def test_of_racing_callers_exactly_one_wins(shop: tuple[Settings, ControlPlane, list[str]], admin: AdminServer) -> None:
    """Four callers of the API decide on the same epoch: one moves, three get 409."""
    settings, plane, _ = shop
    race(plane, admin, 6, [])
    assert load_plan(settings.plan_path, signing_key(settings)) == plane.store.plan()
    assert plane.registry.aliases() == {"champion": "1"}


@pytest.mark.faults
def test_of_fifty_races_over_processes_and_http_exactly_one_wins_each(
    shop: tuple[Settings, ControlPlane, list[str]], admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes and two callers of the API."""
    settings, plane, _ = shop
    for name in ("home", "project", "redis_port", "redis_timeout_ms", "mlflow_tracking_uri"):
        monkeypatch.setenv(f"LARDER_{name.upper()}", str(getattr(settings, name)))
    command = [sys.executable, "-c", _RACER]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in "ab"
    ]
    try:
        assert all(racer.stdout is not None and racer.stdout.readline() == "ready\n" for racer in racers)
        race(plane, admin, 50, racers)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_the_api_reads_and_moves(shop: tuple[Settings, ControlPlane, list[str]], admin: AdminServer) -> None:
    _, plane, bundles = shop
    with admin.client() as http:
        assert http.get("/admin/plan").status_code == 404
        moved = http.post("/admin/models/promote", json={"version": "1", "why": "first"})
        assert moved.status_code == 200 and moved.json()["plan"]["epoch"] == 1 and moved.json()["unpublished"] == []
        http.post("/admin/models/promote", json={"version": "2", "why": "second", "expected_epoch": 1})
        late = http.post("/admin/models/rollback", json={"why": "late", "expected_epoch": 1})
        assert late.status_code == 409 and late.json()["error"]["code"] == "conflict"
        assert http.post("/admin/models/rollback", json={"why": "bad"}).json()["plan"]["epoch"] == 3
        assert http.get("/admin/plan").json()["stable"] == {"bundle_id": bundles[0], "model_version": "1"}
        models = http.get("/admin/models").json()
        assert models["champion"]["model_version"] == "1" and [v["version"] for v in models["versions"]] == list("321")
        moves = http.get("/admin/models/history", params={"limit": 2}).json()["moves"]
        assert [(m["action"], m["who"], m["why"]) for m in moves] == [
            ("rollback", "admin API", "bad"),
            ("promote", "admin API", "second"),
        ]
        assert http.get("/admin/ledger/verify").json() == {"intact": True, "entries": 6}
        refused = http.post("/admin/models/promote", json={"version": "3", "why": "did not pass"})
        assert refused.status_code == 409 and "not a pass" in refused.json()["error"]["message"]
        assert http.post("/admin/models/promote", json={"version": "77", "why": "x"}).status_code == 404
    assert plane.store.verify() == 6


def test_the_api_is_for_this_machine_and_the_token(
    shop: tuple[Settings, ControlPlane, list[str]], admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every refusal is in the one format and does nothing."""
    settings, plane, _ = shop
    good = {"version": "1", "why": "x"}
    cases = [
        ({"Authorization": ""}, good, 401, "unauthorized"),
        ({"Authorization": f"Bearer {admin.token}x"}, good, 401, "unauthorized"),
        ({"Authorization": f"Basic {admin.token}"}, good, 401, "unauthorized"),
        ({"Authorization": "Bearer é".encode("latin-1").decode("latin-1")}, good, 401, "unauthorized"),
        ({"Host": "shop.example.com"}, good, 403, "forbidden"),
        ({}, {"version": "1"}, 422, "bad_input"),
        ({}, {"version": "1", "why": "  "}, 422, "bad_input"),
        ({}, {"version": "1", "why": "a\u0000b"}, 422, "bad_input"),
        ({}, {"version": "../1", "why": "x"}, 422, "bad_input"),
        ({}, {"version": 1, "why": "x"}, 422, "bad_input"),
        ({}, {**good, "force": True}, 422, "bad_input"),
        ({}, {**good, "expected_epoch": True}, 422, "bad_input"),
        ({}, {**good, "why": "x" * 3000}, 422, "bad_input"),
        ({}, {**good, "why": "x" * 30_000}, 413, "too_large"),
    ]
    for headers, body, status, code in cases:
        with admin.client() as http:
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = http.post("/admin/models/promote", json=body, headers=raw)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (headers, body, answer.text)
    surrogate = b'{"version": "1", "why": "\\ud800"}'
    with admin.client() as http:
        answer = http.post("/admin/models/promote", content=surrogate, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert http.get("/docs").status_code == 404
    assert plane.store.plan() is None
    monkeypatch.setenv("LARDER_ADMIN_TOKEN", "short")
    with pytest.raises(SigningKeyError, match="admin token"):
        create_admin_app(settings, plane)
    monkeypatch.delenv("LARDER_ADMIN_TOKEN")
    with pytest.raises(SigningKeyError, match="LARDER_ADMIN_TOKEN"):
        create_admin_app(replace(settings, home=settings.home / "elsewhere"), plane)
    assert (settings.home / "admin.token").stat().st_mode & 0o777 == 0o600


def test_versions_side_by_side(shop: tuple[Settings, ControlPlane, list[str]]) -> None:
    """What differs is named: the bundle, the ranker's file, a parameter, the verdict; the same features are not."""
    settings, _, bundles = shop
    sections = {section.name: section for section in compare_versions(settings, "1", "3")}
    assert set(sections) == {"version", "parameters", "metrics", "features", "generators", "files", "verdict"}
    different = {name: [row.name for row in section.different] for name, section in sections.items()}
    assert different["version"] == ["bundle"] and different["features"] == []
    assert "ranker.cbm" in different["files"] and different["parameters"] == ["bundle"]
    assert different["verdict"] == ["passed", "ndcg_over_popularity"]
    (parameter,) = sections["parameters"].rows
    assert (parameter.first, parameter.second) == (bundles[0], bundles[2])
