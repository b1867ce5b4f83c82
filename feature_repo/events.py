"""The one contract of data: what an event is and what an item is (DESIGN.md section 2). PURE.

Every adapter, the simulator and the API produce these tables; the fold, ingest and training read nothing else.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import pyarrow as pa

MAX_ID_BYTES = 128
#: A client's clock may run ahead by this much; later times are refused (quarantine).
MAX_FUTURE_S = 300


class EventType(IntEnum):
    """What happened. The number is the code used in compiled code and packed rows; never renumber."""

    impression = 0
    view = 1
    cart = 2
    purchase = 3
    cancel = 4
    like = 5
    dislike = 6
    rating = 7
    confirm = 8
    reject = 9


#: Whether what a user has taken may be recommended again (keep), as in a grocery, or not (drop), as with films.
Repeats = Literal["keep", "drop"]

TIMESTAMP = pa.timestamp("us", tz="UTC")

#: `value` is money in minor units (price x quantity, a whole number) or the rating; `price` is the unit price and
#: `category` the category of the item *at that moment* (enrichment: a fold never looks up today's catalogue).
EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("quantity", pa.int64()),
        pa.field("event_timestamp", TIMESTAMP, nullable=False),
        pa.field("received_at", TIMESTAMP, nullable=False),
        pa.field("session_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("context", pa.string()),  # JSON text
        pa.field("category", pa.string()),
        pa.field("price", pa.int64()),
    ]
)

#: The log of accepted events: the contract plus the order in which they were accepted.
LOG_SCHEMA = EVENT_SCHEMA.insert(0, pa.field("seq", pa.int64(), nullable=False))

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.int64()),  # minor units
        pa.field("created_at", TIMESTAMP),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("description", pa.string()),
        pa.field("image", pa.string()),
        pa.field("available", pa.bool_(), nullable=False),
    ]
)

#: The log of catalogue changes: `sets` names the fields a change sets (to null, too); the others are null here.
ITEM_CHANGE_SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("change_id", pa.string(), nullable=False),
        pa.field("received_at", TIMESTAMP, nullable=False),
        pa.field("sets", pa.list_(pa.string()), nullable=False),
        *(field.with_nullable(field.name != "item_id") for field in ITEM_SCHEMA),
        pa.field("blocked", pa.bool_()),
    ]
)

#: A row that cannot be an event: where it stood, why it was refused, and the row itself as JSON (nothing is lost).
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # 0-based row in the source
        pa.field("reason", pa.string(), nullable=False),  # from a closed set of slugs, e.g. "non_product_code"
        pa.field("detail", pa.string(), nullable=False),  # the value, for a person
        pa.field("raw", pa.string(), nullable=False),
    ]
)

#: A `seq` is a Redis stream id in one integer: milliseconds and a counter within the millisecond. It orders events
#: totally; history gets it from its event time, live events from the stream.
SEQ_COUNTER_BITS = 20


def seq_of(ms: int, counter: int) -> int:
    """Pack a stream id (`ms-counter`) into one int64 `seq`."""
    return (ms << SEQ_COUNTER_BITS) | counter


def stream_id_of(seq: int) -> str:
    """Return the Redis stream id `ms-counter` of a `seq`."""
    return f"{seq >> SEQ_COUNTER_BITS}-{seq & ((1 << SEQ_COUNTER_BITS) - 1)}"
