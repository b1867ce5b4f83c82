"""Figures of benches and checks as `.larder/results/<name>.json`, with targets and what was missed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from feature_repo.settings import Settings

_HOLDS = {
    ">=": lambda value, target: value >= target,
    ">": lambda value, target: value > target,
    "<=": lambda value, target: value <= target,
    "<": lambda value, target: value < target,
    "==": lambda value, target: value == target,
}


def write_results(
    settings: Settings, name: str, figures: Mapping[str, float], targets: Mapping[str, tuple[str, float]]
) -> tuple[Path, list[str]]:
    """Write the figures of one bench or check.

    Parameters
    ----------
    figures
        What was measured; ratios rather than absolute times where a comparison is the point.
    targets
        Figure name to (operator, value).

    Returns
    -------
    tuple
        The file, and the names of the figures that miss their target (a figure that is NaN or absent misses).
    """
    missed = [key for key, (op, value) in targets.items() if not _holds(figures.get(key), op, value)]
    document: dict[str, Any] = {
        "name": name,
        "figures": {key: round(float(value), 6) for key, value in figures.items()},
        "targets": {key: {"op": op, "value": value} for key, (op, value) in targets.items()},
        "missed": missed,
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "python": platform.python_version(),
            "system": platform.system(),
        },
    }
    path = settings.results_dir / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return path, missed


def _holds(value: float | None, op: str, target: float) -> bool:
    return value is not None and bool(_HOLDS[op](value, target))
