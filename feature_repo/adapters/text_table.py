"""CSV (also .gz) and Parquet files as tables of text, every line with its place; nothing is guessed from content."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_rules import MAX_EXACT, shown
from feature_repo.events import QUARANTINE_SCHEMA

#: Columns that say where a line stands: its row from 0, and its line in an editor from 1 (of CSV only).
ROW: Final = "#row"
LINE: Final = "#line"
_MAX_RAW: Final = 8_192
#: A line longer than this is a file without line ends.
_BLOCK_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class TextTable:
    """Lines of a file.

    Attributes
    ----------
    cells
        `ROW`, of a CSV also `LINE`, and the file's columns as text; null: empty.
    broken
        Lines that are not in `cells`: with more or fewer cells than the header, or bytes that are no text in the file's
        encoding (`QUARANTINE_SCHEMA`).
    """

    path: Path
    cells: pa.Table
    broken: pa.Table

    @property
    def columns(self) -> list[str]:
        """Names of the file's columns."""
        return [name for name in self.cells.column_names if name not in (ROW, LINE)]


def read_text_table(
    path: Path, required: Sequence[str] = (), *, delimiter: str = ",", encoding: str = "utf-8"
) -> TextTable:
    """Read a file.

    Parameters
    ----------
    path
        `.csv` or `.csv.gz` with a header, or `.parquet`.
    required
        Columns it must have.
    delimiter, encoding
        Of a CSV.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        If it is of another kind, cannot be read, has no rows, or lacks a column.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    parquet = path.suffix == ".parquet"
    if not parquet and not path.name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        raise BadInputError(f"{path.name}: the file must be CSV (.csv, .csv.gz, .tsv) or Parquet (.parquet)")
    try:
        found = _parquet(path, required) if parquet else _csv(path, required, delimiter, encoding)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None
    if not found.cells.num_rows and not found.broken.num_rows:
        raise BadInputError(f"{path} has no rows")
    return found


def _check_columns(path: Path, names: list[str], required: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInputError(f"{path.name} has more than one column {repeated[0]!r}")
    if missing := [name for name in required if name not in names]:
        raise BadInputError(f"{path.name} lacks the columns {', '.join(missing)}; it has: {', '.join(names)}")


def _csv(path: Path, required: Sequence[str], delimiter: str, encoding: str) -> TextTable:
    with pa.input_stream(str(path)) as stream:
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        names = next(csv.reader(text, delimiter=delimiter), [])
    names = [name.removeprefix("\ufeff") for name in names]
    _check_columns(path, names, required)
    odd: list[Any] = []

    def set_aside(row: Any) -> str:
        odd.append(row)
        return "skip"

    with pa.input_stream(str(path)) as stream:
        table = pcsv.read_csv(
            stream,
            # One thread: only then are lines with too many or too few cells numbered.
            read_options=pcsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, encoding=encoding),
            parse_options=pcsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=set_aside
            ),
            convert_options=pcsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), null_values=[""], strings_can_be_null=True
            ),
        )
    odd_rows = np.array([row.number - 2 for row in odd], np.int64)  # numbered from 1, the header included
    rows = np.setdiff1d(np.arange(table.num_rows + len(odd)), odd_rows, assume_unique=True)
    # A quoted cell may hold line ends: the lines after it stand further down than their number says.
    extra = np.zeros(len(rows) + len(odd), np.int64)
    extra[odd_rows] = [row.text.count("\n") for row in odd]
    for name in names:
        extra[rows] += pc.fill_null(pc.count_substring(table[name], b"\n"), 0).to_numpy()
    line = 2 + np.arange(len(extra)) + np.cumsum(extra) - extra
    cells: dict[str, Any] = {ROW: pa.array(rows), LINE: pa.array(line[rows])}
    broken = [
        (row, f"has {one.actual_columns} cells, the header {one.expected_columns}", one.text)
        for row, one in zip(odd_rows.tolist(), odd, strict=True)
    ]
    for name in names:
        cells[name], wrong = _decoded(table[name])
        broken += [
            (int(rows[at]), f"column {name!r} is not {encoding}: {text}", _shown(table, at)) for at, text in wrong
        ]
    readable = pc.invert(pc.is_in(cells[ROW], pa.array([row for row, _, _ in broken], pa.int64())))
    aside = [
        {
            "source": path.name,
            "row": row,
            "reason": "bad_type",
            "detail": f"{path.name} line {line[row]} {detail}",
            "raw": json.dumps({"line": text[:_MAX_RAW]}, ensure_ascii=False),
        }
        for row, detail, text in {row: (row, detail, text) for row, detail, text in reversed(broken)}.values()
    ]
    return TextTable(path, pa.table(cells).filter(readable), pa.Table.from_pylist(aside, schema=QUARANTINE_SCHEMA))


def _decoded(column: Any) -> tuple[Any, list[tuple[int, str]]]:
    """Return bytes as text, and position and value of what is none."""
    try:
        return column.cast(pa.string()), []
    except pa.ArrowInvalid:
        texts, wrong = [], []
        for at, value in enumerate(column.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                wrong.append((at, shown(value)))
        return pa.array(texts, pa.string()), wrong


def _shown(table: pa.Table, at: int) -> str:
    """Return the cells of a line that is no text."""
    cells = table.slice(at, 1).to_pylist()[0].values()
    return b",".join(cell or b"" for cell in cells).decode(errors="backslashreplace")


def _parquet(path: Path, required: Sequence[str]) -> TextTable:
    table = pq.read_table(path)
    _check_columns(path, table.column_names, required)
    cells: dict[str, Any] = {ROW: pa.array(np.arange(table.num_rows))}
    for name in table.column_names:
        try:
            cells[name] = _as_text(table[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if name in required:
                kind = table[name].type
                raise BadInputError(f"{path.name}: column {name!r} of type {kind} cannot be read as text") from None
    return TextTable(path, pa.table(cells), QUARANTINE_SCHEMA.empty_table())


def _as_text(column: Any) -> Any:
    """Return a typed column as the text a CSV would have: 25671.0 is "25671", times are ISO 8601."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _as_text(column.cast(kind.value_type))
    if pa.types.is_floating(kind):
        whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), MAX_EXACT))
        digits = pc.if_else(whole, column, None).cast(pa.int64(), safe=False).cast(pa.string())
        return pc.coalesce(digits, column.cast(pa.string()))
    if pa.types.is_timestamp(kind):
        us = column.cast(pa.timestamp("us", kind.tz and "UTC"), safe=False)
        return pc.binary_join_element_wise(pc.strftime(us, "%Y-%m-%dT%H:%M:%S"), "Z" if kind.tz else "", "")
    return column.cast(pa.string())
