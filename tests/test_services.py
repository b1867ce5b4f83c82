"""The embedded services: real processes are started, found again, moved to other ports, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from feature_repo.errors import BadInputError, ConflictError, UnavailableError
from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port, redis_pong
from larder.services.process import Record, Service, read_record, record_path, records, start, stop
from larder.services.redis_server import find_redis_server, redis_service
from larder.services.stack import Stack, attach, project_service, settings_env


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """Settings under which nothing runs yet."""
    return Settings(home=tmp_path / "home", redis_port=any_free_port(), mlflow_tracking_uri="http://127.0.0.1:9")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen]:
    """A process that is none of our business."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def script(text: str, **options) -> Service:
    """A service that runs a few lines of Python and counts as ready at once."""
    defaults = {"name": "script", "ready": lambda _: True}
    return Service(**defaults | options, command=lambda port: [sys.executable, "-c", text, str(port)])


def quiet(line: str) -> None:
    """Report nothing."""


def test_redis_keeps_events_safe(own: Settings) -> None:
    with Stack(own, report=quiet) as stack, redis.Redis(HOST, stack.settings.redis_port) as client:
        conf = client.config_get("*")
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: conf[name] for name in wanted} == wanted
        assert conf["bind"] == "127.0.0.1"
        client.set("kept", "1")
    with Stack(own, report=quiet) as stack, redis.Redis(HOST, stack.settings.redis_port) as client:
        assert client.get("kept") == b"1"


def test_a_port_in_use_by_somebody_else_is_left_alone_and_reported(own: Settings) -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", own.redis_port)), Stack(own, report=lines.append) as stack:
        assert stack.settings.redis_port != own.redis_port
        assert redis_pong(stack.settings.redis_port)
        assert attach(own).redis_port == stack.settings.redis_port
    assert f"port {own.redis_port} is in use" in lines[0]
    assert attach(own) == own


def test_what_runs_is_reused_and_only_its_owner_stops_it(own: Settings) -> None:
    with Stack(own, report=quiet) as first:
        pid = first.services["redis"].pid
        with Stack(own, report=quiet) as second:
            assert second.services["redis"].pid == pid
            assert second.settings == first.settings
        assert runs(pid)
    assert not runs(pid)
    assert records(own.home) == []


def test_other_settings_than_the_running_ones_are_a_conflict(own: Settings) -> None:
    with Stack(own, report=quiet):
        with (
            pytest.raises(ConflictError, match="larder services down redis"),
            Stack(replace(own, redis_appendfsync="always"), report=quiet),
        ):
            pass
        api = project_service(own, "api", ["settings"], ready=lambda _: True)
        other = project_service(replace(own, seed=7), "api", ["settings"], ready=lambda _: True)
        assert api.fingerprint(1) != other.fingerprint(1)


def test_a_service_that_dies_or_hangs_at_start_shows_its_log(own: Settings) -> None:
    dies = script("print('no such file: plan'); raise SystemExit(3)", ready=lambda _: False)
    with pytest.raises(UnavailableError, match=r"(?s)ended before it was ready.*no such file: plan"):
        start(dies, own.home).wait()
    hangs = script("import time; print('waiting'); time.sleep(60)", ready=lambda _: False, deadline_s=0.5)
    running = start(hangs, own.home)
    with pytest.raises(UnavailableError, match=r"(?s)was not ready after.*waiting"):
        running.wait()
    running.stop()
    missing = Service(name="missing", command=lambda _: ["/no/such/program"], ready=lambda _: False)
    with pytest.raises(UnavailableError, match="cannot run /no/such/program"):
        start(missing, own.home).wait()


def test_a_stale_pid_is_neither_reused_nor_killed(own: Settings, bystander: subprocess.Popen) -> None:
    stale = Record("redis", bystander.pid, 1.0, own.redis_port, "", redis_service(own).fingerprint(own.redis_port), "")
    record_path(own.home, "redis").parent.mkdir(parents=True)
    record_path(own.home, "redis").write_text(json.dumps(asdict(stale)))
    assert read_record(own.home, "redis") is None
    assert stop(stale, own.home) is False
    with Stack(own, report=quiet) as stack:
        assert stack.services["redis"].ours
    assert bystander.poll() is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "redis"}', "\x00"])
def test_a_broken_record_counts_as_none(own: Settings, content: str) -> None:
    record_path(own.home, "redis").parent.mkdir(parents=True)
    record_path(own.home, "redis").write_text(content)
    assert records(own.home) == []


