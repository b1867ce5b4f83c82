"""Two versions side by side: parameters, metrics, features, generators, files and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployment.registry import Registry, Version
from deployment.store.control_store import ControlStore
from feature_repo.settings import Settings
from serving.bundle import read_manifest
from serving.signature import signing_key


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of both versions, in words; "-" where a version does not have it."""

    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Section:
    """Things of one kind, in the order of the first version."""

    name: str
    rows: tuple[Row, ...]

    @property
    def different(self) -> tuple[Row, ...]:
        """Rows in which the versions differ."""
        return tuple(row for row in self.rows if row.first != row.second)


def compare_versions(settings: Settings, first: str, second: str) -> list[Section]:
    """Compare two registered versions.

    Raises
    ------
    NotFoundError
        If there is no such version.
    UnavailableError
        If MLflow or the control plane's database is away.
    """
    registry, store = Registry(settings), ControlStore(settings, signing_key(settings))
    sides = [_sections(registry, store, registry.version(number)) for number in (first, second)]
    return [Section(name, _rows(sides[0][name], sides[1][name])) for name in sides[0]]


def _sections(registry: Registry, store: ControlStore, version: Version) -> dict[str, dict[str, str]]:
    """Everything worth comparing of one version, as words by section and name."""
    params, metrics = registry.run_figures(version)
    manifest = read_manifest(registry.fetch_bundle(version))
    verdict = store.verdict(version.bundle_id)
    return {
        "version": {
            "bundle": version.bundle_id,
            "feature service": f"{manifest['feature_service']} ({manifest['feature_service_hash']})",
            "ranker": str(manifest["ranker"]["kind"]),
        },
        "parameters": params,
        "metrics": {name: f"{value:.6g}" for name, value in metrics.items()},
        "features": {name: str(place) for place, name in enumerate(manifest["features"], 1)},
        "generators": {one["name"]: _settings_of(one) for one in manifest["generators"]},
        "files": {name: f"{file['size']:,} bytes {file['sha256'][:12]}" for name, file in manifest["files"].items()},
        "verdict": {} if verdict is None else _checks(verdict.body["verdict"]),
    }


def _settings_of(generator: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in generator.items() if name not in ("name", "file")) or "yes"


def _checks(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict's checks; the word first."""
    lines = {one["name"]: f"{one['result']} {_number(one['value'])} {one['unit']}".strip() for one in verdict["checks"]}
    return {"passed": "yes" if verdict["passed"] else "no", **lines}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _rows(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Row, ...]:
    return tuple(Row(name, first.get(name, "-"), second.get(name, "-")) for name in {**first, **second})
