"""Online against offline: Feast's `get_online_features` and `get_historical_features` over the same entities.

Events may stream in meanwhile. Online rows are read first; then the offline store is brought up to them by a backfill
and asked twice per entity: as of the online row's own feature time, where both sides must hold the same `seq` and so
the same values, and as of the moment of the read, where whatever is newer than the online row was late, or is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.request_features import OUTPUTS
from feature_repo.views import CATALOG_FIELDS, CATALOG_VIEW, FOLD_VIEWS, NULL_INT, RECENT_FIELDS, RECENT_VIEW, View
from monitoring.entities import Entities
from monitoring.online_reads import (
    F64,
    I64,
    Mask,
    OnlineRead,
    Values,
    floats_of,
    ints_of,
    read_offline,
    read_online,
    same_bits,
)
from monitoring.outcomes import I8, LATE, MATCH, MISSING, OUTCOMES, WRONG, Comparison, Example

#: Clocks and rounding may differ by so much before an event counts as one that ingest had folded.
_SLACK_US: Final = 1_000
_REQUEST_TIME: Final = "ranking_features"
_CATALOG_INTS: Final = ("item_price", "item_created_at", "item_available", "item_blocked")


@dataclass(frozen=True, slots=True)
class OnlineState:
    """Everything read online: by view, and the request-time features."""

    views: dict[str, OnlineRead]
    requests: OnlineRead
    now_us: int

    def last_seq(self) -> int:
        """Newest event in any row read."""
        seqs = [self.views[view.name].values[view.seq_column] for view in FOLD_VIEWS]
        seqs += [self.requests.values[view.seq_column] for view in FOLD_VIEWS]
        return max(int(one.max(initial=0)) for one in seqs)


def read_all_online(
    store: Any, entities: Entities, now_us: int, known_us: Callable[[], int], on_progress: Callable[[int], None]
) -> OnlineState:
    """Read everything there is to compare.

    Parameters
    ----------
    store
        Feast's store of the project.
    now_us
        The instant of the request-time features.
    known_us
        Up to when the rows are complete, as ingest says.
    """
    views = {
        name: read_online(store, keys, _references(name), known_us, on_progress)
        for name, keys in entities.views.items()
    }
    categories = views[CATALOG_VIEW]
    by_item = dict(zip(categories.keys["item_id"].to_pylist(), categories.values["item_category"], strict=True))
    # An item without category gets one that nobody has touched.
    category = [by_item.get(item) or "" for item in entities.pairs["item_id"].to_pylist()]
    keys = entities.pairs.append_column("category", pa.array(category, pa.string()))
    keys = keys.append_column("now_us", pa.array(np.full(keys.num_rows, now_us)))
    return OnlineState(views, read_online(store, keys, _request_references(), known_us, on_progress), now_us)


def compare_online(
    store: Any,
    online: OnlineState,
    last_seq: int,
    last_time_us: int,
    into: Comparison,
    on_progress: Callable[[int, int], None],
) -> None:
    """Compare what was read online with the offline store.

    Parameters
    ----------
    last_seq, last_time_us
        How far the offline store reaches.
    """
    views = online.views
    steps: list[Callable[[], None]] = [
        partial(_compare_view, store, view, views[view.name], last_seq, into) for view in FOLD_VIEWS
    ]
    steps += [
        partial(_compare_recent, store, views[RECENT_VIEW], last_time_us, into),
        partial(_compare_catalog, store, views[CATALOG_VIEW], into),
        partial(_compare_requests, store, online.requests, last_seq, into),
    ]
    for done, step in enumerate(steps, start=1):
        step()
        on_progress(done, len(steps))


def _references(name: str) -> dict[str, str]:
    """Return the references of a view's features, and their kinds."""
    fields: dict[str, dict[str, str]] = {view.name: {c.name: c.kind for c in view.columns} for view in FOLD_VIEWS}
    fields[RECENT_VIEW] = dict.fromkeys(RECENT_FIELDS, "list")
    fields[CATALOG_VIEW] = {name: "int64" if name in _CATALOG_INTS else "string" for name in CATALOG_FIELDS}
    return {f"{name}:{field}": kind for field, kind in fields[name].items()}


def _request_references() -> dict[str, str]:
    features = {f"{_REQUEST_TIME}:{name}": "float64" for name, _ in OUTPUTS}
    for view in FOLD_VIEWS:
        features |= {f"{view.name}:{name}": "int64" for name in (view.seq_column, view.time_column)}
    return features | {f"{CATALOG_VIEW}:item_created_at": "int64"}


