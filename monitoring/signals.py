"""What watching found, as rows that retraining can act on: drift, skew, decay of CTR, age. PURE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args

Kind = Literal["drift", "skew", "ctr_decay", "freshness"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that was looked at in one window.

    Attributes
    ----------
    at
        End of the window, aware UTC. A row of the same kind, subject and time is the same row.
    subject
        What it is about: `features/f_item_price`, the name of a feature, a bundle, `feature_age`.
    value, threshold
        What was measured, and beyond what it counts, in the unit `details` names.
    alarm
        Whether somebody, or retraining, should act on it.
    bundle_id
        The champion it speaks of; empty where it speaks of none.
    p_value, effect
        Where a test was made.
    window_s
        Length of the window, seconds; 0 for a moment.
    details
        More, as JSON.
    """

    at: datetime
    kind: Kind
    subject: str
    value: float
    threshold: float
    alarm: bool
    bundle_id: str = ""
    p_value: float | None = None
    effect: float | None = None
    window_s: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def ctr_decay(
    at: datetime,
    bundle_id: str,
    *,
    ctr: float,
    floor: float,
    alarm: bool,
    p_value: float | None = None,
    effect: float | None = None,
    window_s: float,
    details: dict[str, Any],
) -> Signal:
    """Return the row that says how a champion's CTR stands against what it had.

    Parameters
    ----------
    ctr
        Of the window.
    floor
        Below it the CTR has decayed.
    alarm
        Decided by whoever measured it: with its interval, not by the two numbers alone.
    """
    return Signal(at, "ctr_decay", bundle_id, ctr, floor, alarm, bundle_id, p_value, effect, window_s, details)


def still_open(newest: Iterable[Signal]) -> list[Signal]:
    """Keep the alarms of the newest row of each kind and subject.

    Of one kind, rows of an earlier champion than the kind's newest row speaks of are over: that model is gone.

    Parameters
    ----------
    newest
        The newest row of each kind and subject.
    """
    rows = sorted(newest, key=lambda row: (row.at, row.subject))
    champion = {row.kind: row.bundle_id for row in rows if row.bundle_id}
    return [row for row in rows if row.alarm and row.bundle_id in ("", champion.get(row.kind, ""))]
