"""Quarantine of what the API refused: a bounded stream in Redis, counted by reason, drained to Parquet by ingest.

Whatever is sent, memory and disk stay bounded: the stream keeps the last `MAX_WAITING` rows, a row is cut at
`MAX_RAW_BYTES`, the files at `MAX_FILE_BYTES` in all (the oldest go). The counts are of all that was ever refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import redis
from redis.exceptions import RedisError

from feature_repo.errors import UnavailableError
from feature_repo.events import QUARANTINE_SCHEMA
from feature_repo.online_keys import quarantine_counts_key, quarantine_key
from feature_repo.parquet_files import write_whole
from feature_repo.settings import Settings

MAX_WAITING: Final = 10_000
MAX_RAW_BYTES: Final = 8_192
MAX_FILE_BYTES: Final = 256_000_000
#: Rows per file, and how long fewer may wait for their file.
DRAIN_ROWS: Final = 1_000
DRAIN_EVERY_S: Final = 60.0
_MAX_DETAIL: Final = 300


@dataclass(frozen=True, slots=True)
class Refused:
    """One row that was refused: which way it came (`events` or `items`), `slug: detail`, and the row as JSON."""

    source: str
    problem: str
    raw: bytes


def refuse_commands(project: str, refused: Iterable[Refused]) -> list[tuple[Any, ...]]:
    """Return the commands that put rows into quarantine and count them, for one pipeline."""
    commands: list[tuple[Any, ...]] = []
    counts: Counter[str] = Counter()
    for row in refused:
        reason, _, detail = row.problem.partition(": ")
        counts[reason] += 1
        fields = ("s", row.source, "r", reason, "d", detail[:_MAX_DETAIL], "w", row.raw[:MAX_RAW_BYTES])
        commands.append(("XADD", quarantine_key(project), "MAXLEN", "~", MAX_WAITING, "*", *fields))
    return commands + [("HINCRBY", quarantine_counts_key(project), reason, n) for reason, n in counts.items()]


def refused_counts(client: redis.Redis, project: str) -> dict[str, int]:
    """Return how many rows were refused, by reason, most frequent first.

    Raises
    ------
    UnavailableError
        If Redis does not answer.
    """
    try:
        found: Mapping[bytes, bytes] = client.hgetall(quarantine_counts_key(project))  # type: ignore[assignment] # redis-py's types are those of both clients
    except (RedisError, OSError) as error:
        raise UnavailableError(f"Redis did not answer: {type(error).__name__}: {error}") from error
    return dict(Counter({reason.decode(): int(count) for reason, count in found.items()}).most_common())


class QuarantineDrain:
    """Moves refused rows from Redis into the project's quarantine files."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._directory = settings.quarantine_dir
        self._key = quarantine_key(settings.project)
        self._source = f"{settings.project}:"
        self._client = client
        self._due = 0.0

    def waiting(self) -> int:
        """Return how many rows wait in Redis."""
        count: Any = self._client.xlen(self._key)
        return int(count)

    def step(self, now_s: float, waiting: int) -> int:
        """Write a file if enough rows wait, or some for long enough; return how many were written.

        Parameters
        ----------
        now_s
            Monotonic seconds.
        waiting
            As `waiting` said.

        Raises
        ------
        OSError
            If the disk is full or away; the rows stay in Redis.
        """
        if not waiting or (waiting < DRAIN_ROWS and now_s < self._due):
            return 0
        self._due = now_s + DRAIN_EVERY_S
        return self.drain()

    def drain(self) -> int:
        """Write what waits, a file at most; return how many rows."""
        entries: Any = self._client.xrange(self._key, count=DRAIN_ROWS)
        if not entries:
            return 0
        rows = [self._row(stream_id, fields) for stream_id, fields in entries]
        first, last = entries[0][0].decode(), entries[-1][0].decode()
        self._directory.mkdir(parents=True, exist_ok=True)
        # Named by the first row: what a crash before the trimming leaves is replaced by the next, longer file.
        write_whole(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), self._directory / f"refused-{first}.parquet")
        ms, counter = last.split("-")
        self._client.xtrim(self._key, minid=f"{ms}-{int(counter) + 1}", approximate=False)
        self._forget_oldest()
        return len(rows)

    def _row(self, stream_id: bytes, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
        source, reason, detail, raw = (
            fields.get(name, b"").decode(errors="replace") for name in (b"s", b"r", b"d", b"w")
        )
        ms = int(stream_id.split(b"-")[0])
        return {"source": self._source + source, "row": ms, "reason": reason, "detail": detail, "raw": _as_json(raw)}

    def _forget_oldest(self) -> None:
        files = sorted(self._directory.glob("refused-*.parquet"), key=lambda path: path.name)
        total = sum(path.stat().st_size for path in files)
        while total > MAX_FILE_BYTES and len(files) > 1:
            total -= files[0].stat().st_size
            files.pop(0).unlink()


def _as_json(raw: str) -> str:
    """Return the row as it is, or, where it was cut, as a JSON text."""
    try:
        json.loads(raw)
    except ValueError:
        return json.dumps(raw, ensure_ascii=False)
    return raw