def _twice(store: Any, read: OnlineRead, own_time: I64, features: Iterable[str]) -> tuple[pa.Table, pa.Table]:
    """Return the offline rows as of `own_time` (`NULL_INT`: as of the read), and as of the read."""
    n = len(read)
    then = np.where(own_time == NULL_INT, read.read_us, own_time + 1)
    both = read_offline(store, pa.concat_tables([read.keys, read.keys]), np.concatenate([then, read.read_us]), features)
    return both.slice(0, n), both.slice(n)


def _row_outcomes(read: OnlineRead, held: I64, same_time: I64, newest: I64, last_seq: int) -> tuple[I8, I64]:
    """Judge rows by their `seq` alone.

    Parameters
    ----------
    held, same_time, newest
        `seq` online, offline as of the online row's time, and offline as of the read; `NULL_INT` where there is none.

    Returns
    -------
    tuple
        Outcomes, where MATCH means that the values must be equal; and the event that was late or lost (0: none).
    """
    outcome = np.full(len(held), MATCH, np.int8)
    lacked = np.where(newest > held, newest, 0)
    lacked = np.where((held != NULL_INT) & (same_time > held), same_time, lacked)
    lost = (lacked > 0) & ((lacked >> SEQ_COUNTER_BITS) * 1000 < read.known_us - _SLACK_US)
    unknown = (held != NULL_INT) & (same_time < held)  # the log has no such event
    outcome[unknown] = np.where(held[unknown] > last_seq, LATE, MISSING)
    outcome[(held == NULL_INT) & (lacked > 0)] = LATE
    outcome[(held != NULL_INT) & (same_time > held)] = LATE
    outcome[lost] = MISSING
    return outcome, lacked


def _compare_view(store: Any, view: View, read: OnlineRead, last_seq: int, into: Comparison) -> None:
    own_time, held = read.values[view.time_column], read.values[view.seq_column]
    then, now = _twice(store, read, own_time, _references(view.name))
    outcome, lacked = _row_outcomes(read, held, ints_of(then, view.seq_column), ints_of(now, view.seq_column), last_seq)
    into.late(view.name, _delays(read, lacked, lacked > 0))
    for column in view.columns:
        ours = read.values[column.name]
        theirs = floats_of(then, column.name) if column.kind == "float64" else ints_of(then, column.name)
        _count(into, view.name, column.name, outcome, same_bits(ours, theirs), lacked > 0, read, ours, theirs)


def _compare_recent(store: Any, read: OnlineRead, last_time_us: int, into: Comparison) -> None:
    """Compare the lists of recent events. Feast hands out no `seq` for them, but their times."""
    times = [max(value or [NULL_INT]) for value in read.values[RECENT_FIELDS[2]]]
    own_time = np.array(times, np.int64)
    then, now = _twice(store, read, own_time, _references(RECENT_VIEW))
    ours, at_time, at_read = (
        [tuple(map(tuple, lists)) for lists in zip(*columns, strict=True)]
        for columns in (
            [[value or [] for value in read.values[name]] for name in RECENT_FIELDS],
            *([[value or [] for value in table[name].to_pylist()] for name in RECENT_FIELDS] for table in (then, now)),
        )
    )
    same = np.array([mine == theirs for mine, theirs in zip(ours, at_time, strict=True)], np.bool_)
    # The newest event that was there by the time of the read, where the online list ends before it.
    lacked = np.array(
        [
            theirs[2][-1] if theirs[2] and _goes_on(mine[2], theirs[2]) else 0
            for mine, theirs in zip(ours, at_read, strict=True)
        ],
        np.int64,
    )
    outcome = np.full(len(read), MATCH, np.int8)
    outcome[~same & (own_time > last_time_us)] = LATE
    outcome[~same & np.array([_goes_on(a[2], b[2]) for a, b in zip(ours, at_time, strict=True)], np.bool_)] = LATE
    outcome[(lacked > 0) & (lacked < read.known_us - _SLACK_US)] = MISSING
    late = lacked > 0
    into.late(RECENT_VIEW, (read.read_us[late] - lacked[late]) / 1e3)
    for place, name in enumerate(RECENT_FIELDS):
        mine, theirs = ([row[place] for row in rows] for rows in (ours, at_time))
        equal = np.array([a == b for a, b in zip(mine, theirs, strict=True)], np.bool_)
        _count(into, RECENT_VIEW, name, outcome, equal, late, read, mine, theirs)


def _goes_on(older: tuple[int, ...], newer: tuple[int, ...]) -> bool:
    """Whether `newer` is `older` with further events (and as many old ones less, where the list is full)."""
    if older == newer:
        return False
    return any(newer[:end] == older[len(older) - end :] for end in range(min(len(older), len(newer) - 1), 0, -1)) or (
        not older and bool(newer)
    )