def test_a_service_that_ignores_sigterm_is_killed(own: Settings) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    running = start(script(deaf), own.home)
    assert eventually(lambda: "deaf" in running.record.tail())
    running.stop(grace_s=0.2)
    assert not runs(running.pid)


def test_a_detached_service_outlives_the_process_that_started_it(own: Settings) -> None:
    code = f"""
from pathlib import Path
from feature_repo.settings import Settings
from larder.services.stack import Stack
with Stack(Settings(home=Path({str(own.home)!r}), redis_port={own.redis_port}), mlflow=False, detach=True):
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (record,) = records(own.home)
    assert redis_pong(record.port)
    assert stop(record, own.home)
    assert not runs(record.pid)


def test_settings_reach_a_child_process_unchanged(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(own, project="näh", seed=17, mlflow_tracking_uri="", home=own.home.resolve())
    for name, value in settings_env(changed).items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == replace(changed, data_dir=changed.data_dir.resolve())


def test_an_impossible_policy_is_a_clear_error(own: Settings) -> None:
    with pytest.raises(BadInputError, match="always, everysec, no"):
        redis_service(replace(own, redis_appendfsync="sometimes"))


def test_redis_6_refuses_the_files_of_redis_7(own: Settings) -> None:
    if find_redis_server()[1] >= (7, 0):
        pytest.skip("the redis-server here reads them")
    (own.home / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="was written by Redis 7"):
        redis_service(own)


def test_mlflow_is_the_real_server(mlflow_server: str) -> None:
    body = {"name": "a real experiment"}
    with httpx.Client(base_url=f"{mlflow_server}/api/2.0/mlflow") as client:
        made = client.post("/experiments/create", json=body).raise_for_status().json()
        found = client.get("/experiments/get", params={"experiment_id": made["experiment_id"]}).json()["experiment"]
    assert found["name"] == body["name"]
    assert found["artifact_location"].startswith("mlflow-artifacts:")  # through the server: clients need no directory


def start_parent(own: Settings) -> tuple[subprocess.Popen, list[int]]:
    """Start a process with a stack of Redis and a service that has a child; return it and the pids of the three."""
    code = f"""
import sys, time
from pathlib import Path
from feature_repo.settings import Settings
from larder.services.process import Service
from larder.services.stack import Stack
nested = "import subprocess, sys; p = subprocess.Popen(['sleep', '30']); print(p.pid, flush=True); p.wait()"
worker = Service(name="worker", command=lambda port: [sys.executable, "-c", nested], ready=lambda port: True)
with Stack(Settings(home=Path({str(own.home)!r}), redis_port={own.redis_port}), mlflow=False) as stack:
    stack.start(worker)
    print("up", flush=True)
    time.sleep(30)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    log = own.home / "logs" / "worker.log"
    assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    return parent, [*(record.pid for record in records(own.home)), int(log.read_text())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_sigterm_stop_everything(own: Settings, number: int) -> None:
    parent, pids = start_parent(own)
    with parent:
        parent.send_signal(number)
        assert parent.wait(10) != 0
    assert len(pids) == 3
    assert eventually(lambda: not any(map(runs, pids)), 2.0)
    assert records(own.home) == []


@pytest.mark.faults
def test_kill_9_of_the_parent_leaves_no_orphan(own: Settings) -> None:
    parent, pids = start_parent(own)
    with parent:
        parent.kill()
    assert len(pids) == 3
    assert eventually(lambda: not any(map(runs, pids)))
    with Stack(own, report=quiet) as stack:  # and the next run is not disturbed
        assert stack.settings.redis_port == own.redis_port


@pytest.mark.faults
def test_kill_9_of_a_service_takes_its_children_along(own: Settings) -> None:
    parent, pids = start_parent(own)
    with parent:
        worker = read_record(own.home, "worker")
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        assert eventually(lambda: not runs(pids[-1]))
        parent.terminate()


@pytest.mark.faults
def test_a_killed_redis_is_started_again_with_its_data(own: Settings) -> None:
    own = replace(own, redis_appendfsync="always")
    with Stack(own, report=quiet) as stack:
        with redis.Redis(HOST, stack.settings.redis_port) as client:
            client.xadd("events", {"n": 1})
        os.kill(stack.services["redis"].pid, signal.SIGKILL)
        assert eventually(lambda: read_record(own.home, "redis") is None)
        again = stack.start(redis_service(own))
        assert stack.start(redis_service(own)) is again
        with redis.Redis(HOST, again.port) as client:
            assert client.xlen("events") == 1
