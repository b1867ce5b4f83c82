"""Rows as they were at exactly a `seq`, and what they lacked then: the event log is folded once more, without Redis.

The offline store keeps the last state per feature time only, and a request may have met any state in between. So the
log is folded again by the compiled fold, and the states asked for are copied out on the way; memory is the state of
all entities (as for a backfill) and what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.end_state import EndState
from feature_repo.events import EventType
from feature_repo.fold import EventArrays, RowIndices, Snapshots, State, encode_events, fold_events
from feature_repo.log_chunks import LogFile, log_chunks
from feature_repo.rows import Rows
from feature_repo.views import FOLD_VIEWS, NULL_INT, View

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CHUNK_EVENTS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows that were used, n of each view: line i is one user, item and category.

    Attributes
    ----------
    entities
        user_id, item_id, category (null: none), length n.
    used
        For each of `FOLD_VIEWS`, then for the recent events: `seq` of the row used, shape (n,); 0 or less: none.
    bound
        Events with a lower `seq` had been accepted by then, shape (n,).
    """

    entities: pa.Table
    used: tuple[I64, ...]
    bound: I64


class Traced:
    """What the log says of the rows of one view that were used.

    Attributes
    ----------
    found
        Whether the log has an event of the entity with the `seq` used, shape (n,).
    next_seq
        First event after the one used that went into the entity's row, shape (n,); 0 if there is none.
    last_seq, last_time
        Last event before `bound` that went into the row, and its feature time (µs), shape (n,); 0 if there is none.
    """

    def __init__(self, row: I64, used: I64, bound: I64) -> None:
        self._row, self._used, self._bound = row, used, bound
        self._first_other = int(row.max(initial=-1)) + 1  # the rows asked about were numbered first
        n = len(used)
        self.found = np.zeros(n, np.bool_)
        self.next_seq, self.last_seq, self.last_time = (np.zeros(n, np.int64) for _ in range(3))

    def look(self, rows: I64, events: EventArrays, went_in: Mask) -> None:
        """Take note of a chunk of events: the row of each, and whether it went into that row."""
        n = len(events)
        place = np.flatnonzero((rows >= 0) & (rows < self._first_other) & went_in)
        # Sorted by row and then by place, which is the order of `seq`: a binary search finds the next event of a row.
        keys = np.sort(rows[place] * (n + 1) + place)
        if not len(keys):
            return
        exact = np.searchsorted(events.seq, self._used)
        hit = np.flatnonzero((exact < n) & (self._used > 0))
        hit = hit[(events.seq[exact[hit]] == self._used[hit]) & (rows[exact[hit]] == self._row[hit])]
        self.found[hit[went_in[exact[hit]]]] = True
        open_lines = np.flatnonzero((self.next_seq == 0) & (self._row >= 0) & (self._used < events.seq[-1]))
        after = np.searchsorted(events.seq, np.maximum(self._used[open_lines], 0), "right")
        which, at = self._of_same_row(keys, open_lines, after, n, step=0)
        self.next_seq[which] = events.seq[at]
        before = np.searchsorted(events.seq, self._bound)
        lines = np.flatnonzero(self._row >= 0)
        which, at = self._of_same_row(keys, lines, before[lines], n, step=-1)
        self.last_seq[which], self.last_time[which] = events.seq[at], events.time[at]

    def _of_same_row(self, keys: I64, lines: I64, place: I64, n: int, step: int) -> tuple[I64, I64]:
        """Return the lines whose row has an event at `place` or after (`step` 0) or before (-1), and its place."""
        at = np.searchsorted(keys, self._row[lines] * (n + 1) + place) + step
        inside = (at >= 0) & (at < len(keys))
        lines, at = lines[inside], at[inside]
        same = keys[at] // (n + 1) == self._row[lines]
        return lines[same], keys[at[same]] % (n + 1)