def _compare_catalog(store: Any, read: OnlineRead, into: Comparison) -> None:
    """Compare entries of the catalogue. Feast hands out neither their time nor their `seq`.

    An entry that changed around the read may be that of a moment before or after: the online one is at least that of
    the moment up to which ingest had folded.
    """
    n, after = len(read), np.full(len(read), time.time_ns() // 1000)
    moments = np.concatenate([read.read_us, read.known_us, after])
    table = read_offline(store, pa.concat_tables([read.keys] * 3), moments, _references(CATALOG_VIEW))
    columns = {
        name: ints_of(table, name) if name in _CATALOG_INTS else np.array(table[name].to_pylist(), object)
        for name in CATALOG_FIELDS
    }
    equal = np.ones((3, n), np.bool_)
    for name, theirs in columns.items():
        equal &= np.asarray(theirs.reshape(3, n) == read.values[name])
    known = read.values["item_available"] != NULL_INT, columns["item_available"][:n] != NULL_INT
    outcome = np.where(known[0] == known[1], MATCH, MISSING).astype(np.int8)
    outcome[~equal[0] & (equal[1] | equal[2])] = LATE
    behind = np.zeros(n, np.bool_)
    for name, theirs in columns.items():
        ours = read.values[name]
        same = np.asarray(ours == theirs[:n])
        _count(into, CATALOG_VIEW, name, outcome, same, behind, read, ours, theirs[:n])


def _compare_requests(store: Any, read: OnlineRead, last_seq: int, into: Comparison) -> None:
    """Compare request-time features where all rows they are computed from hold the same on both sides."""
    times = [read.values[view.time_column] for view in FOLD_VIEWS] + [read.values["item_created_at"]]
    then, now = _twice(store, read, np.max(times, axis=0), _request_references())
    outcome = np.full(len(read), MATCH, np.int8)
    behind = np.zeros(len(read), np.bool_)
    expired = np.zeros(len(read), np.bool_)
    for view in FOLD_VIEWS:
        held, same_time, newest = read.values[view.seq_column], ints_of(then, view.seq_column), None
        newest = ints_of(now, view.seq_column)
        one, lacked = _row_outcomes(read, held, same_time, newest, last_seq)
        # A row that comes of age between its own time and the read counts then and not now.
        expired |= (held == NULL_INT) & (same_time != NULL_INT) & (newest == NULL_INT)
        one[(held == NULL_INT) & (same_time != NULL_INT) & (one == MATCH)] = LATE
        behind |= lacked > 0
        outcome = np.maximum(outcome, one)
    into.leave_out("request-time features over rows that reached their greatest age", int(expired.sum()) * len(OUTPUTS))
    for name, _ in OUTPUTS:
        ours = read.values[name].astype(np.float32)
        theirs = floats_of(then, name).astype(np.float32)
        same = same_bits(ours, theirs)
        _count(into, _REQUEST_TIME, name, outcome, same, behind, read, ours, theirs, keep=~expired)


def _delays(read: OnlineRead, lacked: I64, which: Mask) -> F64:
    accepted_ms = lacked[which] >> SEQ_COUNTER_BITS
    delays: F64 = np.maximum(read.read_us[which] / 1e3 - accepted_ms, 0.0)
    return delays


def _count(
    into: Comparison,
    view: str,
    column: str,
    rows: I8,
    same: Mask,
    behind: Mask,
    read: OnlineRead,
    ours: Sequence[Any] | Values,
    theirs: Sequence[Any] | Values,
    keep: Mask | None = None,
) -> None:
    """Count one column: what the row's `seq` says, and whether equal `seq` means equal values."""
    outcome = np.where((rows == MATCH) & ~same, WRONG, rows).astype(np.int8)
    outcome[(outcome == MATCH) & behind] = LATE
    into.count(view, outcome if keep is None else outcome[keep])
    for kind in (WRONG, MISSING, LATE):
        for place in np.flatnonzero(outcome == kind).tolist():
            if not into.wants_example(view, kind):
                break
            if keep is not None and not keep[place]:
                continue
            key = {name: str(value) for name, value in read.keys.slice(place, 1).to_pylist()[0].items()}
            where = {"feature": column, **key, "read at": str(int(read.read_us[place]))}
            into.examples.append(
                Example(view, OUTCOMES[kind], where, _shown(ours[place]), _shown(theirs[place]), _WHY[kind])
            )


_WHY: Final = {
    WRONG: "both sides hold the same events, and other values",
    LATE: "one side holds events the other did not hold yet",
    MISSING: "one side lacks events that it must have",
}


def _shown(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    text = "null" if value is None or value == NULL_INT else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
