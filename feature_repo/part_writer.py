"""Writes the parts of a backfill in the background: Parquet is encoded while the next chunk is folded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from feature_repo import offline_layout
from feature_repo.offline_layout import Part

#: Chunks written or waiting at a time, which bounds memory; the fold waits for the oldest beyond that.
CHUNKS_AHEAD = 1
_THREADS = 2


class PartWriter:
    """Writes the views of one chunk after the other; parts come back in the order in which chunks were given.

    Parameters
    ----------
    directory
        The offline store.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(_THREADS, "larder-part-writer")
        self._chunks: deque[list[tuple[str, Future[Part]]]] = deque()
        self.parts: dict[str, list[Part]] = {}

    def write(self, tables: dict[str, Callable[[], tuple[pa.Table, int]]], name: str) -> None:
        """Write one chunk.

        Parameters
        ----------
        tables
            By view: makes the rows and tells how many of them are superseding. Called in another thread, at the
            latest when the next but `CHUNKS_AHEAD` chunk comes.
        name
            File name within each view's directory.
        """
        self._chunks.append(
            [(view, self._pool.submit(self._write, f"{view}/{name}", make)) for view, make in tables.items()]
        )
        self.wait(CHUNKS_AHEAD)

    def wait(self, chunks: int = 0) -> None:
        """Wait until at most so many chunks are unfinished; raise what went wrong in one that is finished."""
        while len(self._chunks) > chunks:
            for view, part in self._chunks.popleft():
                self.parts.setdefault(view, []).append(part.result())

    def _write(self, path: str, make: Callable[[], tuple[pa.Table, int]]) -> Part:
        table, superseding = make()
        return offline_layout.write_part(self._directory, path, table, superseding)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
