"""What the gate demands of a model: read from one file, with an override in the project's directory."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_log import read_report
from feature_repo.settings import Settings

SHIPPED: Final = Path(__file__).with_name("thresholds.toml")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The values in force for one model; what they mean is said beside their defaults in `thresholds.toml`."""

    auc: float
    average_precision: float
    baseline_gain: float
    calibration_error: float
    users: int
    ndcg_margin_share: float
    hard_auc_margin: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_requests: int
    bundle_mb: float
    memory_mb: float
    halves_drop: float
    noise: float
    noise_drop: float
    missing: float
    missing_drop: float
    slice_drop: float
    segment_margin: float
    segment_users: int
    model_mb: float
    parse_seconds: float
    parse_memory_mb: float

    @property
    def hash(self) -> str:
        """Hash of all values: two verdicts with the same one were held against the same demands."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def override_path(settings: Settings) -> Path:
    """Return the place of a project's own thresholds."""
    return settings.root / "thresholds.toml"


def load_thresholds(settings: Settings) -> Thresholds:
    """Read the thresholds of the project's model.

    Raises
    ------
    BadInputError
        For a file that is no TOML, an unknown name, or a value that is no finite number.
    """
    shipped = _read(SHIPPED)
    values = dict(shipped["default"])
    for kind, name in (("dataset", _dataset(settings)), ("model", settings.model_name)):
        values |= _known(shipped.get(kind, {}).get(name, {}), SHIPPED)
    path = override_path(settings)
    if path.is_file():
        values |= _known(_read(path), path)
    return Thresholds(**values)


def _dataset(settings: Settings) -> str:
    """Name of the data set a project was made of; of one without an import, the project's own."""
    try:
        return read_report(settings).name
    except NotFoundError:
        return settings.project


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is not valid TOML: {error}") from None


def _known(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return values whose names and types are those of thresholds."""
    types = {one.name: one.type for one in fields(Thresholds)}
    out = {}
    for name, value in values.items():
        if name not in types:
            raise BadInputError(f"{path}: there is no threshold {name!r}; there are: {', '.join(types)}")
        number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
        if not number or (types[name] == "int" and (not isinstance(value, int) or value < 1)):
            raise BadInputError(f"{path}: threshold {name} must be a number ({types[name]}), not {value!r}")
        out[name] = int(value) if types[name] == "int" else float(value)
    return out
