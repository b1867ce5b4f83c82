"""What became of a list so far: the events that name its request, and what its user did with its items besides."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.live_files import files_kept, log_paths
from feature_repo.settings import Settings
from serving.impressions import ImpressionRecord

_COLUMNS = ["seq", "item_id", "event_type", "request_id", "rank", "event_timestamp"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An event after the answer.

    Attributes
    ----------
    named
        Whether it names the request: it is an answer to the list. Others may have come to pass without it.
    after_s
        Seconds from the answer until it happened.
    """

    item_id: str
    event: str
    named: bool
    rank: int | None
    seq: int
    after_s: float


def outcomes_of(settings: Settings, record: ImpressionRecord) -> list[Outcome]:
    """Return what happened to a list's items, in the order of the log; parts of it from before are not read."""
    shown = [item.item_id for item in record.items]
    asked_seq = (record.time_us // 1000) << SEQ_COUNTER_BITS
    mine = (pc.field("user_id") == record.user_id) & pc.field("item_id").isin(shown)
    with files_kept(settings.events_dir):
        paths = log_paths(settings.events_dir)
        if not paths:
            return []
        wanted = (pc.field("seq") >= asked_seq) & ((pc.field("request_id") == record.request_id) | mine)
        table = ds.dataset([str(path) for path in paths]).to_table(columns=_COLUMNS, filter=wanted)
    rows = sorted(table.to_pylist(), key=lambda row: row["seq"])
    return [
        Outcome(
            row["item_id"],
            row["event_type"],
            row["request_id"] == record.request_id,
            row["rank"],
            row["seq"],
            round(row["event_timestamp"].timestamp() - record.time_us / 1e6, 3),
        )
        for row in rows
    ]
