"""Appends events and catalogue changes to the project's Redis Stream, each once, and reads them back: the one way in.

Both kinds share one order (`seq`). An entry is acknowledged when the script that appended it has returned, never
before. What Redis promises after that is the setting `redis_appendfsync` (docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis
import redis.asyncio
from redis.exceptions import RedisError

from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.events import EVENT_SCHEMA, LOG_SCHEMA, SEQ_COUNTER_BITS, seq_of
from feature_repo.item_changes import ItemChange
from feature_repo.online_keys import checked_project, events_key, seen_prefix
from feature_repo.redis_commands import is_cluster
from feature_repo.redis_scripts import script_text

I64 = npt.NDArray[np.int64]

#: How long an `event_id` is remembered. An event that happened earlier may have been counted before: backfill's work.
SEEN_S: Final = 7 * 86_400
#: How many entries may wait in the stream (about 250 bytes each) where no setting says otherwise.
MAX_ENTRIES: Final = 2_000_000

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
    """What became of an entry: "accepted", "duplicate" (then `seq` is the first one's) or "too_old" (`seq` 0)."""

    status: Literal["accepted", "duplicate", "too_old"]
    seq: int


_ENCODE = msgspec.msgpack.Encoder().encode
#: An event as a tuple of its columns: one step less on the way into a table than the struct.
_ROW: Any = tuple[*get_type_hints(StreamEvent, include_extras=True).values()]  # type: ignore[misc] # made at run time
_DECODE_ROW = msgspec.msgpack.Decoder(_ROW).decode
_DECODE_ROWS = msgspec.msgpack.Decoder(list[_ROW]).decode
_DECODE_CHANGE = msgspec.msgpack.Decoder(ItemChange).decode


class Append:
    """Some entries of one kind on their way into the stream: the script's arguments, and what its answer means."""

    def __init__(
        self, project: str, field: Literal["e", "i"], entries: Sequence[tuple[str, bytes] | None], max_entries: int
    ) -> None:
        prefix = seen_prefix(checked_project(project))
        kept = [entry for entry in entries if entry is not None]
        self._kept = [entry is not None for entry in entries]
        self.keys = [events_key(project), *(prefix + entry_id for entry_id, _ in kept)] if kept else []
        largest = (1 << SEQ_COUNTER_BITS) - 1
        self.arguments: list[Any] = [SEEN_S, largest, max_entries, field, *(payload for _, payload in kept)]

    @classmethod
    def of_events(
        cls, project: str, events: Sequence[dict[str, Any]], now_ms: int, max_entries: int = MAX_ENTRIES
    ) -> Append:
        """Take events as `append_events` does; those that are too old are left out."""
        oldest = now_ms * 1000 - SEEN_S * 1_000_000
        records = [_record(event) for event in events]
        entries = [(r.event_id, _encode(r)) if r.event_timestamp >= oldest else None for r in records]
        return cls(project, "e", entries, max_entries)

    @classmethod
    def of_changes(cls, project: str, changes: Sequence[ItemChange], max_entries: int = MAX_ENTRIES) -> Append:
        """Take changes of the catalogue. Their ids are apart from those of events."""
        return cls(project, "i", [(f"item:{c.change_id}", _ENCODE(c)) for c in changes], max_entries)

    def results(self, answer: list[Any]) -> list[AppendResult]:
        """Return what became of every entry, in their order."""
        pairs = iter(zip(answer[::2], answer[1::2], strict=True))
        results = []
        for kept in self._kept:
            if kept:
                appended, stream_id = next(pairs)
                results.append(AppendResult("accepted" if appended else "duplicate", seq_from(stream_id)))
            else:
                results.append(AppendResult("too_old", 0))
        return results

    def run(self, client: redis.Redis) -> list[AppendResult]:
        """Append, or raise `UnavailableError`."""
        return run_appends(client, [self])

    async def run_async(self, client: redis.asyncio.Redis) -> list[AppendResult]:
        """Append without blocking the event loop, or raise `UnavailableError`."""
        if not self.keys:
            return self.results([])
        try:
            script = client.register_script(_TEXT)
            return self.results(await script(keys=self.keys, args=self.arguments, client=client))
        except (RedisError, OSError) as error:
            raise _unconfirmed(error) from error


def run_appends(client: redis.Redis, appends: Sequence[Append]) -> list[AppendResult]:
    """Append batch after batch in one round trip; return what became of all their entries.

    Raises
    ------
    UnavailableError
        If Redis did not confirm all: some may be in, and sending all again is safe.
    """
    script, asked = client.register_script(_TEXT), [append for append in appends if append.keys]
    try:
        if len(asked) == 1 or is_cluster(client):
            replies = [script(keys=append.keys, args=append.arguments) for append in asked]
        else:
            pipeline = client.pipeline(transaction=False)
            for append in asked:
                script(keys=append.keys, args=append.arguments, client=pipeline)
            replies = pipeline.execute() if asked else []
    except (RedisError, OSError) as error:
        raise _unconfirmed(error) from error
    answers = iter(replies)
    return [result for append in appends for result in append.results(next(answers) if append.keys else [])]


def append_events(
    client: redis.Redis, project: str, events: Sequence[dict[str, Any]], now_ms: int, max_entries: int = MAX_ENTRIES
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
    max_entries
        Nothing is appended where the stream would then have more entries than this.

    Raises
    ------
    BadInputError
        If an event does not have the fields and types of the contract; then none was appended.
    UnavailableError
        If Redis did not confirm: the events may be in or not, and sending them again with the same ids is safe.
    """
    return Append.of_events(project, events, now_ms, max_entries).run(client)


async def append_events_async(
    client: redis.asyncio.Redis,
    project: str,
    events: Sequence[dict[str, Any]],
    now_ms: int,
    max_entries: int = MAX_ENTRIES,
) -> list[AppendResult]:
    """Append events without blocking the event loop; the twin of `append_events`."""
    return await Append.of_events(project, events, now_ms, max_entries).run_async(client)


_TEXT = script_text("append")


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
        f"Redis did not confirm ({type(error).__name__}: {error}); send the same again, with the same ids"
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
    changes
        `seq` and content of the catalogue changes, in `seq` order.
    malformed
        `seq` and payload of entries that are neither (somebody else wrote to the stream).
    last_seq
        `seq` of the last entry of any kind.
    """

    table: pa.Table
    changes: list[tuple[int, ItemChange]]
    malformed: list[tuple[int, bytes]]
    last_seq: int


#: An entry as Redis sends it: its id, and fields and values in turn.
Entry = tuple[bytes, list[bytes]]


def decode_entries(entries: Sequence[Entry]) -> StreamBatch:
    """Decode entries of the stream as Redis sends them; at least one."""
    parts = np.array(list(map(int, b"-".join([stream_id for stream_id, _ in entries]).split(b"-"))), np.int64)
    seqs = (parts[0::2] << SEQ_COUNTER_BITS) | parts[1::2]
    payloads = [words[1] for _, words in entries if words[0] == b"e" and len(words) == 2]
    if len(payloads) == len(entries):  # all are events, as nearly always: one call decodes them
        try:
            rows = _DECODE_ROWS(b"\xdd" + len(payloads).to_bytes(4, "big") + b"".join(payloads))
            return StreamBatch(_table(seqs, rows), [], [], int(seqs[-1]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return _decode_each(entries, seqs)


def _decode_each(entries: Sequence[Entry], seqs: I64) -> StreamBatch:
    events: list[tuple[Any, ...]] = []
    changes: list[tuple[int, ItemChange]] = []
    malformed: list[tuple[int, bytes]] = []
    is_event = np.zeros(len(entries), np.bool_)
    for n, (seq, (_, words)) in enumerate(zip(seqs.tolist(), entries, strict=True)):
        fields = dict(zip(words[::2], words[1::2], strict=True))
        payload = fields.get(b"i" if b"i" in fields else b"e", b"")
        try:
            if b"i" in fields:
                changes.append((seq, _DECODE_CHANGE(payload)))
            else:
                events.append(_DECODE_ROW(payload))
                is_event[n] = True
        except (msgspec.DecodeError, UnicodeDecodeError):
            malformed.append((seq, payload))
    return StreamBatch(_table(seqs[is_event], events), changes, malformed, int(seqs[-1]))


def _table(seqs: I64, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Return `LOG_SCHEMA`."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in EVENT_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip((seqs, *columns), LOG_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LOG_SCHEMA)
