"""Backfill: folds the event log into the offline feature store, from where the last run ended.

A run reads the log in chunks, writes the last state per (entity, feature time) as one part per chunk and view, then
the end state of all entities, and commits with the manifest. A run that dies before leaves files nobody looks at; the
next one starts from the same end state and writes the same bytes.
"""

from __future__ import annotations

import fcntl
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.catalog_history import catalog_history, catalog_table
from feature_repo.datasets import read_items
from feature_repo.end_state import EndState
from feature_repo.errors import ConflictError, NotFoundError
from feature_repo.event_log import read_item_changes, read_report
from feature_repo.events import ITEM_SCHEMA, EventType
from feature_repo.fold import EventArrays, Snapshots, encode_events, fold_events
from feature_repo.ingest_log import log_watermark
from feature_repo.live_files import files_kept
from feature_repo.log_chunks import LogFile, log_chunks, log_files
from feature_repo.offline_layout import (
    FORMAT,
    RECENT_SCHEMA,
    VALID_FROM,
    Manifest,
    content_hash,
    layout_hashes,
    read_manifest,
    state_columns,
    valid_from,
    write_manifest,
    write_part,
)
from feature_repo.part_writer import CHUNKS_AHEAD, PartWriter
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW, FOLD_VIEWS, RECENT_VIEW

#: Events folded at a time; bounds memory (about 2 kB an event) beside the end state of all entities.
CHUNK_EVENTS: Final = 200_000
_LOCK: Final = ".lock"


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did."""

    events: int
    last_seq: int
    rows: dict[str, int]
    rebuilt: str = ""
    """Why everything was folded from the start; empty where the run went on from the last one."""


def backfill(
    settings: Settings,
    *,
    full: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    chunk_events: int = CHUNK_EVENTS,
) -> BackfillReport:
    """Bring the offline feature store up to the end of the event log. Does nothing where nothing is new.

    Parameters
    ----------
    settings
        Reads `events_dir` and `items_path`, writes `offline_dir`.
    full
        Fold everything from the start. Happens anyway where a layout or the imported history has changed.
    on_progress
        Called with (events done, events in total).
    chunk_events
        Events folded at a time.

    Raises
    ------
    NotFoundError
        If the project has no events.
    ConflictError
        If another backfill is running, or the history is replaced meanwhile.
    """
    directory = settings.offline_dir
    if not settings.events_dir.is_dir():
        raise _no_events(settings)
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        history = _history(settings)
        committed = _committed(directory)
        _remove_unnamed(directory, committed)
        before, rebuilt = _start(committed, history, full=full)
        with files_kept(settings.events_dir):
            files = log_files(settings, before.last_seq)
            if not files and not before.events:
                raise _no_events(settings)
            try:
                after = _fold_log(directory, before, files, chunk_events, on_progress) if files else before
            except FileNotFoundError:
                raise _replaced(settings) from None
        after = _with_catalog(settings, after)
        if _history(settings) != history:
            raise _replaced(settings)
        if after != committed:
            write_manifest(directory, after)
    rows = {
        view: sum(part.rows for part in parts) - sum(part.rows for part in before.parts.get(view, []))
        for view, parts in after.parts.items()
    }
    return BackfillReport(after.events - before.events, after.last_seq, rows, rebuilt)


def _start(committed: Manifest | None, history: str, *, full: bool) -> tuple[Manifest, str]:
    """Return the state to go on from, and why it is not the committed one."""
    fresh = Manifest(layouts=layout_hashes(), history=history)
    if committed is None:
        return fresh, "there was none yet"
    changed = sorted(name for name, layout in fresh.layouts.items() if committed.layouts.get(name) != layout)
    if full:
        reason = "asked for"
    elif committed.format != FORMAT:
        reason = "the format of the offline store changed"
    elif changed:
        reason = f"the layout of {', '.join(changed)} changed"
    elif committed.history != history:
        reason = "the imported history changed"
    else:
        return committed, ""
    return replace(fresh, generation=committed.generation + 1), reason


def _fold_log(
    directory: Path,
    before: Manifest,
    files: list[LogFile],
    chunk_events: int,
    on_progress: Callable[[int, int], None] | None,
) -> Manifest:
    """Fold all new events; write their parts and the end state."""
    end = EndState.load(directory, before) if before.events else EndState()
    done, total = 0, sum(file.rows for file in files)
    first_time, last_time, last_seq = before.first_time, before.last_time, before.last_seq
    # While one chunk's snapshots are written, the next chunk's are collected.
    snapshots = deque(Snapshots(0) for _ in range(CHUNKS_AHEAD + 1))
    with PartWriter(directory) as writer:
        for chunk in log_chunks(files, before.last_seq, chunk_events):
            events = encode_events(chunk)
            snapshots.rotate()
            snapshots[0] = _emptied(snapshots[0], len(events))
            rows_of = end.rows(chunk, events.etype)  # first, because it makes room in the states
            fold_events(events, end.states, rows_of, snapshots[0])
            tables = {view.name: _rows_of(end, snapshots[0], v) for v, view in enumerate(FOLD_VIEWS)}
            tables[RECENT_VIEW] = partial(_recent, chunk, events)
            writer.write(tables, f"part-{before.generation:04d}-{events.seq[0]}-{events.seq[-1]}.parquet")
            done += len(events)
            first, last, last_seq = int(events.time.min()), int(events.time.max()), int(events.seq[-1])
            first_time = first if first_time is None else min(first_time, first)
            last_time = last if last_time is None else max(last_time, last)
            if on_progress is not None:
                on_progress(done, total)
        writer.wait()
    parts = {view: [*before.parts.get(view, []), *new] for view, new in writer.parts.items()}
    return replace(
        before,
        events=before.events + done,
        first_time=first_time,
        last_time=last_time,
        last_seq=last_seq,
        parts=before.parts | parts,
        end_state=end.save(directory, f"{before.generation:04d}-{last_seq}"),
    )


def _emptied(snapshots: Snapshots, capacity: int) -> Snapshots:
    """Return snapshots that collect up to `capacity` events, the same ones if they can."""
    if snapshots.capacity < capacity:
        return Snapshots(capacity)
    snapshots.clear()
    return snapshots


def _rows_of(end: EndState, snapshots: Snapshots, v: int) -> Callable[[], tuple[pa.Table, int]]:
    """Return what makes the rows of `FOLD_VIEWS[v]` later; `end` may meanwhile get more entities."""
    rows, state, superseding = snapshots.view(v)
    ids = end.ids(v, rows)

    def make() -> tuple[pa.Table, int]:
        columns = {VALID_FROM: valid_from(state.ints[:, 0])} | state_columns(FOLD_VIEWS[v], state)
        return pa.table(ids | columns), superseding

    return make


def _recent(chunk: pa.Table, events: EventArrays) -> tuple[pa.Table, int]:
    """Return the events of a chunk that belong to users' recent events."""
    table = pa.table(
        [
            chunk["user_id"],
            valid_from(events.time),
            pa.array(events.seq),
            chunk["item_id"],
            pa.array(events.etype),
            pa.array(events.time),
        ],
        schema=RECENT_SCHEMA,
    )
    return table.filter(pa.array(events.etype != EventType.impression)), 0


