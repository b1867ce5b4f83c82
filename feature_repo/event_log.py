"""The offline log of accepted events on disk: importing a data set all or nothing, and reading it in `seq` order.

An import is staged in a directory of its own and becomes valid by one rename; then its files are moved into place.
A reader or writer that finds a staged, valid import finishes it first. So a crash at any step leaves the old state or
the new one, and files of live events beside the history stay as they are.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.events import ITEM_CHANGE_SCHEMA, LOG_SCHEMA, SEQ_COUNTER_BITS, TIMESTAMP, Repeats
from feature_repo.live_files import files_kept, log_paths

if TYPE_CHECKING:
    from feature_repo.datasets import Dataset
    from feature_repo.settings import Settings

_HISTORY = "history.parquet"
_REPORT = "dataset.json"
_PLAN = "plan.json"
#: The staging directory gets this name when it is complete: the moment an import becomes valid.
_STAGED = ".staged-import"
_TEMPORARY = ".import-"
_LOCK = ".lock"
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class ImportReport:
    """What an import read and wrote; kept as `dataset.json` beside the log.

    `target` and `repeats` are those of the data set: what a model of it predicts unless told otherwise.
    """

    name: str
    rows_read: int
    accepted: int
    quarantined: dict[str, int]
    users: int
    items: int
    shift_weeks: int
    data_hash: str
    first_time: str
    last_time: str
    last_seq: int
    target: str = "purchase"
    repeats: Repeats = "keep"


def write_dataset(dataset: Dataset, settings: Settings) -> ImportReport:
    """Write the data set as the project's history: the log by day, the catalogue, the quarantine and a report.

    Every event gets a `seq` from its time in milliseconds and a counter within the millisecond, in the order of
    (event_timestamp, event_id). An earlier history of the project is replaced; the same data give the same bytes.

    Returns
    -------
    ImportReport
        `rows_read` = `accepted` + the sum of `quarantined`.

    Raises
    ------
    BadInputError
        If the data set has no events, or more than 2^20 in one millisecond.
    """
    if dataset.events.num_rows == 0:
        raise BadInputError(f"data set {dataset.name!r} has no events to write")
    log = _with_seq(dataset)
    report = ImportReport(
        name=dataset.name,
        rows_read=log.num_rows + dataset.quarantine.num_rows,
        accepted=log.num_rows,
        quarantined=dataset.quarantined,
        users=pc.count_distinct(log["user_id"]).as_py(),
        items=dataset.items.num_rows,
        shift_weeks=dataset.shift_weeks,
        data_hash=dataset.data_hash(),
        first_time=dataset.first_time.isoformat(),
        last_time=dataset.last_time.isoformat(),
        last_seq=log["seq"][-1].as_py(),
        target=dataset.target,
        repeats=dataset.repeats,
    )
    settings.root.mkdir(parents=True, exist_ok=True)
    with _locked(settings):
        _finish_import(settings)
        stage = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=settings.root))
        try:
            plan = {"name": dataset.name, "days": _write_days(log, stage / "events")}
            (stage / _PLAN).write_text(json.dumps(plan), "utf-8")
            _write(dataset.items, stage / "items.parquet")
            _write(dataset.quarantine, stage / "quarantine.parquet")
            (stage / _REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
            stage.rename(settings.root / _STAGED)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        _finish_import(settings)
    return report


def read_report(settings: Settings) -> ImportReport:
    """Return the report of the project's import.

    Raises
    ------
    NotFoundError
        If nothing was imported yet.
    """
    path = settings.root / _REPORT
    with _reading(settings):
        if not path.is_file():
            raise NotFoundError(_nothing_imported(settings))
        return ImportReport(**json.loads(path.read_text("utf-8")))


def imported_at_us(settings: Settings) -> int:
    """Return when the project's history was imported, µs since the epoch; 0 if it never was."""
    try:
        return (settings.root / _REPORT).stat().st_mtime_ns // 1000
    except FileNotFoundError:
        return 0


