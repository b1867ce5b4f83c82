"""Errors at the gate that nobody foresaw: the version's own end in a verdict, the surroundings' are tried again."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import deployment.gate_worker
from deployment.blame import NotHereError, of_surroundings, surroundings, told
from deployment.checks.schema import Schema
from deployment.control_metrics import ControlMetrics
from deployment.gate_worker import LOUD_AFTER, GateWorker, Looked
from deployment.promotion import ControlPlane
from deployment.registry import Registry, Version
from deployment.rollout.gate_feed import GateFeed
from deployment.verdict import Check
from deployment.verdict_files import verdict_path
from feature_repo.errors import BadInputError, LarderError, NotFoundError, UnavailableError
from feature_repo.settings import Settings
from serving.bundle import MANIFEST, bundle_id_of
from tests.judged_models import registered
from tests.tiny_bundle import SERVICE
from training.tracking import client, register_bundle

pytestmark = pytest.mark.usefixtures("mlflow_waits")


def poisoned(settings: Settings, bundle_id: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Register a bundle whose manifest was changed, under the id that it then has."""
    made = settings.home / "made"
    shutil.copytree(settings.bundles_dir / bundle_id, made)
    manifest = json.loads((made / MANIFEST).read_text("utf-8"))
    change(manifest)
    (made / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    mlflow = client(settings)
    run = mlflow.create_run(mlflow.get_experiment_by_name(settings.project).experiment_id).info.run_id
    mlflow.log_artifacts(run, str(made), "bundle")
    register_bundle(mlflow, settings, run, bundle_id_of(manifest), SERVICE)
    shutil.rmtree(made)


def test_a_poisoned_version_ends_in_a_verdict_and_holds_up_nobody(
    mlflow_settings: Settings, services_home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real MLflow, parser and disk: errors the gate names nowhere, files that are gone, data that are not there."""
    settings = mlflow_settings
    first, _ = registered(settings, 2)
    poisoned(settings, first, lambda manifest: manifest.update(feature_service=["no", "text"]))
    poisoned(settings, first, lambda manifest: manifest["generators"].append({"name": "x", "file": "\ud800.npz"}))
    shutil.rmtree(settings.bundles_dir)
    (artefacts,) = services_home.rglob(Registry(settings).version("2").run_id)
    shutil.rmtree(artefacts)
    full = verdict_path(settings, "3").with_name(".v3.html.new")
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    monkeypatch.setattr(deployment.gate_worker, "_BACKOFF_S", (0.01, 0.01))
    with closing(GateWorker(settings)) as worker:
        looked = worker.run_once()
        assert {one.version: one.checks[0].name for one in looked.verdicts} == {"2": "security", "4": "security"}
        assert "no file" in looked.verdicts[0].checks[0].explanation
        waits = dict(looked.waiting)
        assert "import a data set first" in waits["1"], "there is no event log: not the model's doing"
        assert "No space left" in waits["3"], "a verdict that cannot be kept is none"
        full.unlink()
        (verdict,) = worker.run_once().verdicts
        assert (verdict.version, verdict.word, verdict.checks[0].name) == ("3", "failed", "error_in_loading")
        assert verdict.checks[0].explanation.startswith("TypeError: ")
        assert "error_in_loading" in Registry(settings).version("3").reason
        metrics, told = ControlMetrics(), []
        feed = GateFeed(settings, ControlPlane(settings), lambda: True, told.append, metrics.attempted)
        while (attempts := metrics.registry.get_sample_value("larder_gate_failed_attempts") or 0) < LOUD_AFTER:
            feed._look(worker)
        assert attempts == LOUD_AFTER and {one.version for one in told} == {"2", "3", "4"}
        assert [one.levelname for one in caplog.records if "5 attempts in vain" in one.message] == ["ERROR"]
        assert Registry(settings).version("1").verdict == ""
        monkeypatch.setattr(Schema, "run", odd)
        feed._look(worker)
    assert metrics.registry.get_sample_value("larder_gate_failed_attempts") == 0
    assert [one.name for one in told[-1].checks] == ["security", "error_in_schema"] and told[-1].word == "failed"
    assert "OddError: at postgresql://***@db" in told[-1].checks[1].explanation


class OddError(Exception):
    """Of a kind that nobody foresaw."""


def odd(*_: object) -> list[Check]:
    raise OddError("at postgresql://larder:geheim@db\nand more")


def test_attempts_in_vain_are_made_later_and_later(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more at once, then after twice the time each; a champion that is not there yet is waited for."""
    clock, tried = [0.0], []
    errors: list[Exception] = [OSError(errno.ENOSPC, "full")]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Registry, "versions", lambda _: [Version("1", "", "", "", ())])

    def judge(*_: object) -> None:
        tried.append(clock[0])
        raise errors[0]

    monkeypatch.setattr(GateWorker, "judge", judge)
    worker = GateWorker(settings)
    for second in range(0, 500, 5):
        clock[0] = float(second)
        looked = worker.run_once()
        assert looked.waiting[0] == ("1", "OSError: [Errno 28] full"), "it is said at every look"
    assert tried == [0, 5, 15, 35, 75, 155, 275, 395] and looked.attempts == len(tried)
    worker = GateWorker(settings)
    errors[0] = NotHereError("no champion")
    assert [worker.run_once() for _ in range(3)] == [Looked(waiting=(("1", "no champion"),))] * 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("x"), False), (RecursionError(), False), (FileNotFoundError(2, "no", "x.npz"), False),
        (OSError(errno.ENAMETOOLONG, "long"), False), (BadInputError("x"), False), (NotFoundError("x"), False),
        (OSError(errno.ENOSPC, "full"), True), (PermissionError(errno.EACCES, "no"), True), (MemoryError(), True),
        (ConnectionResetError(), True), (redis.ConnectionError(), True), (duckdb.IOException("x"), True),
        (UnavailableError("x"), True), (NotHereError("x"), True), (sqlite3.OperationalError("locked"), True),
    ],
)  # fmt: skip
def test_whose_fault(error: Exception, expected: bool) -> None:
    """By its kind, also where it is only the cause of another; what is done without a version is never its fault."""
    assert of_surroundings(error) is expected
    caused = BadInputError("the bundle cannot be loaded")
    caused.__cause__ = error
    assert of_surroundings(caused) is expected
    said = "^x$" if isinstance(error, LarderError) else "could not read: "
    with pytest.raises(UnavailableError, match=said), surroundings("read"):
        raise error


@given(st.text(st.characters(exclude_categories=()), max_size=400), st.sampled_from([ValueError, BadInputError]))
def test_what_is_told_can_be_written(text: str, kind: type[Exception]) -> None:
    """In one line, whatever it holds."""
    line = told(kind(f"{text}postgresql://me:pw@host password=pw"))
    assert len(line.encode().splitlines()) <= 1 and ("pw" not in line or "pw" in text)
