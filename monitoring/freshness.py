"""How old what serving lives on is: features, event log, offline store, champion. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, get_args

from monitoring.signals import Signal

Subject = Literal["features", "event_log", "offline_store", "champion"]
SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
DAY_S: Final = 86_400.0
#: Beyond these ages, in seconds, somebody should act. Events of the last weeks are what a model learns most from.
LIMITS_S: Final[dict[Subject, float]] = {
    "features": 60.0,
    "event_log": 120.0,
    "offline_store": 7 * DAY_S,
    "champion": 30 * DAY_S,
}


def freshness_signals(at: datetime, ages_s: Mapping[Subject, float], bundle_id: str) -> list[Signal]:
    """Return a row per age.

    Parameters
    ----------
    ages_s
        What could be measured, in seconds. The champion's is the time since the last event it learned from.
    """
    return [
        Signal(
            at, "freshness", subject, age, LIMITS_S[subject], age > LIMITS_S[subject],
            bundle_id if subject == "champion" else "", details={"unit": "s"},
        )
        for subject, age in ages_s.items()
    ]  # fmt: skip