def _with_catalog(settings: Settings, manifest: Manifest) -> Manifest:
    """Write the catalogue's history as a part, if what was imported, its changes or the start of history changed."""
    try:
        items = read_items(settings)
    except NotFoundError:
        items = ITEM_SCHEMA.empty_table()
    first_time, item_seq = manifest.first_time or 0, log_watermark(settings.item_changes_dir)
    content = f"{content_hash(catalog_table(items, first_time))}-{item_seq}"
    if content == manifest.catalog:
        return manifest
    table = catalog_history(items, read_item_changes(settings), first_time)
    item_seq = max(item_seq, pc.max(table["seq"]).as_py() or 0)  # what was logged while we looked is in it, too
    part = write_part(settings.offline_dir, f"{CATALOG_VIEW}/part-{content_hash(table)}.parquet", table)
    return replace(manifest, catalog=content, item_seq=item_seq, parts=manifest.parts | {CATALOG_VIEW: [part]})


def _history(settings: Settings) -> str:
    """Tell imports apart; reading the report also finishes an import that was interrupted."""
    try:
        report = read_report(settings)
    except NotFoundError:
        return ""
    return f"{report.name} {report.data_hash} {report.shift_weeks:+d} weeks"


def _committed(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except NotFoundError:
        return None


def _remove_unnamed(directory: Path, committed: Manifest | None) -> None:
    """Remove files the manifest does not name: of runs that died, and of the generation before the last rebuild."""
    named = set() if committed is None else {directory / path for path in committed.paths()}
    for path in directory.glob("*/*.parquet"):
        if path not in named:
            path.unlink()


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Refuse a second backfill at the same time; the system frees the lock if we die."""
    with (directory / _LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another backfill is writing {directory}; wait until it has ended") from None
        yield


def _no_events(settings: Settings) -> NotFoundError:
    return NotFoundError(
        f"project {settings.project!r} has no events in {settings.events_dir}; import a data set first"
    )


def _replaced(settings: Settings) -> ConflictError:
    return ConflictError(f"the history of project {settings.project!r} was replaced during the backfill; run it again")
