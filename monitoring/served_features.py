"""The replay skew check: what the model saw of the items served, against the same features computed from the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.errors import NotFoundError
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.log_chunks import LogFile
from feature_repo.request_features import CATALOG_INPUTS, compute, inputs_of
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW, FOLD_VIEWS, ITEM_STATS, RECENT_VIEW, USER_CATEGORY
from monitoring.catalog_then import CatalogThen, catalog_then
from monitoring.outcomes import LATE, MATCH, MISSING, OUTCOMES, WRONG, Comparison, Example
from monitoring.row_replay import Asked, Traced, TracedView, replay
from serving.impressions import NOT_READ, ImpressionRecord

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Requests compared in one pass over the log; bounds memory.
REQUESTS_PER_PASS: Final = 10_000
_VIEW_OF = {column.name: view for view in FOLD_VIEWS for column in view.columns}
#: Clocks and rounding may differ by so much before an event counts as one that ingest had folded.
_SLACK_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Lines:
    """The items of some requests, one line each; all arrays have one entry per line."""

    record: list[ImpressionRecord]
    item: list[str]
    matrix: F32
    used: tuple[I64, ...]  # user, item, pair, affinity, recent
    now_us: I64
    known_us: I64  # events before it were in all rows in Redis, as ingest had said
    catalog: CatalogThen

    def __len__(self) -> int:
        return len(self.item)


def compare_served(
    settings: Settings,
    records: Sequence[ImpressionRecord],
    files: list[LogFile],
    into: Comparison,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute the features of served items again and count what differs.

    Parameters
    ----------
    records
        Answers with what the model saw. Those of other feature definitions than today's are left out, and counted.
    files
        The whole event log; the offline store must have been brought up to it (the catalogue is read from there).
    into
        Takes the outcomes by feature, and the lateness of rows by view.
    """
    services: dict[str, list[ImpressionRecord]] = {}
    for record in records:
        if record.seen is None:
            into.leave_out("answers without a model (popular items)", 1)
        elif record.seen.service_hash != _hash(record.seen.service):
            into.leave_out("answers of other feature definitions than today's", 1)
        else:
            services.setdefault(record.seen.service, []).append(record)
    passes = [
        (service, those[start : start + REQUESTS_PER_PASS])
        for service, those in services.items()
        for start in range(0, len(those), REQUESTS_PER_PASS)
    ]
    for number, (service, some) in enumerate(passes):

        def report(done: int, total: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(done + number * total, total * len(passes))

        _compare(settings, service, some, files, into, report)


def _hash(service: str) -> str | None:
    try:
        return service_hash(service)
    except NotFoundError:
        return None


def _compare(
    settings: Settings,
    service: str,
    records: Sequence[ImpressionRecord],
    files: list[LogFile],
    into: Comparison,
    on_progress: Callable[[int, int], None],
) -> None:
    names = feature_list(service)
    lines = _lines(settings, records, len(names), into)
    if not len(lines):
        return
    entities = pa.table(
        {
            "user_id": pa.array([record.user_id for record in lines.record], pa.string()),
            "item_id": pa.array(lines.item, pa.string()),
            "category": lines.catalog.category,
        }
    )
    bound = (lines.now_us // 1000) << SEQ_COUNTER_BITS
    views, recent = replay(files, Asked(entities, lines.used, bound), on_progress=on_progress)
    states = [_row_outcomes(view, lines, v, bound) for v, view in enumerate(views)]
    for v, view in enumerate(views):
        _note_late(into, view.view.name, lines, v, states[v])
    of_catalog = _catalog_outcomes(lines, bound)
    _note_late(into, CATALOG_VIEW, lines, 1, of_catalog)
    _note_late(into, RECENT_VIEW, lines, 4, _row_outcomes(recent, lines, 4, bound))
    columns = _columns(views, names, lines)
    again = compute(columns, lines.now_us, names)
    for place, name in enumerate(names):
        seen = np.ascontiguousarray(lines.matrix[:, place])
        value = np.broadcast_to(again[name], seen.shape)
        same = (seen.view(np.uint32) == np.ascontiguousarray(value).view(np.uint32)) | (
            np.isnan(seen) & np.isnan(value)
        )
        wanted = inputs_of((name,))
        inputs = [v for v, view in enumerate(FOLD_VIEWS) if any(_VIEW_OF.get(one) is view for one in wanted)]
        used = {FOLD_VIEWS[v].name: (lines.used[v], states[v]) for v in inputs}
        if set(wanted) & set(CATALOG_INPUTS) or USER_CATEGORY.name in used:  # an affinity is that to the category then
            used[CATALOG_VIEW] = (lines.catalog.used, of_catalog)
        outcome = _outcomes(same, [state for _, state in used.values()])
        into.count(name, outcome)
        _examples(into, name, outcome, lines, seen, value, used)


@dataclass(frozen=True, slots=True)
class _RowState:
    """What is the matter with the row a line used: `unknown` to the log, `lost` an event, or `late` by so many ms."""

    unknown: Mask
    lost: Mask
    late: Mask
    late_ms: F64


def _row_outcomes(traced: Traced, lines: _Lines, v: int, bound: I64) -> _RowState:
    used = lines.used[v]
    absent = used == 0
    view = traced.view if isinstance(traced, TracedView) else None
    first = traced.next_seq
    if view is not None and view.max_age_us is not None:
        # A row that was too old counted as none, and it still does if nothing came since.
        expired = absent & (lines.now_us - traced.last_time > view.max_age_us)
        first = np.where(expired, 0, np.where(absent, traced.last_seq, first))
    late = (used != NOT_READ) & (first > 0) & (first < bound)
    accepted_us = (first >> SEQ_COUNTER_BITS) * 1000
    # The item table looks for changes now and then; rows read in the request hold all that ingest had folded.
    lost = late & (accepted_us < lines.known_us - _SLACK_US) if view is not ITEM_STATS else np.zeros_like(late)
    return _RowState((used > 0) & ~traced.found, lost, late, (lines.now_us - accepted_us) / 1e3)


def _catalog_outcomes(lines: _Lines, bound: I64) -> _RowState:
    """Judge entries of the catalogue; the item table looks for changes now and then, so nothing counts as lost."""
    late = (lines.catalog.next_seq > 0) & (lines.catalog.next_seq < bound)
    nothing = np.zeros(len(lines), np.bool_)
    late_ms = (lines.now_us - (lines.catalog.next_seq >> SEQ_COUNTER_BITS) * 1000) / 1e3
    return _RowState((lines.catalog.used > 0) & ~lines.catalog.found, nothing, late, late_ms)


def _note_late(into: Comparison, view: str, lines: _Lines, v: int, state: _RowState) -> None:
    """Note each late row once: one user's row serves all lines of a request."""
    places = np.flatnonzero(state.late & ~state.lost)
    if v not in (1, 2):
        ids = np.array([id(lines.record[place]) for place in places], np.int64)
        places = places[np.unique(np.stack([ids, lines.used[v][places]]), axis=1, return_index=True)[1]]
    into.late(view, state.late_ms[places])


def _outcomes(same: Mask, states: Sequence[_RowState]) -> I8:
    outcome = np.where(same, MATCH, WRONG).astype(np.int8)
    for state in states:
        outcome[(outcome == MATCH) & state.late] = LATE
    for state in states:
        outcome[(outcome != WRONG) & state.lost] = MISSING
        outcome[state.unknown] = MISSING
    return outcome


def _columns(views: Sequence[TracedView], names: Sequence[str], lines: _Lines) -> dict[str, F64]:
    """Return the state columns the features are computed from, shape (n,) each."""
    rows = {traced.view.name: traced.rows() for traced in views}
    wanted = inputs_of(tuple(names))
    columns = {name: rows[_VIEW_OF[name].name].column(name) for name in wanted if name in _VIEW_OF}
    return columns | {name: lines.catalog.columns[name] for name in wanted if name in CATALOG_INPUTS}


def _lines(settings: Settings, records: Sequence[ImpressionRecord], features: int, into: Comparison) -> _Lines:
    kept: list[ImpressionRecord] = []
    items: list[str] = []
    matrices: list[F32] = []
    used: list[list[I64]] = [[] for _ in range(5)]
    entries: list[I64] = []
    for record in records:
        seen = record.seen
        if seen is None:
            continue
        try:
            matrix, (item_seq, catalog_seq, pair_seq), category = seen.unpack()
        except ValueError:
            into.leave_out("damaged records", 1)
            continue
        n = len(matrix)
        kept += [record] * n
        items += seen.candidates or [item.item_id for item in record.items[:n]]
        entries.append(catalog_seq)
        matrices.append(matrix[:, :features])
        into.leave_out("values of retrieval (scores and ranks are no features of the store)", matrix[:, features:].size)
        affinity = np.array(seen.affinity_seq, np.int64)[category]
        if record.user_seq == NOT_READ:
            affinity = np.full(n, NOT_READ, np.int64)
        per_line = (np.full(n, record.user_seq), item_seq, pair_seq, affinity, np.full(n, record.recent_seq))
        for column, values in zip(used, per_line, strict=True):
            column.append(np.asarray(values, np.int64))
    now_us = np.array([record.time_us for record in kept], np.int64)
    # Without a known age nothing is certain to be in a row.
    age = [np.inf if record.feature_age_s is None else record.feature_age_s for record in kept]
    known_us = np.maximum(now_us - np.minimum(np.array(age) * 1e6, 2.0**62), 0.0).astype(np.int64)
    return _Lines(
        record=kept,
        item=items,
        matrix=np.concatenate([np.empty((0, features), np.float32), *matrices]),
        used=tuple(np.concatenate([np.empty(0, np.int64), *parts]) for parts in used),
        now_us=now_us,
        known_us=known_us,
        catalog=catalog_then(settings, items, np.concatenate([np.empty(0, np.int64), *entries])),
    )


def _examples(
    into: Comparison,
    name: str,
    outcome: I8,
    lines: _Lines,
    seen: F32,
    value: F32,
    used: Mapping[str, tuple[I64, _RowState]],
) -> None:
    for kind in (WRONG, MISSING, LATE):
        for place in np.flatnonzero(outcome == kind).tolist():
            if not into.wants_example(name, kind):
                break
            record = lines.record[place]
            where = {
                "request": record.request_id,
                "now_us": str(record.time_us),
                "user": record.user_id,
                "item": lines.item[place],
            }
            where |= {f"{view} seq": str(seq[place]) for view, (seq, _) in used.items()}
            why = "; ".join(filter(None, (_why(view, state, place) for view, (_, state) in used.items())))
            into.examples.append(
                Example(
                    name,
                    OUTCOMES[kind],
                    where,
                    repr(float(seen[place])),
                    repr(float(value[place])),
                    why or "same rows, same time, another value",
                )
            )


def _why(view: str, state: _RowState, place: int) -> str:
    if state.unknown[place]:
        return f"the log has no event with this seq for the row of {view}"
    if state.lost[place]:
        return f"the row of {view} lacks an event that ingest had folded {state.late_ms[place]:.0f} ms before"
    if state.late[place]:
        return f"the row of {view} lacked an event accepted {state.late_ms[place]:.0f} ms before the request"
    return ""
