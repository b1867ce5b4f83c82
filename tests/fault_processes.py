"""Runs Redis, the ingest worker and the API as real processes, kills them, and starts again what has ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from feature_repo.settings import Settings
from larder.services.ports import any_free_port
from larder.services.process import RunningService, Service, start
from larder.services.redis_server import redis_service
from larder.services.stack import project_service

_ROOT = Path(__file__).parent.parent


def fault_settings(home: Path, **fields: Any) -> Settings:
    """Settings of a shop whose Redis is its own, to be killed."""
    known = {
        "project": "shop",
        "redis_port": any_free_port(),
        "api_port": any_free_port(),
        "item_refresh_ms": 100,
        "user_events_per_s": 0,
    }
    known["user_events_per_s"] = 0  # a dozen users send what a shop's thousands would
    return Settings(home=home, mlflow_tracking_uri="http://127.0.0.1:9", **(known | fields))


def worker_service(settings: Settings) -> Service:
    """`larder ingest run`; ready when it says so."""
    log = settings.home.resolve() / "logs" / f"ingest-{settings.project}.log"

    def ready(_port: int) -> bool:
        return log.is_file() and "ingest ready" in log.read_text("utf-8", errors="replace")

    return project_service(settings, "ingest", ["ingest", "run"], ready=ready)


def api_service(settings: Settings) -> Service:
    """`larder serve`; ready when it takes events, for which it needs the items."""

    def ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0).json()["items"] is not None
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    return project_service(settings, "api", ["serve", "--port", "{port}"], ready=ready, port=settings.api_port)


def without(defence: str, service: Service) -> Service:
    """The same service with one defence removed (tests/without_defence.py)."""

    def command(port: int) -> list[str]:
        usual = service.command(port)
        return [sys.executable, "-m", "tests.without_defence", defence, *usual[usual.index("larder.cli") + 1 :]]

    return replace(service, command=command, cwd=_ROOT)


class Shop:
    """Processes by a short name, watched as systemd or Kubernetes would: whatever ends is started again.

    Use it as a context manager: what it started is gone at the end. `wait_until` and `pause` watch while they wait.
    Redis has a home of its own (`redis_settings`), so that others do not find it but by `settings.redis_port`, which
    may be that of a proxy.
    """

    def __init__(self, settings: Settings, *, redis_port: int | None = None, **services: Service) -> None:
        self.settings = settings
        self.redis_settings = replace(
            settings, home=settings.home.with_name("redis-home"), redis_port=redis_port or settings.redis_port
        )
        self.services = {"redis": redis_service(self.redis_settings), **services}
        self.running: dict[str, RunningService] = {}
        self.starts = dict.fromkeys(self.services, 0)
        self.stopped: set[str] = set()

    def __enter__(self) -> Self:
        try:
            self.start("redis").wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for running in reversed(self.running.values()):
            running.stop()
        self.running.clear()

    def start(self, name: str) -> RunningService:
        self.stopped.discard(name)
        self.starts[name] += 1
        home = self.redis_settings.home if name == "redis" else self.settings.home
        self.running[name] = start(self.services[name], home)
        port = self.running[name].port
        assert port == self.services[name].port, f"somebody took the port of {name}"
        return self.running[name]

    def start_all(self) -> None:
        for name in self.services:
            if name not in self.running:
                self.start(name)
        self.wait_ready(*self.services)

    def ended(self, name: str) -> bool:
        child = self.running[name]._child
        return child is not None and child.poll() is not None

    def log(self, name: str) -> str:
        return Path(self.running[name].record.log).read_text("utf-8", errors="replace")

    def previous_log(self, name: str) -> str:
        """What the run before said."""
        path = Path(self.running[name].record.log + ".1")
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.running[name].pid, number)

    def memory_mb(self, name: str) -> float:
        return psutil.Process(self.running[name].pid).memory_info().rss / 1e6

    def cpu_s(self, name: str) -> float:
        times = psutil.Process(self.running[name].pid).cpu_times()
        return times.user + times.system

    def kill(self, name: str) -> None:
        """kill -9, and start again at once."""
        self.signal(name, signal.SIGKILL)
        self.running[name]._child.wait()
        self.keep_running()

    def stop(self, name: str, *, grace_s: float = 20.0) -> None:
        """Stop one in order; it stays away until it is started."""
        self.stopped.add(name)
        self.running[name].stop(grace_s)

    def keep_running(self) -> None:
        for name in list(self.running):
            if name not in self.stopped and self.ended(name):
                self.running[name].stop()
                self.start(name)

    def pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.keep_running()
            time.sleep(min(left, 0.02))

    def wait_until(self, what: str, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Return the first true value of the condition."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"did not happen within {timeout_s:.0f} s: {what}"
            self.pause(0.05)
        return value

    def is_ready(self, name: str) -> bool:
        return not self.ended(name) and self.services[name].ready(self.running[name].port)

    def wait_ready(self, *names: str) -> None:
        for name in names:
            self.wait_until(f"{name} is ready", lambda name=name: self.is_ready(name), 120)
