"""Clicks and purchases that answer a recommendation, from the live event log, after a `seq`.

The log is some two seconds behind the stream and, unlike it, is not trimmed: what was written while no controller ran
is still there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow.dataset as ds

from deployment.rollout.user_table import Outcome
from feature_repo.events import LOG_SCHEMA, SEQ_COUNTER_BITS
from feature_repo.live_files import files_kept, live_files

_OUTCOMES: Final[dict[str, Outcome]] = {"view": "click", "purchase": "conversion"}
_COLUMNS: Final = ["seq", "event_type", "request_id"]


class Answered(NamedTuple):
    """What a user did with a recommendation, and when it was received (µs)."""

    request_id: str
    outcome: Outcome
    at_us: int


def newest_seq(directory: Path) -> int:
    """Return the last `seq` of the live log; 0 where there is none."""
    return max((file.last for file in live_files(directory)), default=0)


def outcomes_after(directory: Path, seq: int, until: int | None = None) -> tuple[list[Answered], int]:
    """Return what came after a `seq`, and the last `seq` read.

    Parameters
    ----------
    directory
        `Settings.events_dir`.
    seq
        What was read up to now; a `seq` begins with the stream's milliseconds, so older days need no look.
    until
        The last `seq` to read; None: all there is.
    """
    if not directory.is_dir():
        return [], seq
    oldest = f"day={datetime.fromtimestamp((seq >> SEQ_COUNTER_BITS) / 1000, UTC) - timedelta(days=1):%Y-%m-%d}"
    with files_kept(directory):
        files = [file for file in live_files(directory, oldest) if file.last > seq]
        if not files:
            return [], seq
        keep = (
            (ds.field("seq") > seq) & ds.field("event_type").isin(list(_OUTCOMES)) & ds.field("request_id").is_valid()
        )
        last = max(file.last for file in files)
        if until is not None:
            keep, last = keep & (ds.field("seq") <= until), min(last, until)
        table = ds.dataset([str(file.path) for file in files], schema=LOG_SCHEMA).to_table(_COLUMNS, filter=keep)
    found = {}  # a file may hold the rows of smaller ones that are about to be removed
    for row_seq, kind, request_id in zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True):
        found[row_seq] = Answered(request_id, _OUTCOMES[kind], (row_seq >> SEQ_COUNTER_BITS) * 1000)
    return [found[one] for one in sorted(found)], last
