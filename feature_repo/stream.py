"""Appends accepted events to the project's Redis Stream, each once, and reads them back: the way in for live events.

An event is acknowledged when the script that appended it has returned, never before. What Redis promises after that is
the setting `redis_appendfsync` (docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import pyarrow as pa
import redis
import redis.asyncio
from redis.exceptions import RedisError

from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.events import EVENT_SCHEMA, LOG_SCHEMA, SEQ_COUNTER_BITS, seq_of
from feature_repo.online_keys import checked_project, events_key, seen_prefix
from feature_repo.redis_scripts import script_text

#: How long an `event_id` is remembered. An event that happened earlier may have been counted before: backfill's work.
SEEN_S: Final = 7 * 86_400

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000_000)]  # µs, before the year 10000
_TypeName = Literal[
    "impression", "view", "cart", "purchase", "cancel", "like", "dislike", "rating", "confirm", "reject"
]  # fmt: skip


class StreamEvent(msgspec.Struct, array_like=True, frozen=True):
    """An event in the stream: the fields of `EVENT_SCHEMA` in its order, times in µs since the epoch (UTC)."""

    event_id: str
    user_id: str
    item_id: str
    event_type: _TypeName
    value: float | None
    quantity: _Int64 | None
    event_timestamp: _Time
    received_at: _Time
    session_id: str | None
    request_id: str | None
    rank: _Int64 | None
    context: str | None
    category: str | None
    price: _Int64 | None


class AppendResult(NamedTuple):
    """What became of an event: "accepted", "duplicate" (then `seq` is the first one's) or "too_old" (`seq` 0)."""

    status: Literal["accepted", "duplicate", "too_old"]
    seq: int


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(StreamEvent).decode


def append_events(
    client: redis.Redis, project: str, events: Sequence[dict[str, Any]], now_ms: int
) -> list[AppendResult]:
    """Append events to the stream; what is in the answer is in the stream.

    Parameters
    ----------
    client
        Client of the project's Redis.
    project
        Name of the project.
    events
        Fields of `EVENT_SCHEMA`, times in µs; absent fields are null.
    now_ms
        The time; events that happened more than seven days before it are "too_old": they belong to a backfill, as
        their ids are no longer known.

    Raises
    ------
    BadInputError
        If an event does not have the fields and types of the contract; then none was appended.
    UnavailableError
        If Redis did not confirm: the events may be in or not, and sending them again with the same ids is safe.
    """
    batch = _Batch(project, events, now_ms)
    if not batch.keys:
        return batch.results([])
    try:
        return batch.results(client.register_script(_TEXT)(keys=batch.keys, args=batch.arguments, client=client))
    except (RedisError, OSError) as error:
        raise _unconfirmed(error) from error


async def append_events_async(
    client: redis.asyncio.Redis, project: str, events: Sequence[dict[str, Any]], now_ms: int
) -> list[AppendResult]:
    """Append events without blocking the event loop; the twin of `append_events`."""
    batch = _Batch(project, events, now_ms)
    if not batch.keys:
        return batch.results([])
    try:
        return batch.results(await client.register_script(_TEXT)(keys=batch.keys, args=batch.arguments, client=client))
    except (RedisError, OSError) as error:
        raise _unconfirmed(error) from error


_TEXT = script_text("append")


class _Batch:
    """The script's arguments for some events, and the meaning of its answer."""

    def __init__(self, project: str, events: Sequence[dict[str, Any]], now_ms: int) -> None:
        oldest = now_ms * 1000 - SEEN_S * 1_000_000
        prefix = seen_prefix(checked_project(project))
        records = [_record(event) for event in events]
        self._fresh = [record.event_timestamp >= oldest for record in records]
        fresh = [record for record, keep in zip(records, self._fresh, strict=True) if keep]
        self.keys = [events_key(project), *(prefix + record.event_id for record in fresh)] if fresh else []
        self.arguments: list[Any] = [SEEN_S, (1 << SEQ_COUNTER_BITS) - 1, *(_encode(record) for record in fresh)]

    def results(self, answer: list[Any]) -> list[AppendResult]:
        pairs = iter(zip(answer[::2], answer[1::2], strict=True))
        results = []
        for keep in self._fresh:
            if keep:
                appended, stream_id = next(pairs)
                results.append(AppendResult("accepted" if appended else "duplicate", seq_from(stream_id)))
            else:
                results.append(AppendResult("too_old", 0))
        return results


def _record(event: dict[str, Any]) -> StreamEvent:
    if unknown := set(event) - set(EVENT_SCHEMA.names):
        raise BadInputError(f"unknown field {min(unknown)!r} in an event; known are: {', '.join(EVENT_SCHEMA.names)}")
    try:
        return msgspec.convert([event.get(name) for name in EVENT_SCHEMA.names], StreamEvent)
    except msgspec.ValidationError as error:
        raise BadInputError(f"event {event.get('event_id')!r} does not fit the contract: {error}") from None


def _encode(record: StreamEvent) -> bytes:
    try:
        return _ENCODE(record)
    except UnicodeEncodeError as error:
        raise BadInputError(f"event {record.event_id!r} has text that is not Unicode: {error}") from None


def _unconfirmed(error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"Redis did not confirm the events ({type(error).__name__}: {error}); send them again with the same event_id"
    )


def seq_from(stream_id: bytes | str) -> int:
    """Return the `seq` of a stream id."""
    ms, counter = (stream_id.decode() if isinstance(stream_id, bytes) else stream_id).split("-")
    return seq_of(int(ms), int(counter))


class StreamBatch(NamedTuple):
    """Entries read from the stream.

    Attributes
    ----------
    table
        The events, `LOG_SCHEMA`, in `seq` order.
    malformed
        `seq` and payload of entries that are no events (somebody else wrote to the stream).
    last_seq
        `seq` of the last entry of either kind.
    """

    table: pa.Table
    malformed: list[tuple[int, bytes]]
    last_seq: int


def decode_entries(entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> StreamBatch:
    """Decode entries of the stream as Redis returned them; at least one."""
    seqs, events, malformed = [], [], []
    for stream_id, fields in entries:
        seq, payload = seq_from(stream_id), fields.get(b"e", b"")
        try:
            events.append(_DECODE(payload))
            seqs.append(seq)
        except (msgspec.DecodeError, UnicodeDecodeError):
            malformed.append((seq, payload))
    columns = zip(*map(msgspec.structs.astuple, events), strict=True) if events else ([] for _ in EVENT_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip((seqs, *columns), LOG_SCHEMA, strict=True)]
    return StreamBatch(pa.Table.from_arrays(arrays, schema=LOG_SCHEMA), malformed, seq_from(entries[-1][0]))
