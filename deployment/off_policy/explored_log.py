"""The champion's explored places and what was clicked there: read from the logs of impressions and events."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import NotFoundError
from feature_repo.event_log import read_events
from feature_repo.settings import Settings
from serving.cascade.exploration import ExploredSlot
from serving.impressions import day_of

_LOG = logging.getLogger(__name__)
#: Rounds that are asked at most, the newest: scoring them takes some milliseconds each.
MOST_ROUNDS: Final = 10_000
#: What was shown later than so long ago may still be clicked.
SETTLED_US: Final = 3_600_000_000
_EXPLORED: Final = b'"explored":['


class _Record(msgspec.Struct, frozen=True):
    """What is needed of `ImpressionRecord`; the rest of a line is not decoded."""

    request_id: str
    time_us: int
    user_id: str
    served_bundle: str | None
    explored: list[ExploredSlot]


_DECODE: Final = msgspec.json.Decoder(_Record).decode


@dataclass(frozen=True, slots=True)
class Round:
    """One place that was drawn, and whether its item was clicked."""

    user_id: str
    time_us: int
    slot: ExploredSlot
    clicked: bool


def read_rounds(settings: Settings, bundle_id: str, now_us: int, most: int = MOST_ROUNDS) -> list[Round]:
    """Return the explored places of a bundle's lists, so many of the newest files at most, oldest first.

    Lists of the last hour are left out: they may still be clicked.
    """
    found = [
        (record, slot)
        for record in _newest_first(settings.impressions_dir)
        if record.served_bundle == bundle_id and record.time_us < now_us - SETTLED_US
        for slot in record.explored
    ][:most]
    if not found:
        return []
    clicked = _clicks(settings, {record.request_id for record, _ in found})
    rounds = [
        Round(record.user_id, record.time_us, slot, (record.request_id, slot.item_ids[slot.taken]) in clicked)
        for record, slot in found
    ]
    return sorted(rounds, key=lambda one: one.time_us)


def _newest_first(directory: Path) -> Iterator[_Record]:
    for path in sorted(directory.glob("*/*.jsonl"), reverse=True):
        with path.open("rb") as lines:
            for line in lines:
                if _EXPLORED not in line:
                    continue
                try:
                    yield _DECODE(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    _LOG.warning("a line of %s is no record of an explored list: %s", path, error)


def _clicks(settings: Settings, request_ids: set[str]) -> set[tuple[str, str]]:
    """Return (request, item) of all views that answer one of the requests."""
    try:
        events = read_events(settings, columns=["event_type", "request_id", "item_id"])
    except NotFoundError:
        return set()
    wanted = pc.and_(
        pc.equal(events["event_type"], "view"), pc.is_in(events["request_id"], pa.array(sorted(request_ids)))
    )
    views = events.filter(wanted)
    return set(zip(views["request_id"].to_pylist(), views["item_id"].to_pylist(), strict=True))


def days(rounds: list[Round]) -> Iterator[tuple[str, list[Round]]]:
    """Yield the rounds of each UTC day."""
    by_day: dict[str, list[Round]] = {}
    for one in rounds:
        by_day.setdefault(day_of(one.time_us), []).append(one)
    yield from by_day.items()
