"""The gate's worker beside an MLflow that is away, slow, or answers something else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import deployment.gate_worker
from deployment.gate_worker import GateWorker
from feature_repo.settings import Settings
from larder.services.ports import HOST
from serving.plan import save_plan
from serving.signature import signing_key
from tests.running_api import plan_for

pytestmark = pytest.mark.usefixtures("mlflow_waits")


@contextmanager
def nonsense(answer: bytes, wait_s: float) -> Iterator[str]:
    """An MLflow that answers something else, or late."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(wait_s)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - the name http.server calls

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (b"<html>not MLflow</html>", 0.0),
        (b"[1, 2]", 0.0),
        (json.dumps({"model_versions": [{"version": "x", "name": 3}]}).encode(), 0.0),
        (json.dumps({"model_versions": "no"}).encode(), 0.0),
        (b"\xff\xfe\x00", 0.0),
        (b"{}", 3.0),
        (b"", -1.0),
    ],
)
def test_an_mlflow_that_is_away_or_talks_nonsense(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: bytes, wait_s: float
) -> None:
    """A look ends within its wait, says what is wrong, and nothing changes."""
    monkeypatch.setattr(deployment.gate_worker, "POLL_TIMEOUT_S", 1)
    save_plan(plan_for("0" * 32), settings.plan_path, signing_key(settings))
    before = settings.plan_path.read_bytes()
    with nonsense(answer, max(wait_s, 0.0)) as url:
        there = url if wait_s >= 0 else f"http://{HOST}:9"
        with closing(GateWorker(replace(settings, mlflow_tracking_uri=there))) as worker:
            start = time.perf_counter()
            looked = worker.run_once()
            assert time.perf_counter() - start < 2.5
    assert looked.problem and not looked.verdicts
    assert settings.plan_path.read_bytes() == before
