"""Shows a process's metrics on loopback, and tells Prometheus where: one file of targets per process.

Prometheus reads the directory of those files (file_sd). A process that was killed leaves its file, so that Prometheus
says that it is down; the next one of its role removes it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import psutil
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings

Role = Literal["api", "ingest", "controller", "monitor"]
_TRIES: Final = 100


def targets_dir(settings: Settings) -> Path:
    """Where Prometheus looks for what to ask."""
    return settings.home / "prometheus" / "targets"


@contextmanager
def exposed(settings: Settings, role: Role, registry: CollectorRegistry, first_port: int) -> Iterator[int]:
    """Serve a registry over HTTP while the context lasts; yields the port, the first free one from `first_port`.

    Raises
    ------
    UnavailableError
        If none of 100 ports is free, or there is no such address here.
    """
    ProcessCollector(registry=registry)
    disable_created_metrics()  # type: ignore[no-untyped-call] # a second series per counter, which nothing asks for
    for port in range(first_port, min(first_port + _TRIES, 65536)):
        try:
            server, thread = start_http_server(port, settings.metrics_host, registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise UnavailableError(
                f"the metrics of {role} cannot be shown on {settings.metrics_host} port {port}: {error.strerror}; see "
                "setting metrics_host"
            ) from None
        break
    else:
        raise UnavailableError(
            f"no port from {first_port} on is free for the metrics of {role}; choose others in the settings"
        )
    try:
        with announced(settings, role, settings.metrics_host, port):
            yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


@contextmanager
def announced(settings: Settings, role: Role, host: str, port: int) -> Iterator[None]:
    """Tell Prometheus while the context lasts that this process has metrics on a port; not for port 0, any free one."""
    if port == 0:
        yield
        return
    directory = targets_dir(settings)
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob(f"{role}-{settings.project}-*.json"):
        if not _lives(path):
            path.unlink(missing_ok=True)
    host = settings.metrics_name or host
    host = "127.0.0.1" if host in {"0.0.0.0", "::", "localhost"} else host  # noqa: S104 - told apart, not bound
    labels = {"job": f"larder-{role}", "project": settings.project, "__pid": str(os.getpid())}
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = directory / f"{role}-{settings.project}-{port}.json"
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps([{"targets": [address], "labels": labels}]), "utf-8")
    scratch.replace(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _lives(path: Path) -> bool:
    """Whether the process that wrote a file of targets still runs."""
    try:
        return psutil.pid_exists(int(json.loads(path.read_text("utf-8"))[0]["labels"]["__pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return False
