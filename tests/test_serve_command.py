"""`larder serve` as a process of its own: it starts, answers, and stops without losing a record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import psutil
import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from larder.services.stack import settings_env
from tests.running_api import open_shop, wait_until


@contextmanager
def serving(settings: Settings, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "larder.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(
        command, env=os.environ | settings_env(settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_in_order(settings: Settings, how: signal.Signals) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(settings, port) as process:
        wait_until(lambda: ready(url) or process.poll() is not None, timeout_s=30)
        assert httpx.get(f"{url}/livez").headers.get("server") is None
        for n in range(20):
            body = {"user_id": "u00001", "request_id": f"r{n}"}
            assert httpx.post(f"{url}/v1/recommendations", json=body).status_code == 200
        process.send_signal(how)
        output, _ = process.communicate(timeout=20)
    assert process.returncode in (0, -how), output
    assert f"{url}/docs" in output
    assert "Traceback" not in output
    logs = [path.read_text("utf-8") for path in settings.impressions_dir.rglob("*.jsonl")]
    records = [json.loads(line) for text in logs for line in text.splitlines()]
    assert [record["request_id"] for record in records] == [f"r{n}" for n in range(20)]


def test_two_workers_answer(settings: Settings) -> None:
    """Both log as the setting says."""
    settings = replace(settings, log_format="json")
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    with serving(settings, port, "--workers", "2") as process:
        wait_until(lambda: ready(f"http://127.0.0.1:{port}") or process.poll() is not None, timeout_s=40)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommendations", json={"user_id": "u00001"})
        assert answer.json()["level"] == "full"
        process.terminate()
        output, _ = process.communicate(timeout=20)
    first, *log = output.splitlines()
    assert first.startswith("project ")
    said = [json.loads(line) for line in log]
    assert sum("serving bundle" in line["message"] for line in said) == 2


def test_no_worker_outlives_a_killed_supervisor(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    with serving(settings, port, "--workers", "2") as process:
        wait_until(lambda: ready(f"http://127.0.0.1:{port}") or process.poll() is not None, timeout_s=40)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.kill()
        _, left = psutil.wait_procs(workers, timeout=15)
        for worker in left:
            worker.kill()
        assert left == []


def test_a_port_in_use_is_said_in_one_line(settings: Settings) -> None:
    with serving(settings, settings.redis_port) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"port {settings.redis_port}" in output
    assert "Traceback" not in output
