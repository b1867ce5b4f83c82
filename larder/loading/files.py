"""Rows of a file of events or items: Parquet, CSV or JSON lines, each as the fields the API would be sent."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_rules import shown

_BATCH_ROWS: Final = 10_000
_NUMBERS: Final = ("value", "price", "quantity", "rank")
_FLAGS: Final = ("available", "blocked")
_JSON: Final = ("context", "tags")
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number in the file (from 0), its fields, and what makes it unreadable (`slug: detail`), if so."""

    number: int
    fields: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Attributes
    ----------
    digest
        Hash of its content: the same file has the same, wherever it lies.
    rows
        How many rows it has; None if only reading it all would tell.
    """

    path: Path
    digest: str
    rows: int | None

    @classmethod
    def open(cls, path: Path) -> RowFile:
        """Look at a file.

        Raises
        ------
        NotFoundError
            If it does not exist.
        BadInputError
            If it is of no kind that can be read.
        """
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}")
        if path.suffix not in _READERS:
            raise BadInputError(f"{path.name}: the file must be one of {', '.join(_READERS)}")
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
        if path.suffix != ".parquet":
            return cls(path, digest, None)
        try:
            return cls(path, digest, pq.read_metadata(path).num_rows)
        except pa.ArrowException as error:
            raise BadInputError(f"{path.name} is no Parquet file: {error}") from None

    def batches(self) -> Iterator[list[Row]]:
        """Yield the rows in order, some thousands at a time."""
        rows = iter(_READERS[self.path.suffix](self.path))
        while batch := list(islice(rows, _BATCH_ROWS)):
            yield batch


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS):
            for fields in batch.to_pylist():
                yield Row(number, _given(fields))
                number += 1


def _csv(path: Path) -> Iterator[Row]:
    # Bytes that are no UTF-8 become lone surrogates, which the rules refuse with the row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        for number, cells in enumerate(csv.DictReader(handle)):
            if None in cells:
                yield Row(number, {"cells": list(cells.values())}, "bad_type: more cells than the header has")
            else:
                yield Row(number, _given({name: _cell(name, text) for name, text in cells.items()}))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle):
            try:
                fields = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                yield Row(number, {"line": line[:1000].decode(errors="replace")}, f"bad_type: not JSON: {error}")
                continue
            if isinstance(fields, dict):
                yield Row(number, fields)
            else:
                yield Row(number, {"line": fields}, f"bad_type: a line must be a JSON object, not {shown(fields)}")


_READERS: Final = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a table cannot help naming: nulls and empty cells; times as text, JSON columns as JSON."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, datetime | date):
            found[name] = value.isoformat()
        elif name in _JSON and isinstance(value, str):
            found[name] = value
            with suppress(ValueError, RecursionError):
                found[name] = json.loads(value)
        else:
            found[name] = value
    return found


def _cell(name: str, text: str | None) -> Any:
    """Return what a cell of a CSV says; what is not of the column's type stays text and is refused by the rules."""
    if text is None or not text.strip():
        return None
    if name in _FLAGS:
        return _TRUTH.get(text.strip().lower(), text)
    if name in _NUMBERS:
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text