class TracedView(Traced):
    """`Traced` for a view of the fold, with the states themselves."""

    def __init__(self, view: View, row: I64, used: I64, bound: I64) -> None:
        super().__init__(row, used, bound)
        self.view = view
        self.seqs = np.unique(used[used > 0])
        self._ints = np.full((len(self.seqs), len(view.ints)), NULL_INT, np.int64)
        self._floats = np.full((len(self.seqs), len(view.floats)), np.nan)

    def take(self, state: State) -> None:
        """Copy the states asked for out of snapshots."""
        at, hit = self._wanted(state.ints[:, 1])
        self._ints[at], self._floats[at] = state.ints[hit], state.floats[hit]

    def marks(self, seq: I64) -> I64:
        """Return the places of events whose states are asked for."""
        return self._wanted(seq)[1]

    def rows(self) -> Rows:
        """Return the state of every line; missing where none was used or the log does not know it, n rows."""
        if not len(self.seqs):
            n = len(self._used)
            return Rows(
                self.view,
                np.full((n, len(self.view.ints)), NULL_INT, np.int64),
                np.full((n, len(self.view.floats)), np.nan),
                np.zeros(n, np.bool_),
            )
        at = np.minimum(np.searchsorted(self.seqs, self._used), len(self.seqs) - 1)
        return Rows(self.view, self._ints[at], self._floats[at], self.found)

    def _wanted(self, seq: I64) -> tuple[I64, I64]:
        if not len(self.seqs):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.seqs, seq), len(self.seqs) - 1)
        hit = np.flatnonzero(self.seqs[at] == seq)
        return at[hit], hit


def replay(
    files: list[LogFile],
    asked: Asked,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    chunk_events: int = CHUNK_EVENTS,
) -> tuple[list[TracedView], Traced]:
    """Fold the log and say what became of the rows asked for.

    Parameters
    ----------
    files
        The whole event log, from its first event on.
    on_progress
        Called with (events folded, events in total).

    Returns
    -------
    tuple
        One entry per view of `FOLD_VIEWS`, and the users' recent events.
    """
    end = EndState()
    # The entities asked for come first, so that they have the lowest numbers; these are not events.
    row = end.rows(asked.entities, np.full(asked.entities.num_rows, EventType.view, np.int8))
    views = [TracedView(view, row[v], asked.used[v], asked.bound) for v, view in enumerate(FOLD_VIEWS)]
    recent = Traced(row[0], asked.used[-1], asked.bound)
    until = max(int(asked.bound.max(initial=0)), *(int(used.max(initial=0)) for used in asked.used))
    files = [file for file in files if file.first_seq <= until]
    done, total, newest = 0, sum(file.rows for file in files), NULL_INT
    snapshots = Snapshots(0)
    for chunk in log_chunks(files, 0, chunk_events):
        events = encode_events(chunk)
        rows = end.rows(chunk, events.etype)
        if len(events) > snapshots.capacity:
            snapshots = Snapshots(len(events))
        for start, stop in _segments(events, rows, views, newest):
            part, part_rows = _slice(events, rows, start, stop)
            fold_events(part, end.states, part_rows, snapshots)
            for v, view in enumerate(views):
                view.take(snapshots.view(v)[1])
            snapshots.clear()
        for v, view in enumerate(views):
            view.look(rows[v], events, _went_in(end.states[v], rows[v], events.seq))
        recent.look(rows[0], events, events.etype != EventType.impression)
        newest = max(newest, int(events.time.max()))
        done += len(events)
        if on_progress is not None:
            on_progress(done, total)
    return views, recent


def _went_in(state: State, rows: I64, seq: I64) -> Mask:
    """Say which events are in their rows; one that a cap kept out of a row is not in its `seq`."""
    inside = rows >= 0
    there = rows[inside]
    inside[inside] = (state.ints[there, 0] != NULL_INT) & (state.ints[there, 1] >= seq[inside])
    return inside


def _segments(events: EventArrays, rows: RowIndices, views: list[TracedView], newest: int) -> Iterator[tuple[int, int]]:
    """Cut a chunk behind every state asked for that a later event would replace: one of the same feature time."""
    latest = np.maximum.accumulate(np.maximum(events.time, newest))
    cuts = {0, len(events)}
    for v, view in enumerate(views):
        marks = view.marks(events.seq)
        marks = marks[rows[v][marks] >= 0]
        if not len(marks):
            continue
        order = np.argsort(rows[v], kind="stable")
        following = np.full(len(events), -1, np.int64)
        same = rows[v][order[1:]] == rows[v][order[:-1]]
        following[order[:-1][same]] = order[1:][same]
        then = following[marks]
        replaced = (then >= 0) & (events.time[then] <= latest[marks])
        cuts.update((marks[replaced] + 1).tolist())
    yield from pairwise(sorted(cuts))


def _slice(events: EventArrays, rows: RowIndices, start: int, stop: int) -> tuple[EventArrays, RowIndices]:
    part = EventArrays(**{field.name: getattr(events, field.name)[start:stop] for field in fields(events)})
    users, items, pairs, affinities = (r[start:stop] for r in rows)
    return part, (users, items, pairs, affinities)