def read_events(
    settings: Settings, *, since_seq: int = 0, until: datetime | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return logged events, history and live, in `seq` order.

    Parameters
    ----------
    since_seq
        Events after this `seq` only (exclusive, like Redis' XREAD).
    until
        Events known before this aware time only: event_timestamp and received_at both earlier.
    columns
        Columns of `LOG_SCHEMA` to read, in this order; all if None.

    Raises
    ------
    NotFoundError
        If nothing was imported yet.
    BadInputError
        For an unknown column or a naive `until`.
    """
    wanted = list(LOG_SCHEMA.names if columns is None else columns)
    if unknown := [name for name in wanted if name not in LOG_SCHEMA.names]:
        raise BadInputError(f"unknown column {unknown[0]!r}; the log has: {', '.join(LOG_SCHEMA.names)}")
    keep = ds.field("seq") > since_seq
    if until is not None:
        if until.utcoffset() is None:
            raise BadInputError(f"until must have a time zone, got {until.isoformat()}")
        limit = pa.scalar(until.astimezone(UTC), TIMESTAMP)
        keep &= (ds.field("event_timestamp") < limit) & (ds.field("received_at") < limit)
    read = wanted if "seq" in wanted else [*wanted, "seq"]
    with _reading(settings), files_kept(settings.events_dir):
        files = [str(path) for path in log_paths(settings.events_dir)]
        if not files:
            raise NotFoundError(_nothing_imported(settings))
        table = ds.dataset(files, schema=LOG_SCHEMA, format="parquet").to_table(columns=read, filter=keep)
    seq = table["seq"].to_numpy()
    if np.any(seq[1:] <= seq[:-1]):
        table = table.take(pa.array(np.argsort(seq, kind="stable")))
    return table.select(wanted).combine_chunks()


def read_items(settings: Settings) -> pa.Table:
    """Return the catalogue (`ITEM_SCHEMA`).

    Raises
    ------
    NotFoundError
        If nothing was imported yet.
    """
    with _reading(settings):
        if not settings.items_path.is_file():
            raise NotFoundError(_nothing_imported(settings))
        return pq.read_table(settings.items_path)


def read_item_changes(settings: Settings) -> pa.Table:
    """Return the logged changes of the catalogue (`ITEM_CHANGE_SCHEMA`) in `seq` order; empty if there are none."""
    with files_kept(settings.item_changes_dir):
        files = [str(path) for path in log_paths(settings.item_changes_dir)]
        if not files:
            return ITEM_CHANGE_SCHEMA.empty_table()
        dataset = ds.dataset(files, schema=ITEM_CHANGE_SCHEMA, format="parquet")
        return dataset.to_table().sort_by("seq").combine_chunks()


def _with_seq(dataset: Dataset) -> pa.Table:
    ms = dataset.events["event_timestamp"].cast(pa.int64()).to_numpy() // 1000
    rows = np.arange(len(ms))
    first = np.maximum.accumulate(np.where(np.r_[True, ms[1:] != ms[:-1]], rows, 0))
    counter = rows - first
    if counter.max() >= 1 << SEQ_COUNTER_BITS:
        raise BadInputError(f"data set {dataset.name!r} has more than 2^{SEQ_COUNTER_BITS} events in one millisecond")
    return dataset.events.add_column(0, LOG_SCHEMA.field("seq"), pa.array((ms << SEQ_COUNTER_BITS) | counter))


def _write_days(log: pa.Table, directory: Path) -> list[str]:
    """Write one file per day of the events' time and return the names of their directories."""
    days = log["event_timestamp"].cast(pa.int64()).to_numpy() // _DAY_US
    starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    names: list[str] = []
    for start, end in zip(starts, np.r_[starts[1:], len(days)], strict=True):
        day = datetime.fromtimestamp(int(days[start]) * 86_400, UTC).date()
        names.append(f"day={day.isoformat()}")
        _write(log.slice(start, end - start), directory / names[-1] / _HISTORY)
    return names


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", coerce_timestamps="us")


def _finish_import(settings: Settings) -> None:
    """Move a staged import into place. May be interrupted anywhere and repeated; the caller holds the lock."""
    stage = settings.root / _STAGED
    if stage.is_dir():
        plan = json.loads((stage / _PLAN).read_text("utf-8"))
        for path in settings.events_dir.glob(f"day=*/{_HISTORY}"):
            if path.parent.name not in plan["days"]:
                path.unlink()
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()
        moves = {stage / "events" / day / _HISTORY: settings.events_dir / day / _HISTORY for day in plan["days"]}
        moves[stage / "items.parquet"] = settings.items_path
        moves[stage / "quarantine.parquet"] = settings.quarantine_dir / f"{plan['name']}.parquet"
        moves[stage / _REPORT] = settings.root / _REPORT
        for staged, target in moves.items():
            if staged.exists():  # else an interrupted run has moved it
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(target)
        stage.rename(settings.root / f"{_TEMPORARY}done")
    for leftover in settings.root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)


@contextmanager
def _reading(settings: Settings) -> Iterator[None]:
    """Let nobody import while we read, after finishing an import that was interrupted."""
    if not settings.root.is_dir():
        raise NotFoundError(_nothing_imported(settings))
    if (settings.root / _STAGED).is_dir():
        with _locked(settings):
            _finish_import(settings)
    with _locked(settings, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(settings: Settings, mode: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the project's import lock; the system frees it if we die."""
    with (settings.root / _LOCK).open("a") as handle:
        fcntl.flock(handle, mode)
        yield


def _nothing_imported(settings: Settings) -> str:
    return f"project {settings.project!r} has no data in {settings.root}; import a data set first (see `larder --help`)"
