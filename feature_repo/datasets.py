"""Data sets: what one is, loading one by name, moving it in time. Writing and reading the log: event_log.py."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.event_log import ImportReport, read_events, read_items, write_dataset
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, TIMESTAMP, Repeats
from feature_repo.settings import Settings

__all__ = [
    "WEEK",
    "Dataset",
    "ImportReport",
    "load_dataset",
    "make_dataset",
    "read_events",
    "read_items",
    "shift_to",
    "write_dataset",
]

WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Dataset:
    """Accepted events, the catalogue, and the rows that could not be events.

    Attributes
    ----------
    name
        Which data set; names the quarantine file.
    events
        `EVENT_SCHEMA`, sorted by (event_timestamp, event_id).
    items
        `ITEM_SCHEMA`, sorted by item_id.
    quarantine
        `QUARANTINE_SCHEMA`; rows read = accepted + quarantined.
    shift_weeks
        By how many weeks the times have been moved from the publisher's.
    target
        Type of the events a model of these data predicts.
    repeats
        Whether people take an item again, so that it may be recommended again.
    """

    name: str
    events: pa.Table
    items: pa.Table
    quarantine: pa.Table
    shift_weeks: int = 0
    target: str = "purchase"
    repeats: Repeats = "keep"

    @property
    def quarantined(self) -> dict[str, int]:
        """Number of quarantined rows by reason, most frequent first."""
        return dict(Counter(self.quarantine["reason"].to_pylist()).most_common())

    @property
    def first_time(self) -> datetime:
        """Time of the first event."""
        time: datetime = pc.min(self.events["event_timestamp"]).as_py()
        return time

    @property
    def last_time(self) -> datetime:
        """Time of the last event."""
        time: datetime = pc.max(self.events["event_timestamp"]).as_py()
        return time

    def data_hash(self) -> str:
        """Return the sha256 of events and items with the times as published: a shift does not change it."""
        digest = hashlib.sha256()
        shift_us = self.shift_weeks * (WEEK // timedelta(microseconds=1))
        for table in (self.events, self.items):
            for field in table.schema:
                digest.update(f"{field.name}:{field.type}:{table.num_rows};".encode())
                _hash_column(digest, table[field.name], shift_us)
        return digest.hexdigest()


def make_dataset(
    name: str,
    events: pa.Table,
    items: pa.Table,
    quarantine: pa.Table,
    *,
    shift_weeks: int = 0,
    target: str = "purchase",
    repeats: Repeats = "keep",
) -> Dataset:
    """Return a data set with its tables in order and in their schemas.

    Raises
    ------
    BadInputError
        For events of fewer than two users: nothing can be recommended from them.
    """
    users = pc.count_distinct(events["user_id"]).as_py()
    dataset = Dataset(
        name=name,
        events=events.sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")]).cast(EVENT_SCHEMA),
        items=items.sort_by("item_id").cast(ITEM_SCHEMA),
        quarantine=quarantine,
        shift_weeks=shift_weeks,
        target=target,
        repeats=repeats,
    )
    if users < 2:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dataset.quarantined.items()) or "none"
        raise BadInputError(
            f"data set {name!r} has {events.num_rows} usable events of {users} user(s) (rows in quarantine: "
            f"{reasons}); a recommender needs events of at least two users"
        )
    return dataset


def shift_to(dataset: Dataset, end: datetime) -> Dataset:
    """Move all times by whole weeks so that the last event lies at or before `end`, by less than a week.

    Weekday and hour stay; all features are differences of times, so their values stay too.

    Parameters
    ----------
    dataset
        Any data set with events.
    end
        Aware time.
    """
    if end.utcoffset() is None:
        raise BadInputError(f"end must have a time zone, got {end.isoformat()}")
    weeks = (end - dataset.last_time) // WEEK
    delta = pa.scalar(weeks * WEEK, pa.duration("us"))
    events, items = dataset.events, dataset.items
    for name in ("event_timestamp", "received_at"):
        events = _with(events, name, pc.add(events[name], delta))
    items = _with(items, "created_at", pc.add(items["created_at"], delta))
    return replace(dataset, events=events, items=items, shift_weeks=dataset.shift_weeks + weeks)


def load_dataset(name: str, settings: Settings, **options: Any) -> Dataset:
    """Load a data set by name, with the publisher's times (see `shift_to`).

    Parameters
    ----------
    name
        `simulator`, `online_retail`, `movielens`, `rees46` or `complete_journey`.
    settings
        `data_dir` for real data, `seed` for the simulator.
    options
        For the simulator: `n_events`, `end` (aware time), `seed` and any field of `SimulatorParams`.
        For real data: none.

    Raises
    ------
    BadInputError
        For an unknown name or option, or data that cannot be used.
    NotFoundError
        If the data are not on this machine.
    """
    if name not in _LOADERS:
        raise BadInputError(f"unknown data set {name!r}; known are: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[name](settings, options)


def _simulator(settings: Settings, options: dict[str, Any]) -> Dataset:
    from feature_repo.simulator.world import Simulator, SimulatorParams

    run = {key: options[key] for key in ("n_events", "end") if options.get(key) is not None}
    params = {key: value for key, value in options.items() if key not in ("n_events", "end", "seed")}
    known = SimulatorParams.__dataclass_fields__
    if unknown := sorted(set(params) - set(known)):
        raise BadInputError(
            f"unknown option {unknown[0]!r} of the simulator; known are: n_events, end, seed, {', '.join(known)}"
        )
    seed = options.get("seed")
    return Simulator(SimulatorParams(**params), seed=settings.seed if seed is None else seed).dataset(**run)


def _online_retail(settings: Settings, options: dict[str, Any]) -> Dataset:
    from feature_repo.adapters.online_retail import load

    _no_options("online_retail", options)
    return load(settings.data_dir / "online_retail" / "online_retail.parquet")


def _movielens(settings: Settings, options: dict[str, Any]) -> Dataset:
    from feature_repo.adapters.movielens import load

    _no_options("movielens", options)
    return load(settings.data_dir / "ml_latest_small")


def _rees46(settings: Settings, options: dict[str, Any]) -> Dataset:
    from feature_repo.adapters.rees46 import load

    _no_options("rees46", options)
    return load(settings.data_dir / "rees46")


def _complete_journey(settings: Settings, options: dict[str, Any]) -> Dataset:
    from feature_repo.adapters.complete_journey import load

    _no_options("complete_journey", options)
    return load(settings.data_dir / "complete_journey")


def _no_options(name: str, options: dict[str, Any]) -> None:
    if options:
        raise BadInputError(f"the data set {name} has no option {sorted(options)[0]!r}")


_LOADERS: dict[str, Callable[[Settings, dict[str, Any]], Dataset]] = {
    "simulator": _simulator,
    "online_retail": _online_retail,
    "movielens": _movielens,
    "rees46": _rees46,
    "complete_journey": _complete_journey,
}


def _with(table: pa.Table, name: str, column: Any) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), column)


def _hash_column(digest: Any, column: Any, shift_us: int) -> None:
    """Feed a column into the digest: which rows are null, then the values."""
    digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
    if column.type == TIMESTAMP:
        digest.update((column.cast(pa.int64()).fill_null(shift_us).to_numpy() - shift_us).tobytes())
    elif pa.types.is_string(column.type):
        texts = column.fill_null("")
        digest.update(pc.binary_length(texts).to_numpy().tobytes())
        digest.update("".join(texts.to_pylist()).encode())
    elif pa.types.is_list(column.type):
        digest.update(json.dumps(column.to_pylist()).encode())
    else:
        numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        digest.update(numbers.fill_null(0).to_numpy().tobytes())
