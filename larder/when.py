"""Times as people type them on the command line: an age (30m, 12h, 7d) or a moment with its time zone."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Final

from feature_repo.errors import BadInputError

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def duration_us(text: str, option: str) -> int:
    """Return a length of time in µs.

    Raises
    ------
    BadInputError
        If it is none.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None:
        raise BadInputError(f"{option} must be a length of time (30s, 10m, 12h, 7d), not {text!r}")
    return int(found[1]) * _UNITS_S[found[2]] * 1_000_000


def moment_us(text: str | None, option: str) -> int:
    """Return a moment, or how long ago one is, as µs since the epoch; 0 for None.

    Raises
    ------
    BadInputError
        If it is neither, or the moment has no time zone.
    """
    if text is None:
        return 0
    if re.fullmatch(r"\d+[smhd]", text):
        return time.time_ns() // 1000 - duration_us(text, option)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise BadInputError(f"{option} must be an age (30m, 12h, 7d) or a time with its zone, not {text!r}")
    return int(when.timestamp() * 1_000_000)
