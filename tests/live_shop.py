"""Random events of a small shop, and the comparison of online features with the offline store, bit for bit."""

import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import make_dataset, read_events, write_dataset
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA, EventType
from feature_repo.online_reader import OnlineReader
from feature_repo.views import DAY_US

USERS = ["ann", "bob", "çem", "dee"]
ITEMS = ["i1", "i2", "i3", "ï4"]


def random_event(rng: random.Random, event_id: str, time_us: int, *, users=USERS, items=ITEMS) -> dict:
    """An event of any type, half of them late (they happened up to three days before they were received)."""
    kind = rng.choice([e.name for e in EventType] + ["view", "purchase", "purchase"])
    price, quantity = rng.choice([None, 199, 2500]), rng.choice([None, 1, 3])
    value = {"rating": rng.choice([1.0, 3.5]), "purchase": rng.choice([None, 199.0, 7500.0]), "cancel": 199.0}.get(kind)
    return {
        "event_id": event_id,
        "user_id": rng.choice(users),
        "item_id": rng.choice(items),
        "event_type": kind,
        "value": value,
        "quantity": quantity,
        "event_timestamp": time_us - rng.choice([0, 0, 1, 3600_000_000, 3 * DAY_US]),
        "received_at": time_us,
        "session_id": rng.choice([None, "s1", "s2", "s3"]),
        "request_id": rng.choice([None, "r1"]),
        "category": rng.choice([None, "tea", "cups"]),
        "price": price,
    }


def a_view(event_id: str, user: str = "ann", *, at_us: int | None = None, **fields) -> dict:
    """A view of item i1, now if not said otherwise."""
    at_us = at_us or time.time_ns() // 1000
    event = {"event_id": event_id, "user_id": user, "item_id": "i1", "event_type": "view"}
    return event | {"event_timestamp": at_us, "received_at": at_us} | fields


def import_history(settings, events: list[dict], *, items=ITEMS) -> None:
    """Make some events (of at least two users) the project's history."""
    columns = {field.name: pa.array([event.get(field.name) for event in events], field.type) for field in EVENT_SCHEMA}
    items = [
        {"item_id": item, "title": f"Title {item}", "category": "tea", "price": 199, "available": item != "i3"}
        for item in items
    ]
    write_dataset(
        make_dataset(
            "shop",
            pa.table(columns, schema=EVENT_SCHEMA),
            pa.Table.from_pylist(items, schema=ITEM_SCHEMA),
            QUARANTINE_SCHEMA.empty_table(),
        ),
        settings,
    )


def assert_online_equals_offline(settings, client, as_of_us: int, *, users=USERS, items=ITEMS) -> None:
    """Backfill the log into a fresh offline store and compare every feature of every entity with Redis."""
    backfill(settings, full=True)
    offline, online = AsOfReader(settings, as_of_us), OnlineReader(client, settings.project)
    for user in [*users, "nobody"]:
        ours, theirs = online.user(user, as_of_us), offline.user(user, as_of_us)
        assert_rows_equal(ours.stats, theirs.stats)
        assert ours.categories == theirs.categories
        assert_rows_equal(ours.affinities, theirs.affinities)
        assert ours.recent.item_ids == theirs.recent.item_ids
        assert ours.recent.types.tolist() == theirs.recent.types.tolist()
        assert ours.recent.times.tolist() == theirs.recent.times.tolist()
        assert ours.recent.seq == theirs.recent.seq
        assert_rows_equal(online.pairs(user, items, as_of_us), offline.pairs(user, items, as_of_us))
    known, rows = offline.item_rows()
    assert_rows_equal(online.read_items(known)[0], rows)
    assert set(known) <= set(online.changed_items(0))
    assert online.malformed == 0


def assert_rows_equal(ours, theirs) -> None:
    assert ours.present.tolist() == theirs.present.tolist()
    for name, mine, other in (("ints", ours.ints, theirs.ints), ("floats", ours.floats, theirs.floats)):
        if mine.tobytes() != np.ascontiguousarray(other).tobytes():
            columns = getattr(ours.view, name)
            different = [
                (columns[c], mine[r, c], other[r, c])
                for r, c in np.argwhere(np.asarray(mine) != other)
                if not (mine[r, c] != mine[r, c] and other[r, c] != other[r, c])
            ]
            raise AssertionError(f"{ours.view.name}: {different}")


def logged_seqs(settings) -> list[int]:
    """Every `seq` in the live part of the log, in order; also those that stand there twice."""
    table = read_events(settings, columns=["seq"])
    return table["seq"].to_pylist()


def live_files(settings) -> list[Path]:
    return sorted(settings.events_dir.glob("day=*/live-*.parquet"))
