"""What must hold after any fault: the log has what was acknowledged, once; all features are those of a slow fold."""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import read_events, read_items
from feature_repo.event_log import read_item_changes
from feature_repo.events import EventType
from feature_repo.online_reader import OnlineReader
from feature_repo.rows import Rows
from feature_repo.settings import Settings
from feature_repo.views import (
    FOLD_VIEWS,
    ITEM_STATS,
    NULL_INT,
    RECENT_EVENTS,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
)
from tests.event_tables import us
from tests.fault_clients import Told
from tests.fold_oracle import oracle

#: Rows by view and entity; a row is a dictionary, recent events are a list.
Views = dict[str, dict[tuple[str, ...], Any]]


def findings(settings: Settings, client: redis.Redis, told: Told, as_of_us: int) -> list[str]:
    """Return everything that is not as it must be, as sentences; the list is empty where all is right.

    Backfills the whole log into the offline store.
    """
    log = read_events(settings)
    changes = read_item_changes(settings)
    found = [*told.findings, *_in_log(log, changes, told)]
    once = _deduplicated(log)
    right = expected_views(once)
    users, items = (
        sorted({key[0] for key in right[USER_STATS.name]}),
        sorted({key[0] for key in right[ITEM_STATS.name]}),
    )
    backfill(settings, full=True)
    online, offline = OnlineReader(client, settings.project), AsOfReader(settings, as_of_us)
    known, item_rows = offline.item_rows()
    kept = {
        "online": _views(online, users, items, as_of_us) | {ITEM_STATS.name: _by(items, online.read_items(items)[0])},
        "offline": _views(offline, users, items, as_of_us) | {ITEM_STATS.name: _by(known, item_rows)},
    }
    for side, views in kept.items():
        for name, rows in right.items():
            for entity in sorted(rows.keys() | views[name].keys()):
                ours, theirs = views[name].get(entity), rows.get(entity)
                if _bits(ours) != _bits(theirs):
                    found.append(f"{side} {name} {entity}: {_difference(ours, theirs)}")
    catalogue = expected_catalogue(settings, changes)
    entries = online.read_items(list(catalogue))[1]
    rows = {row["item_id"]: row for row in offline.catalog().to_pylist()}
    for (item, fields), entry in zip(catalogue.items(), entries, strict=True):
        there = {
            "online": {name: getattr(entry, name) for name in fields},
            "offline": {name: rows[item][f"item_{name}"] for name in fields},
        }
        found += [
            f"{side} catalogue {item}: {_difference(is_, fields)}" for side, is_ in there.items() if is_ != fields
        ]
    if online.malformed:
        found.append(f"online: {online.malformed} rows are damaged")
    return found


def expected_views(log: pa.Table) -> Views:
    """Return all rows by the slow fold, and the recent events."""
    recent: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for event in log.to_pylist():
        if event["event_type"] != "impression":
            time = max(us(event["event_timestamp"]), us(event["received_at"]))
            recent[event["user_id"],].append((event["item_id"], EventType[event["event_type"]].value, time))
    return oracle(log) | {RECENT_VIEW: {user: events[-RECENT_EVENTS:] for user, events in recent.items()}}


def expected_catalogue(settings: Settings, changes: pa.Table) -> dict[str, dict[str, Any]]:
    """Return what the last change of each field of each item says; only items that were changed."""
    names = ("title", "category", "price", "available", "blocked")
    imported = {row["item_id"]: row for row in read_items(settings).to_pylist()} if changes.num_rows else {}
    items: dict[str, dict[str, Any]] = {}
    for change in changes.to_pylist():
        item = items.setdefault(change["item_id"], {n: imported[change["item_id"]].get(n, False) for n in names})
        item |= {name: change[name] for name in change["sets"]}
    return items


def _in_log(log: pa.Table, changes: pa.Table, told: Told) -> list[str]:
    ids = log["event_id"].to_pylist() + changes["change_id"].to_pylist()
    seqs = log["seq"].to_pylist() + changes["seq"].to_pylist()
    place = dict(zip(ids, seqs, strict=True))
    found = [f"log: {event_id} is there {n} times" for event_id, n in Counter(ids).items() if n > 1]
    found += [f"log: seq {seq} is there {n} times" for seq, n in Counter(seqs).items() if n > 1]
    for event_id, seq in told.acknowledged.items():
        if event_id not in place:
            found.append(f"log: acknowledged {event_id} (seq {seq}) is not there")
        elif place[event_id] != seq:
            found.append(f"log: {event_id} is there as seq {place[event_id]}, acknowledged as seq {seq}")
    history = {event_id for event_id in ids if event_id.startswith("history")}
    unknown = place.keys() - history - told.acknowledged.keys() - told.given_up
    return found + [f"log: {event_id} was never sent" for event_id in sorted(unknown)]


def _deduplicated(log: pa.Table) -> pa.Table:
    """Return each event where it stands first."""
    ids: list[str] = log["event_id"].to_pylist()
    return log.take(pa.array(sorted({event_id: n for n, event_id in reversed(list(enumerate(ids)))}.values())))


def _views(reader: Any, users: list[str], items: list[str], as_of_us: int) -> Views:
    views: Views = {view.name: {} for view in FOLD_VIEWS} | {RECENT_VIEW: {}}
    for user in [*users, "nobody"]:
        rows = reader.user(user, as_of_us)
        views[USER_STATS.name] |= _by([user], rows.stats)
        views[USER_CATEGORY.name] |= _by([(user, category) for category in rows.categories], rows.affinities)
        views[USER_ITEM.name] |= _by([(user, item) for item in items], reader.pairs(user, items, as_of_us))
        if rows.recent.item_ids:
            columns = rows.recent.item_ids, rows.recent.types.tolist(), rows.recent.times.tolist()
            views[RECENT_VIEW][user,] = list(zip(*columns, strict=True))
    return views


def _by(entities: list[Any], rows: Rows) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows that are there by entity, with None for null."""
    found = {}
    for entity, ints, floats, there in zip(entities, rows.ints, rows.floats, rows.present, strict=True):
        if there:
            values = {
                n: None if x == NULL_INT else x for n, x in zip(rows.view.ints, np.asarray(ints).tolist(), strict=True)
            }
            values |= {n: None if math.isnan(x) else x for n, x in zip(rows.view.floats, floats.tolist(), strict=True)}
            found[(entity,) if isinstance(entity, str) else entity] = values
    return found


def _bits(row: Any) -> Any:
    """Make -0.0 and neighbouring floats differ in ==."""
    if not isinstance(row, dict):
        return row
    return {name: struct.pack("d", value) if isinstance(value, float) else value for name, value in row.items()}


def _difference(ours: Any, theirs: Any) -> str:
    if ours is None or theirs is None:
        return "is missing" if ours is None else "should not be there"
    if isinstance(ours, list):
        return f"{len(ours)} recent events instead of {len(theirs)}, or others"
    wrong = [
        f"{name} is {ours.get(name)} instead of {theirs.get(name)}" for name in theirs if ours.get(name) != theirs[name]
    ]
    return ", ".join(wrong[:3])
