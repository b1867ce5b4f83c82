"""Has the champion's CTR decayed? Compared with its own first days, window by window. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scipy.special import ndtr, ndtri

from monitoring.live_quality.report import QualityReport

#: The first days of a champion are what its CTR is held against.
REFERENCE_US: Final = 3 * 86_400_000_000
#: A loss of this share of it is tolerated: seasons and page layouts move CTR too.
TOLERATED: Final = 0.1
ALPHA: Final = 0.01


@dataclass(frozen=True, slots=True)
class CtrWindow:
    """CTR of a champion's lists (stable arm) in one stretch of time.

    Attributes
    ----------
    since_us, until_us
        Lists given in [since, until).
    ctr, error
        Clicks per item shown, and its standard error between users.
    shown
        Items.
    """

    bundle_id: str
    since_us: int
    until_us: int
    ctr: float
    error: float
    shown: float


@dataclass(frozen=True, slots=True)
class Decay:
    """What a signal says of the newest window.

    Attributes
    ----------
    subject
        The champion's bundle.
    value, threshold
        CTR of the window, and the floor below which it has decayed.
    p_value
        Of a CTR as low as this if it were at the floor.
    effect
        Relative change against the first days: -0.2 is a fifth less.
    alarm
        Whether this window and the one before it are both below the floor, each at `ALPHA`.
    details
        CTR of the first days (`reference`), the interval of `effect` (`effect_low`, `effect_high`), `shown`.
    """

    at_us: int
    subject: str
    value: float
    threshold: float
    p_value: float
    effect: float
    alarm: bool
    window_s: float
    details: dict[str, Any] = field(default_factory=dict)


def window_of(report: QualityReport) -> CtrWindow | None:
    """Return the champion's CTR in a report; None where fewer than two users say anything of it."""
    for group in report.of("all"):
        ctr = group.figures.get("ctr")
        if group.arm == "stable" and group.bundle_id == report.champion and ctr and math.isfinite(ctr.error):
            return CtrWindow(
                report.champion, report.since_us, report.until_us, ctr.value, ctr.error, ctr.denominator
            )  # fmt: skip
    return None


def ctr_decay(history: Sequence[CtrWindow], *, tolerated: float = TOLERATED, alpha: float = ALPHA) -> Decay | None:
    """Compare the newest window of a champion with its first days.

    One window may be low by a holiday, and each look may err: only two windows in a row that do not overlap, both
    significantly below the floor, are an alarm.

    Parameters
    ----------
    history
        Windows of any champions, in any order; those of the newest one's count. They may overlap.
    tolerated
        Share of the first days' CTR that may be lost.

    Returns
    -------
    Decay or None
        None while the champion is in its first days, or nothing was clicked in them.
    """
    if not history:
        return None
    newest = max(history, key=lambda window: window.until_us)
    mine = sorted(
        (window for window in history if window.bundle_id == newest.bundle_id), key=lambda window: window.since_us
    )  # fmt: skip
    end_of_first = mine[0].since_us + REFERENCE_US
    first = _apart(window for window in mine if window.until_us <= end_of_first)
    if not first or newest.since_us < end_of_first:
        return None
    reference, error = _pooled(first)
    if not reference > 0.0:
        return None
    floor = (1.0 - tolerated) * reference

    def p_below(window: CtrWindow) -> float:
        spread = math.hypot(window.error, (1.0 - tolerated) * error)
        return float(ndtr((window.ctr - floor) / spread)) if spread > 0.0 else float(window.ctr >= floor)

    before = [w for w in mine if w.until_us <= newest.since_us and w.since_us >= end_of_first]
    p_value = p_below(newest)
    alarm = p_value < alpha and bool(before) and p_below(before[-1]) < alpha
    effect = newest.ctr / reference - 1.0
    spread = ndtri(1.0 - alpha / 2.0) * math.hypot(newest.error, newest.ctr * error / reference) / reference
    details = {
        "reference": reference, "reference_error": error, "effect_low": effect - spread, "effect_high": effect + spread,
        "shown": newest.shown, "windows": len(mine),
    }  # fmt: skip
    return Decay(
        newest.until_us, newest.bundle_id, newest.ctr, floor, p_value, effect, alarm,
        (newest.until_us - newest.since_us) / 1e6, details,
    )  # fmt: skip


def _apart(windows: Any) -> list[CtrWindow]:
    """Return windows that do not overlap, oldest first."""
    kept: list[CtrWindow] = []
    for window in windows:
        if not kept or window.since_us >= kept[-1].until_us:
            kept.append(window)
    return kept


def _pooled(windows: Sequence[CtrWindow]) -> tuple[float, float]:
    """Return CTR and standard error of windows together; as the same users come back, errors add up fully."""
    shown = sum(window.shown for window in windows)
    ctr = sum(window.shown * window.ctr for window in windows) / shown
    return ctr, sum(window.shown * window.error for window in windows) / shown
