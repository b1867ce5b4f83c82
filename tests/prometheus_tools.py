"""Prometheus' programs for tests, where they are found; `make prometheus` unpacks Debian's package."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from larder.services.process import Service
from larder.services.prometheus_server import find_program, prometheus_service


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`; skips where there is none."""
    try:
        return os.fspath(find_program(Settings.load(), name))
    except UnavailableError as error:
        pytest.skip(str(error))


def hurried(settings: Settings) -> Service:
    """Prometheus as shipped, but that it asks every second and alerts do not wait before they fire."""
    directory = os.path.dirname(program("prometheus"))  # noqa: PTH120 - a part of PATH
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", directory, prepend=os.pathsep)
        service = prometheus_service(settings)
    configuration = settings.home.resolve() / "prometheus"
    changes = [
        ("prometheus.yml", r"(_interval): \S+?s\b", r"\1: 1s"),
        ("prometheus.yml", r"_timeout: \S+", "_timeout: 1s"),
    ]
    changes += [("rules/alerts.yml", r"(?m)^( +for): \S+$", r"\1: 1s")]
    for name, pattern, replacement in changes:
        path: Path = configuration / name
        text, count = re.subn(pattern, replacement, path.read_text("utf-8"))
        assert count, f"nothing to hurry in {name}"
        path.write_text(text, "utf-8")
    return service


class Asked(contextlib.AbstractContextManager["Asked"]):
    """A client of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10.0)

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an expression now."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The one sample; None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def groups(self) -> list[dict[str, Any]]:
        """All rules it has taken."""
        groups: list[dict[str, Any]] = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return groups

    def firing(self) -> set[str]:
        """Names of alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}
