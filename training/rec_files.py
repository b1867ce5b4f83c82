"""Reads what is graded (docs/evaluation.md): files of recommendations, events and items; errors name line or row."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_log import read_events
from feature_repo.event_rules import normalise_id
from feature_repo.events import TIMESTAMP
from feature_repo.settings import Settings
from training.grading import Events, Recs

_REC_COLUMNS: Final = ("user_id", "item_id", "rank")
#: Columns a file of recommendations may have beside those; they are not read.
_REC_OTHERS: Final = ("score", "source")
_EVENT_COLUMNS: Final = ("user_id", "item_id", "event_type", "event_timestamp")
_KINDS: Final = ".parquet, .csv, .jsonl or .ndjson"


@dataclass(frozen=True)
class _File:
    """Some columns of a file, and how its rows are called."""

    path: Path
    columns: dict[str, pa.Array]
    unit: str  # "line" (from 1, as editors count) or "row" (from 0, as data frames count)
    first: int

    def place(self, row: Any) -> str:
        return f"{self.path.name}, {self.unit} {int(row) + self.first}"

    def texts(self, name: str) -> pa.Array:
        """Return a column of ids: texts or whole numbers, none missing; in Unicode NFC, as Larder keeps ids."""
        column = self.columns[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise BadInputError(f"{self.path.name}: column {name} must hold text or whole numbers, not {kind}")
        found = column.cast(kind).cast(pa.string())
        missing = pc.fill_null(pc.equal(found, ""), fill_value=True).to_numpy(zero_copy_only=False)
        if missing.any():
            raise BadInputError(f"{self.place(missing.argmax())}: {name} is missing")
        if pc.all(pc.string_is_ascii(found)).as_py() is not False:
            return found
        # Not pc.utf8_normalize: its "NFC" takes accents apart (pyarrow 25).
        coded = found.dictionary_encode()
        return pa.array([normalise_id(text) for text in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)


def read_recs(path: Path) -> Recs:
    """Read a file of recommendations: user_id, item_id, rank; rows in any order.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        For an unknown or missing column or value, an item twice in a user's list, or ranks that are not 1, 2, 3, ...
    """
    file = _open(path, _REC_COLUMNS, others=_REC_OTHERS)
    user, item = file.texts("user_id"), file.texts("item_id")
    if not len(user):
        raise BadInputError(f"{path.name} has no rows")
    recs = Recs(user, item, _ranks(file))
    _check_lists(file, recs)
    return recs


def read_event_file(path: Path) -> Events:
    """Read a file of events: at least user_id, item_id, event_type, event_timestamp; more columns are not read.

    Times without a zone are UTC. Where there is `received_at`, an event counts from when it was known.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        For a missing column or value, or a time that is none.
    """
    file = _open(path, _EVENT_COLUMNS, optional=("received_at",))
    time_us = _times(file, "event_timestamp")
    if "received_at" in file.columns:
        learned = _times(file, "received_at", required=False)
        time_us = np.maximum(time_us, learned)
    return Events(file.texts("user_id"), file.texts("item_id"), file.texts("event_type"), time_us)


def read_catalogue(path: Path) -> pa.Array:
    """Read the ids of a file of items; more columns are not read."""
    return _open(path, ("item_id",)).texts("item_id")


def project_events(settings: Settings) -> Events:
    """Return the project's own event log, history and live events, in `seq` order."""
    table = read_events(settings, columns=[*_EVENT_COLUMNS, "received_at"])
    happened, learned = (table[name].cast(pa.int64()) for name in ("event_timestamp", "received_at"))
    user, item, kind = (_flat(table[name]) for name in _EVENT_COLUMNS[:3])
    return Events(user, item, kind, pc.max_element_wise(happened, learned).to_numpy(zero_copy_only=False))


def write_recs(path: Path, slates: Mapping[str, Sequence[str]]) -> None:
    """Write lists by user (best first) as a Parquet file that `read_recs` reads."""
    lengths = [len(slate) for slate in slates.values()]
    table = {
        "user_id": pa.array([user for user, slate in slates.items() for _ in slate], pa.string()),
        "item_id": pa.array([item for slate in slates.values() for item in slate], pa.string()),
        "rank": pa.array([rank for length in lengths for rank in range(1, length + 1)], pa.int32()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, compression="zstd")


def write_slates(directory: Path, slates: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]) -> list[Path]:
    """Write the lists of an `Evaluation` (segment -> model -> user -> items), two files for each model.

    `<model>.parquet` has the lists of warm and cold users; `<model>-new-items.parquet` those of warm users without what
    they had before, to be graded with `--repeats drop`.
    """
    written = []
    for model in {**slates["warm"], **slates["cold"]}:
        both = {**slates["warm"].get(model, {}), **slates["cold"].get(model, {})}
        files = {f"{model}.parquet": both, f"{model}-new-items.parquet": slates["new_items"].get(model, {})}
        for name, lists in files.items():
            if lists:
                write_recs(directory / name, lists)
                written.append(directory / name)
    return written


def _open(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), others: Sequence[str] | None = None
) -> _File:
    """Read columns; where `others` is given, no other columns than those may be in the file."""
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise BadInputError(f"{path.name}: the file must be {_KINDS}")
    reader, unit, first = _READERS[path.suffix]
    try:
        names, columns = reader(path, (*required, *optional))
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path.name} cannot be read: {error}") from None
    if absent := [name for name in required if name not in names]:
        raise BadInputError(f"{path.name} has no column {absent[0]!r}; its columns are: {', '.join(names) or 'none'}")
    if others is not None and (unknown := [name for name in names if name not in (*required, *optional, *others)]):
        allowed = ", ".join((*required, *optional))
        raise BadInputError(
            f"{path.name}: unknown column {unknown[0]!r}; a file of recommendations has {allowed} (and may have "
            f"{', '.join(others)})"
        )
    return _File(path, columns, unit, first)


