"""Small event tables and logs for tests: an event is a dictionary with short defaults, a log is what ingest writes."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from feature_repo.events import ITEM_SCHEMA, LOG_SCHEMA, EventType
from feature_repo.settings import Settings

START = datetime(2024, 5, 6, 12, tzinfo=UTC)
US = timedelta(microseconds=1)
HOUR = 3_600_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(time: datetime) -> int:
    return (time - EPOCH) // US


def event(user: str, item: str, kind: str, at: float = 0, **fields: Any) -> dict[str, Any]:
    """One event, `at` hours after START; `late` hours later we learned of it."""
    time = START + timedelta(hours=at)
    known = time + timedelta(hours=fields.pop("late", 0))
    return {
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "event_timestamp": time,
        "received_at": known,
        **fields,
    }


def purchase(user: str, item: str, at: float = 0, price: int = 250, quantity: int = 2, **fields: Any) -> dict[str, Any]:
    value = float(price * quantity)
    return event(user, item, "purchase", at, value=value, price=price, quantity=quantity, category="toys", **fields)


def event_table(events: Iterable[dict[str, Any]], first_seq: int = 1) -> pa.Table:
    """Return `LOG_SCHEMA` with `seq` counted up in the order given."""
    blank = dict.fromkeys(LOG_SCHEMA.names)
    rows = [blank | {"seq": seq, "event_id": f"e{seq}"} | e for seq, e in enumerate(events, first_seq)]
    return pa.Table.from_pylist(rows, LOG_SCHEMA)


def item_table(items: dict[str, str], **fields: Any) -> pa.Table:
    """Return `ITEM_SCHEMA` for items by id, with their categories."""
    blank = dict.fromkeys(ITEM_SCHEMA.names) | {"price": 100, "available": True} | fields
    rows = [blank | {"item_id": item, "title": item.title(), "category": kind} for item, kind in items.items()]
    return pa.Table.from_pylist(rows, ITEM_SCHEMA)


def write_log(settings: Settings, events: pa.Table, items: pa.Table | None = None, *, name: str = "a") -> None:
    """Add events to the project's log, by day as ingest does; replace its catalogue if one is given."""
    days = [time.date() for time in events["event_timestamp"].to_pylist()]
    for day in sorted(set(days)):
        path = settings.events_dir / f"day={day.isoformat()}" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(events.filter(pa.array([d == day for d in days])), path)
    if items is not None:
        pq.write_table(items, settings.items_path)


_TIMES = st.sampled_from([0, 0, 0.5, 1, 1.0000001, 24, 24, 25.5, 24 * 9, 24 * 70])


@st.composite
def random_event(draw: st.DrawFn) -> dict[str, Any]:
    """Any event: few users and items, so that they meet; times with ties and out of order; everything may be null."""
    kind = draw(st.sampled_from([e.name for e in EventType] + ["purchase"] * 6 + ["view"] * 3))
    fields: dict[str, Any] = {
        "category": draw(st.sampled_from(["toys", "books", None])),
        "price": draw(st.sampled_from([None, 0, 199, 250])),
        "quantity": draw(st.sampled_from([None, 1, 7])),
        "session_id": draw(st.sampled_from([None, "s1", "s2"])),
        "request_id": draw(st.sampled_from([None, "r1"])),
        "late": draw(st.sampled_from([0, 0, 0, 2, 24 * 8])),
    }
    money = st.sampled_from([None, 0.0, 199.0, 1750.0, 2.0**40])
    fields["value"] = draw(st.sampled_from([1.0, 3.5, 5.0]) if kind == "rating" else money)
    user, item = draw(st.sampled_from("uvw")), draw(st.sampled_from("ijk"))
    return event(user, item, kind, draw(_TIMES), **fields)


histories = st.lists(random_event(), min_size=1, max_size=40)
#: As after an import: feature times never fall.
ordered_histories = histories.map(lambda h: sorted(h, key=lambda e: max(e["event_timestamp"], e["received_at"])))
