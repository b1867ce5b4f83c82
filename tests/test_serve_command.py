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
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from feature_repo.settings import Settings
from larder.exposition import targets_dir
from larder.services.ports import HOST, any_free_port
from larder.services.stack import settings_env
from tests.running_api import open_shop, wait_until

ANSWERS = 'larder_requests_total{arm="stable",level="full",route="/v1/recommendations"'


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


def samples(url: str, start: str) -> dict[str, float]:
    """Sums of the samples whose line begins so, by process; empty while the API does not answer."""
    try:
        text = httpx.get(f"{url}/metrics").text
    except httpx.TransportError:
        return {}
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(start):
            number = line.partition('worker="')[2].partition('"')[0]
            found[number] = found.get(number, 0.0) + float(line.rpartition(" ")[2])
    return found


def worker_of(process: subprocess.Popen[str], number: str) -> psutil.Process:
    """The worker that holds a number."""
    workers = psutil.Process(process.pid).children(recursive=True)
    return next(one for one in workers if any(file.path.endswith(f"/{number}.lock") for file in one.open_files()))


def up(url: str) -> dict[str, float]:
    return samples(url, "larder_worker_up{")


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
        assert len(list(targets_dir(settings).glob("api-*.json"))) == 1
        process.send_signal(how)
        output, _ = process.communicate(timeout=20)
    assert process.returncode in (0, -how), output
    assert f"{url}/docs" in output
    assert "Traceback" not in output
    assert list(targets_dir(settings).glob("*.json")) == [], "who ended in order is no target of Prometheus' any more"
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
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: up(url) == {"0": 1.0, "1": 1.0})
        for n in range(60):  # each over a connection of its own: whichever process takes it
            answer = httpx.post(f"{url}/v1/recommendations", json={"user_id": f"u{n:05}"})
            assert answer.json()["level"] == "full"
        for _ in range(10):
            answers = samples(url, ANSWERS)
            assert sum(answers.values()) == 60, "every process answers for all"
            assert samples(url, "larder_ready_status") == {"0": 1.0, "1": 1.0}
        assert "2 of 2 processes answer" in httpx.get(f"{url}/status/view").text
        # One is killed: the next one takes over its number, and the other's counters stand.
        victim = max(answers, key=lambda number: answers[number])
        others = {number: count for number, count in answers.items() if number != victim}
        worker_of(process, victim).kill()
        wait_until(lambda: up(url) == {"0": 1.0, "1": 1.0} and samples(url, ANSWERS) == others, timeout_s=40)
        (lock,) = {Path(file.path) for file in worker_of(process, "0").open_files() if file.path.endswith("/0.lock")}
        process.terminate()
        output, _ = process.communicate(timeout=20)
    first, *log = output.splitlines()
    assert first.startswith("project ")
    said = [json.loads(line) for line in log]
    assert sum("serving bundle" in line["message"] for line in said) == 3  # one started twice
    assert not lock.parent.exists()
    assert list(targets_dir(settings).glob("*.json")) == []


def test_no_worker_outlives_a_killed_supervisor(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    with serving(settings, port, "--workers", "2") as process:
        wait_until(lambda: ready(f"http://127.0.0.1:{port}") or process.poll() is not None, timeout_s=40)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        met = [file.path for worker in workers for file in worker.open_files() if file.path.endswith("/0.lock")]
        process.kill()
        _, left = psutil.wait_procs(workers, timeout=15)
        for worker in left:
            worker.kill()
        assert left == []
        assert [Path(path).parent.exists() for path in met] == [False]


def test_a_port_in_use_is_said_in_one_line(settings: Settings) -> None:
    with serving(settings, settings.redis_port) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"port {settings.redis_port}" in output
    assert "Traceback" not in output


def test_a_worker_that_ends_is_replaced_and_all_stop_in_order(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    with serving(settings, port, "--workers", "2") as process:
        wait_until(lambda: ready(f"http://127.0.0.1:{port}") or process.poll() is not None, timeout_s=40)
        parent = psutil.Process(process.pid)
        first, other = parent.children()
        first.kill()
        wait_until(lambda: len({child.pid for child in parent.children()} - {first.pid}) == 2, timeout_s=20)
        assert other.is_running()
        wait_until(lambda: ready(f"http://127.0.0.1:{port}"), timeout_s=20)
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "another starts" in output
    assert "Traceback" not in output