def _parquet(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, pa.Array]]:
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]  # pandas' index
        table = file.read([name for name in wanted if name in names])
    return names, {name: _flat(table[name]) for name in table.column_names}


def _csv(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, pa.Array]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        names = next(csv.reader(handle), [])
    take = [name for name in wanted if name in names]
    options = pcsv.ConvertOptions(
        column_types={name: pa.string() for name in take},
        include_columns=take,
        strings_can_be_null=True,
        null_values=[""],
    )
    parse = pcsv.ParseOptions(ignore_empty_lines=False)  # they would shift the numbers of lines
    if not take:
        return names, {}
    try:
        table = pcsv.read_csv(path, parse_options=parse, convert_options=options)
    except pa.ArrowInvalid:
        # One thread knows the number of the row that is wrong.
        one = pcsv.ReadOptions(use_threads=False)
        table = pcsv.read_csv(path, read_options=one, parse_options=parse, convert_options=options)
    return names, {name: _flat(table[name]) for name in take}


def _json_lines(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, pa.Array]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    names: dict[str, None] = {}
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                fields = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadInputError(f"{path.name}, line {number} is no JSON object: {error}") from None
            if not fields.keys() <= names.keys():
                names |= dict.fromkeys(fields)
            for name, column in values.items():
                column.append(_text(fields.get(name), f"{path.name}, line {number}: {name}"))
    return list(names), {name: pa.array(column, pa.string()) for name, column in values.items() if name in names}


def _text(value: Any, what: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInputError(f"{what} must be text or a whole number, not {value!r}")
    return str(value)


_READERS: Final = {
    ".parquet": (_parquet, "row", 0),
    ".csv": (_csv, "line", 2),
    ".jsonl": (_json_lines, "line", 1),
    ".ndjson": (_json_lines, "line", 1),
}


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Return one array; `combine_chunks` of a single chunk may still be chunked."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _ranks(file: _File) -> npt.NDArray[np.int64]:
    column = file.columns["rank"]
    if pa.types.is_string(column.type):
        right = pc.fill_null(pc.match_substring_regex(column, "^[0-9]{1,9}$"), fill_value=False)
    elif pa.types.is_integer(column.type):
        right = column.is_valid()
    else:
        raise BadInputError(f"{file.path.name}: column rank must hold whole numbers, not {column.type}")
    wrong = ~right.to_numpy(zero_copy_only=False)
    if wrong.any():
        at = int(wrong.argmax())
        raise BadInputError(f"{file.place(at)}: rank must be a whole number from 1, not {column[at].as_py()!r}")
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _check_lists(file: _File, recs: Recs) -> None:
    """Refuse lists whose ranks are not 1, 2, 3, ..., or that name an item twice."""
    user = recs.user.dictionary_encode().indices.to_numpy().astype(np.int64)
    item = recs.item.dictionary_encode().indices.to_numpy().astype(np.int64)
    order = np.lexsort((recs.rank, user))
    by_user, rank = user[order], recs.rank[order]
    start = np.flatnonzero(np.r_[True, by_user[1:] != by_user[:-1]])
    expected = np.arange(len(order)) - np.repeat(start, np.diff(np.r_[start, len(order)])) + 1
    wrong = rank != expected
    if wrong.any():
        at = int(wrong.argmax())
        who, where = recs.user[order[at]].as_py(), file.place(order[at])
        if rank[at] < expected[at] and expected[at] > 1:
            raise BadInputError(
                f"{where}: user {who!r} has rank {rank[at]} twice (also in {file.place(order[at - 1])})"
            )
        raise BadInputError(
            f"{where}: user {who!r} has rank {rank[at]}, but no rank {expected[at]}; ranks are 1, 2, 3, ... in "
            "each list"
        )
    pair = user * (int(item.max()) + 1) + item
    order = np.argsort(pair, kind="stable")
    twice = np.flatnonzero(pair[order][1:] == pair[order][:-1])
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise BadInputError(
            f"{file.place(second)}: item {recs.item[second].as_py()!r} is twice in the list of user "
            f"{recs.user[second].as_py()!r} (also in {file.place(first)})"
        )


def _times(file: _File, name: str, *, required: bool = True) -> npt.NDArray[np.int64]:
    """Return times as µs; a missing one that may be is far in the past."""
    column = file.columns[name]
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(column.type):
        zoned = column.cast(TIMESTAMP, safe=False) if column.type.tz else _as_utc(column)
        found = pc.fill_null(zoned.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        bad = np.zeros(len(found), np.bool_)
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        parsed = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601", errors="coerce")
        bad = parsed.isna().to_numpy() & ~missing
        found = parsed.fillna(pd.Timestamp(0, tz="UTC")).dt.as_unit("us").astype("int64").to_numpy()
    else:
        raise BadInputError(f"{file.path.name}: column {name} must hold times, not {column.type}")
    if required:
        bad = bad | missing
    if bad.any():
        at = int(bad.argmax())
        raise BadInputError(f"{file.place(at)}: {name} must be a time (ISO 8601), not {column[at].as_py()!r}")
    return np.where(missing, np.iinfo(np.int64).min, found)


def _as_utc(column: pa.Array) -> pa.Array:
    return pc.assume_timezone(column.cast(pa.timestamp("us"), safe=False), "UTC")
