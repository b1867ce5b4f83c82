"""Reads the project's stream for ingest: what comes next, and again what is not yet in the offline log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import redis

from feature_repo.events import stream_id_of
from feature_repo.online_keys import events_key
from feature_repo.packed_commands import ask
from feature_repo.redis_scripts import script_text
from feature_repo.stream import Entry, StreamBatch

#: Entries per reading of what is not logged: Redis answers nobody else meanwhile.
_READ_ENTRIES: Final = 5_000


class StreamReader:
    """Reads and trims the stream.

    Parameters
    ----------
    client
        Client for raw bytes of the Redis that has the stream.
    project
        Name of the project.
    """

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client = client
        self._key = events_key(project)

    def go_on_after(self, seq: int) -> None:
        """Make ids of further entries come after `seq`: a stream that was lost begins anew, by the server's clock."""
        if seq:
            continue_after(self._client, self._key, seq)

    def after(self, seq: int, count: int, wait_ms: int = 0) -> list[Entry]:
        """Return up to `count` entries after `seq`; where there are none, wait for some for `wait_ms`."""
        wait = ("BLOCK", wait_ms) if wait_ms else ()
        (answer,) = ask(self._client, [("XREAD", "COUNT", count, *wait, "STREAMS", self._key, stream_id_of(seq))])
        if not answer:
            return []
        # RESP2 answers a list of (key, entries), RESP3 a dict.
        return _as_sent(next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1])

    def between(self, after: int, until: int) -> list[Entry]:
        """Return the next entries after one `seq` and up to another, some thousands at most."""
        bounds = f"({stream_id_of(after)}", stream_id_of(until)
        return _as_sent(ask(self._client, [("XRANGE", self._key, *bounds, "COUNT", _READ_ENTRIES)])[0])

    def trim(self, seq: int) -> None:
        """Remove what comes before `seq`, or most of it, in portions that keep Redis free for others."""
        while ask(self._client, [("XTRIM", self._key, "MINID", "~", stream_id_of(seq))])[0]:
            pass  # it removes 10,000 at most at a time

    def length(self) -> int:
        """Return how many entries the stream has."""
        answers: list[Any] = ask(self._client, [("XLEN", self._key)])
        return int(answers[0])


def continue_after(client: redis.Redis, key: str, seq: int) -> None:
    """Make ids of further entries of a stream come after `seq`; nothing where they do.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails; repeating is safe.
    """
    client.register_script(script_text("stream_after"))(keys=[key], args=[stream_id_of(seq)])


def _as_sent(entries: list[Any]) -> list[Entry]:
    """Return entries as Redis sends them; the client of a cluster makes dicts of their fields."""
    if not entries or isinstance(entries[0][1], list):
        return entries
    return [(stream_id, [word for pair in fields.items() for word in pair]) for stream_id, fields in entries]


@dataclass(slots=True)
class KeptBatches:
    """The last batches folded, kept for the log, which would have to read and decode them again otherwise."""

    most_events: int
    #: `seq` before the first one.
    after: int = 0
    batches: list[StreamBatch] = field(default_factory=list)

    def add(self, after: int, batch: StreamBatch) -> None:
        """Keep a batch that follows `after`; over a gap or without room, forget those before (the stream has them)."""
        events = sum(kept.table.num_rows for kept in self.batches) + batch.table.num_rows
        if not self.batches or self.batches[-1].last_seq != after or events > self.most_events:
            self.batches, self.after = [], after
        self.batches.append(batch)

    def joined(self) -> StreamBatch:
        """Return all as one batch."""
        return StreamBatch(
            pa.concat_tables([batch.table for batch in self.batches]),
            [change for batch in self.batches for change in batch.changes],
            [entry for batch in self.batches for entry in batch.malformed],
            self.batches[-1].last_seq,
        )
