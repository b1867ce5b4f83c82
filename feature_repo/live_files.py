"""The live log's files by name, and merging small ones: a quiet shop makes one every two seconds, 43,000 a day.

A file's name says the first and the last `seq` in it, and its rows follow each other in the stream. So a file whose
range lies in another's holds nothing the other has not: while small files are merged, both may be there, also after a
crash, and readers leave the small ones out.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.parquet_files import sync, write_whole

_NAME = re.compile(r"live-(\d+)-(\d+)\.parquet")
#: Files are merged when so many small ones of one day follow each other: every few minutes.
MERGED_FILES: Final = 100
SMALL_BYTES: Final = 1_000_000
#: Bytes merged at a time: ingest folds nothing meanwhile.
_MOST_BYTES: Final = 8_000_000


class LiveFile(NamedTuple):
    """A live file and the range of `seq` in it."""

    first: int
    last: int
    path: Path


def live_files(directory: Path, oldest: str = "") -> list[LiveFile]:
    """Return the live files in `seq` order, a file before those whose range lies in its own.

    Parameters
    ----------
    oldest
        First day wanted, as its directory is called; all if empty.
    """
    days = [day for day in directory.glob("day=*") if day.name >= oldest]
    names = ((_NAME.fullmatch(path.name), path) for day in days for path in day.glob("live-*.parquet"))
    files = [LiveFile(int(match[1]), int(match[2]), path) for match, path in names if match]
    return sorted(files, key=lambda file: (file.first, -file.last, file.path))


def log_paths(directory: Path) -> list[Path]:
    """Return the Parquet files of a log, sorted, without live ones whose rows another one has as well."""
    reached, merged = 0, set()
    for file in live_files(directory):
        if file.last <= reached:
            merged.add(file.path)
        reached = max(reached, file.last)
    return [path for path in sorted(directory.glob("day=*/*.parquet")) if path not in merged]


@contextmanager
def files_kept(directory: Path) -> Iterator[None]:
    """Keep the files of a log where they are while they are read."""
    if not directory.is_dir():
        yield
        return
    with _locked(directory, fcntl.LOCK_SH):
        yield


def merge_small(directory: Path, schema: pa.Schema) -> int:
    """Merge one run of small files, if there is one and nobody reads; called by the log's only writer.

    Returns
    -------
    int
        How many files became one.
    """
    run = _run(live_files(directory))
    if not run:
        return 0
    with suppress(BlockingIOError), _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
        rows = pa.concat_tables([pq.read_table(file.path, schema=schema, partitioning=None) for file in run])
        write_whole(rows, run[0].path.with_name(f"live-{run[0].first}-{run[-1].last}.parquet"))
        for file in run:
            file.path.unlink()
        sync(run[0].path.parent)
        return len(run)
    return 0


@contextmanager
def _locked(directory: Path, mode: int) -> Iterator[None]:
    """Hold a lock on a directory; the system frees it if we die."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, mode)
        yield
    finally:
        os.close(handle)


def _run(files: list[LiveFile]) -> list[LiveFile]:
    """Return the first run of enough small files of one day that follow each other, as far as may be merged at once."""
    sizes = [(file, file.path.stat().st_size) for file in files]
    for (_, small), group in groupby(sizes, key=lambda pair: (pair[0].path.parent, pair[1] < SMALL_BYTES)):
        members = list(group)
        if small and len(members) >= MERGED_FILES:
            total, run = 0, []
            for file, size in members:
                total += size
                if total > _MOST_BYTES:
                    break
                run.append(file)
            return run
    return []
