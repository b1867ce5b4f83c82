"""Prepares the next batch of ingest in a thread, while Redis is busy with the rows of the one before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class ReadAhead(Generic[Batch]):
    """One batch at most, prepared before it is asked for.

    What follows an entry of the stream only ever grows at its end, so a batch that was read ahead is the one that
    would be read now, or its first part.

    Parameters
    ----------
    prepare
        Returns what follows a `seq`, None if nothing does; called in a thread of this object's own.
    """

    def __init__(self, prepare: Callable[[int], Batch | None]) -> None:
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1, "larder-read-ahead")
        self._after = -1
        self._batch: Future[Batch | None] | None = None

    def begin(self, after: int) -> None:
        """Begin to prepare what follows a `seq`."""
        self._after, self._batch = after, self._thread.submit(self._prepare, after)

    def take(self, after: int) -> Batch | None:
        """Return the batch after a `seq` if it was begun; None if it was not, or nothing followed.

        Raises
        ------
        redis.exceptions.RedisError
            If Redis failed.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return None
        if self._after != after:  # the batch before was not written: that one comes again
            batch.cancel()
            return None
        return batch.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
