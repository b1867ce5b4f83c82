"""What ingest says of itself in Redis: how far it is and how fast; read beside every refresh of the item table."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from feature_repo.errors import UnavailableError
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.online_keys import status_key
from feature_repo.online_reader import AsyncOnlineReader


class IngestView(msgspec.Struct, frozen=True):
    """What serving takes from ingest's counters (feature_repo/ingest.py); fields it does not know are ignored.

    Attributes
    ----------
    current_ms
        Everything accepted before this time is in the features, as the worker last said; 0 if it never ran.
    lag_ms
        Age of the newest folded event when it became visible; 0 while there is nothing to do.
    rate
        Events folded per second.
    updated_ms
        When the worker said so; it does every second.
    watermark_ms
        Time of the last event folded; 0 if none was.
    stream_entries
        Entries in the stream.
    quarantine_waiting
        Refused rows in Redis that wait for their file.
    """

    current_ms: int = 0
    lag_ms: float = 0.0
    rate: float = 0.0
    updated_ms: int = 0
    watermark_ms: int = 0
    stream_entries: int = 0
    quarantine_waiting: int = 0

    @property
    def known_ms(self) -> int:
        """Time up to which the features are complete; 0 if unknown.

        The watermark alone stands still when nothing happens; a worker that finds nothing to do says so.
        """
        return max(self.current_ms, self.watermark_ms)


async def read_ingest(client: Redis, project: str, reader: AsyncOnlineReader) -> IngestView:
    """Read watermark and counters.

    Raises
    ------
    UnavailableError
        If Redis is away.
    """
    watermark_ms = await reader.watermark() >> SEQ_COUNTER_BITS
    try:
        text: Any = await client.get(status_key(project))
    except (RedisError, OSError) as error:
        raise UnavailableError(f"Redis did not answer: {type(error).__name__}") from error
    try:
        said = msgspec.json.decode(text, type=IngestView) if text else IngestView()
    except msgspec.MsgspecError:
        said = IngestView()
    return msgspec.structs.replace(said, watermark_ms=watermark_ms)
