"""The services a command needs, together: starts what is missing, reuses what runs, stops what it started."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from types import FrameType, TracebackType
from typing import Any, Self

from deployment.admin_token import create_token
from feature_repo.settings import Settings
from larder.services.mlflow_server import mlflow_service
from larder.services.process import RunningService, Service, read_record, start
from larder.services.redis_server import redis_service
from serving.signature import create_key

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def embeds_redis(settings: Settings) -> bool:
    """Whether Redis is ours to start: its host is this machine."""
    return settings.redis_host in _LOOPBACK


def embeds_mlflow(settings: Settings) -> bool:
    """Whether MLflow is ours to start: no other server is named."""
    return not settings.mlflow_tracking_uri


def attach(settings: Settings) -> Settings:
    """Return the settings with the ports of the services that run in `settings.home` now.

    An embedded service takes another port than the configured one if that is in use; a command that only talks to
    running services finds them by this.
    """
    names = ("redis", "mlflow", project_name(settings, "api"))
    redis, mlflow, api = (read_record(settings.home, name) for name in names)
    if redis and embeds_redis(settings):
        settings = replace(settings, redis_host="127.0.0.1", redis_port=redis.port)
    if mlflow and embeds_mlflow(settings):
        settings = replace(settings, mlflow_port=mlflow.port)
    if api:
        settings = replace(settings, api_port=api.port)
    return settings


def settings_env(settings: Settings) -> dict[str, str]:
    """Return `settings` as the environment variables that make a child process read the same."""
    values = {f"LARDER_{f.name.upper()}": str(getattr(settings, f.name)) for f in fields(settings)}
    return values | {"LARDER_HOME": str(settings.home.resolve()), "LARDER_DATA_DIR": str(settings.data_dir.resolve())}


def project_name(settings: Settings, kind: str) -> str:
    """Return the service name of a process that works for one project: several projects share Redis and MLflow."""
    return f"{kind}-{settings.project}"


def project_service(
    settings: Settings, kind: str, arguments: list[str], *, ready: Callable[[int], bool], port: int = 0
) -> Service:
    """Describe one of our own sub-commands (`larder serve`, `larder ingest run`) as a service.

    Parameters
    ----------
    settings
        Effective settings (`Stack.settings`): the process reads the same ones, from its environment.
    kind
        What it is: "api", "ingest".
    arguments
        Arguments of `larder`; "{port}" stands for the port it was given.
    ready
        Probe, given the port.
    port
        Preferred port; 0 if it does not listen.
    """
    return Service(
        name=project_name(settings, kind),
        command=lambda port: [
            sys.executable, "-m", "larder.cli", *(text.replace("{port}", str(port)) for text in arguments),
        ],
        ready=ready,
        port=port,
        env=settings_env(settings),
    )  # fmt: skip


class Stack:
    """Redis and MLflow, and whatever is started on top of them.

    Use it as a context manager. Redis is ready on entry; MLflow, whose imports take seconds, is started at the same
    time and is ready after `wait()`. On exit, on Ctrl-C and on SIGTERM what was started here is stopped, last first;
    what was found running is left alone. `settings` are the effective ones, with the actual ports.

    Parameters
    ----------
    redis, mlflow
        Which of the two are needed. External ones (`redis_host`, `mlflow_tracking_uri`) are never started.
    detach
        Leave everything running on exit, also after this process has ended.
    report
        Called with one line of text per service and event, for people.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis: bool = True,
        mlflow: bool = True,
        detach: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.services: dict[str, RunningService] = {}
        self._wanted = (redis, mlflow)
        self._detach = detach
        self._report = report or (lambda line: print(line, file=sys.stderr, flush=True))
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        redis, mlflow = self._wanted
        self._catch_signals()
        try:
            if redis and embeds_redis(self.settings):
                create_key(self.settings)  # an embedded installation makes its own
                create_token(self.settings)
                # settings say "localhost" or "::1" too, but the embedded one listens on 127.0.0.1
                running = self.start(redis_service(self.settings), wait=False)
                self.settings = replace(self.settings, redis_host="127.0.0.1", redis_port=running.port)
            if mlflow and embeds_mlflow(self.settings):
                running = self.start(mlflow_service(self.settings), wait=False)
                self.settings = replace(self.settings, mlflow_port=running.port)
            if "redis" in self.services:
                self.services["redis"].wait()
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def start(self, service: Service, *, wait: bool = True) -> RunningService:
        """Start a service on top, or find it running.

        Raises
        ------
        ConflictError
            If it already runs with other settings.
        UnavailableError
            If it ends or does not become ready; the message shows the end of its log.
        """
        running = start(service, self.settings.home, detach=self._detach)
        before = self.services.get(service.name)
        if before is not None and before.pid == running.pid:
            return before
        if before is not None:
            before.stop()  # it has died; this forgets it
        self.services[service.name] = running
        if not running.ours:
            self._report(f"{service.name}: already running, pid {running.pid} {running.url}".rstrip())
        else:
            moved = f" (port {service.port} is in use)" if running.port != service.port else ""
            self._report(f"{service.name}: starting, pid {running.pid} {running.url}{moved}".rstrip())
        return running.wait() if wait else running

    def wait(self) -> Self:
        """Wait until everything started so far is ready.

        Raises
        ------
        UnavailableError
            If a service ends or does not become ready, or an external MLflow does not answer.
        """
        for running in self.services.values():
            running.wait()
        return self

    def close(self, *, failed: bool = False) -> None:
        """Stop what was started here, last first; detached services stay unless `failed`."""
        try:
            if not self._detach or failed:
                for running in reversed(self.services.values()):
                    if running.ours:
                        running.stop()
        finally:
            self.services.clear()
            self._release_signals()

    def _catch_signals(self) -> None:
        """Make SIGTERM and SIGHUP end the program like Ctrl-C does: by an exception, through `close`."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, _exit)

    def _release_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
