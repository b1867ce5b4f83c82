"""What watching says of a window and remembers between windows, as it is kept. PURE."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from monitoring.drift.columns import Values

FORMAT: Final = 1


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
    format: int = FORMAT


def kept(values: Values) -> list[float | str | None]:
    """Return a column as it is kept: NaN as null."""
    return [None if isinstance(value, float) and value != value else value for value in values.tolist()]  # noqa: PLR0124 - NaN


def restored(values: list[float | str | None]) -> Values:
    """Return a column that was kept."""
    if any(isinstance(value, str) for value in values):
        return np.array(values, object)
    return np.array([np.nan if value is None else value for value in values], np.float64)
