"""Prometheus, where there is one: on PATH, or unpacked by `make prometheus`. It watches every process of a home."""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Final

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from larder.exposition import targets_dir
from larder.services.ports import HOST, http_ok
from larder.services.process import Service

#: Days for which samples are kept: long enough for the slow windows of alerts, and a look at last week.
_KEPT: Final = "15d"


def find_program(settings: Settings, name: str) -> Path:
    """Return a program of Prometheus: `prometheus` or `promtool`.

    Raises
    ------
    UnavailableError
        If it is not here.
    """
    unpacked = settings.home.resolve() / "tools" / "prometheus" / "usr" / "bin"
    found = shutil.which(name) or shutil.which(name, path=os.fspath(unpacked))
    if found is None:
        raise UnavailableError(
            f"no {name} on PATH or in {unpacked}; `make prometheus` unpacks Debian's package there, without root"
        )
    return Path(found)


def write_configuration(settings: Settings) -> Path:
    """Copy configuration and rules into `<home>/prometheus`; return the directory."""
    directory = settings.home.resolve() / "prometheus"
    (directory / "rules").mkdir(parents=True, exist_ok=True)
    targets_dir(settings).mkdir(exist_ok=True)
    (directory / "alertmanagers").mkdir(exist_ok=True)
    source = files("monitoring") / "prometheus"
    for name in ("prometheus.yml", "rules/recording.yml", "rules/alerts.yml"):
        (directory / name).write_text((source / name).read_text("utf-8"), "utf-8")
    return directory


def prometheus_service(settings: Settings) -> Service:
    """Describe the Prometheus of `settings.home`, and write its configuration.

    Raises
    ------
    UnavailableError
        If there is no Prometheus here.
    """
    program, directory = find_program(settings, "prometheus"), write_configuration(settings)
    return Service(
        name="prometheus",
        command=lambda port: [
            os.fspath(program),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--storage.tsdb.retention.time={_KEPT}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=warn",
        ],
        ready=lambda port: http_ok("/-/ready", port),
        port=settings.prometheus_port,
        cwd=directory,
    )
