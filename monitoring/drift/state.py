"""What watching remembers between windows, in one file that is whole or not there: a restart goes on where it was."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from feature_repo.settings import Settings
from monitoring.drift.columns import Values

_LOG = logging.getLogger(__name__)
_FORMAT: Final = 1


class FindingRecord(msgspec.Struct, frozen=True):
    """A `Finding`, as it is kept and shown."""

    name: str
    group: str
    scale: str
    expected: bool
    effect: float
    floor: float
    p_value: float
    hit: bool
    alarm: bool
    rows: tuple[int, int]
    means: tuple[float | None, float | None]


class WindowRecord(msgspec.Struct, frozen=True):
    """What the newest window said.

    Attributes
    ----------
    precision, precision_then
        Expected precision of the first places with its interval, of the window and of the reference; None: unknown.
    """

    bundle_id: str
    start_us: int
    end_us: int
    requests: int
    findings: list[FindingRecord]
    precision: tuple[float, float, float] | None = None
    precision_then: tuple[float, float, float] | None = None


class DriftState(msgspec.Struct, frozen=True):
    """Where watching is.

    Attributes
    ----------
    next_us
        Where the next window begins.
    history
        By column, whether the newest windows were hits, oldest first.
    baseline
        Values of the champion's own first windows; None: missing.
    """

    bundle_id: str
    against: str
    next_us: int
    windows: int = 0
    history: dict[str, list[bool]] = {}
    baseline: dict[str, list[float | str | None]] = {}
    baseline_windows: int = 0
    last: WindowRecord | None = None
    format: int = _FORMAT


def state_path(settings: Settings) -> Path:
    """Where the project's state is."""
    return settings.monitoring_dir / "drift.json"


def read_state(settings: Settings) -> DriftState | None:
    """Read the state; None where there is none, or none this version knows: watching then begins anew."""
    path = state_path(settings)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=DriftState)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        _LOG.warning("%s is no state of drift (%s): begun anew", path, error)
        return None
    return state if state.format == _FORMAT else None


def write_state(settings: Settings, state: DriftState) -> None:
    """Replace the state."""
    path = state_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(msgspec.json.encode(state))
    scratch.replace(path)


def kept(values: Values) -> list[float | str | None]:
    """Return a column as it is kept: NaN as null."""
    return [None if isinstance(value, float) and value != value else value for value in values.tolist()]  # noqa: PLR0124 - NaN


def restored(values: list[float | str | None]) -> Values:
    """Return a column that was kept."""
    if any(isinstance(value, str) for value in values):
        return np.array(values, object)
    return np.array([np.nan if value is None else value for value in values], np.float64)
