"""Any CSV or Parquet files as a data set, by a YAML mapping (docs/own-data.md)."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.adapters.assemble import Lines, accept, catalogue, judged, with_categories
from feature_repo.adapters.mapping_file import Location, MappingFile, read_mapping
from feature_repo.adapters.mapping_spec import EventFile, ItemFile, Source
from feature_repo.adapters.mapping_sql import FieldSql, field_sql, identifier, literal
from feature_repo.adapters.text_table import ROW, TextTable, read_text_table
from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import BadInputError, LarderError
from feature_repo.event_rules import MAX_EXACT, REQUIRED, is_id, shown
from feature_repo.events import EVENT_SCHEMA

_ROW: Final = identifier(ROW)
_NO_EVENTS: Final = pa.table({name: pa.array([], EVENT_SCHEMA.field(name).type) for name in REQUIRED})


def load(path: Path, data_dir: Path) -> Dataset:
    """Load the files a mapping names.

    A purchase or cancel without a value gets price x quantity, as a live event does. What the mapping does not say of
    an item, its first event does (`assemble.catalogue`).

    Parameters
    ----------
    path
        The mapping. Its files lie beside it, or in `data_dir`.

    Raises
    ------
    NotFoundError
        If a file is missing.
    BadInputError
        If the mapping or a file cannot be used, or a line of the catalogue cannot be an item; with file, line, column.
    """
    mapping = read_mapping(path)
    parts = [
        _event_lines(mapping, file, ("events", number), data_dir) for number, file in enumerate(mapping.spec.events)
    ]
    events, quarantine = accept(parts, now=datetime.now(UTC))
    if mapping.spec.items is None:
        known = pa.table({"item_id": pa.array([], pa.string())})
    else:
        known = _items(mapping, mapping.spec.items, data_dir)
    items = catalogue(events, known)
    return make_dataset(
        mapping.spec.name,
        with_categories(events, items),
        items,
        quarantine,
        target=mapping.spec.target,
        repeats=mapping.spec.repeats,
    )


def _event_lines(mapping: MappingFile, file: EventFile, at: Location, data_dir: Path) -> Lines:
    text = _read(mapping, file, at, data_dir)
    fields = _fields(file)
    found = {
        name: field_sql(source, required=name in REQUIRED, decimal=file.decimal) for name, source in fields.items()
    }
    if "event_id" not in found:
        with text.path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
        found["event_id"] = FieldSql(f"'load-{digest}-' || {_ROW}")  # as `larder events load` would name it
    if "price" in found:
        quantity = f"coalesce({found['quantity'].value}, 1)" if "quantity" in found else "1"
        of_money = f"{found['event_type'].value} IN ('purchase', 'cancel')"
        paid = f"CASE WHEN {of_money} THEN ({found['price'].value}) * {quantity} END"
        said = found.get("value", FieldSql("NULL"))
        found["value"] = FieldSql(f"coalesce({said.value}, {paid})", said.problem)
    return judged(text, text.path.name, _lines(file, found), f"{_of(found)} WHERE problem IS NULL ORDER BY {_ROW}")


def _items(mapping: MappingFile, file: ItemFile, data_dir: Path) -> pa.Table:
    """Return the catalogue of a file, one row per item: of each field the first value that its lines have."""
    text = _read(mapping, file, ("items",), data_dir)
    found = {
        name: field_sql(source, required=name == "item_id", decimal=file.decimal)
        for name, source in _fields(file).items()
    }
    items = judged(text, text.path.name, _lines(file, found), f"{_of(found)} WHERE problem IS NULL ORDER BY {_ROW}")
    problems = dict(items.problems) | _item_problems(items.events)
    wrong = pa.array(list(problems), pa.int64())
    if file.file not in {one.file for one in mapping.spec.events}:  # whose wrong lines are in quarantine already
        _require_right(text, problems)
    firsts = [f"arg_min({name}, {_ROW}) AS {name}" for name in found if name != "item_id"]
    with duckdb.connect() as connection:
        connection.register("line", items.events.filter(pc.invert(pc.is_in(items.events[ROW], wrong))))
        columns = ", ".join(["nfc_normalize(item_id) AS item_id", *firsts])
        return connection.sql(f"SELECT {columns} FROM line GROUP BY 1").to_arrow_table()  # noqa: S608 - our own names


def _item_problems(items: pa.Table) -> dict[int, str]:
    """Return what the rules of an item say against its lines, by row."""
    problems: dict[int, str] = {}
    for name in ("item_id", "category"):
        if name in items.column_names:
            wrong = pa.array(
                [text for text in pc.unique(items[name]).to_pylist() if text is not None and not is_id(text)]
            )
            bad = items.filter(pc.is_in(items[name], wrong.cast(pa.string())))
            for row, text in zip(bad[ROW].to_pylist(), bad[name].to_pylist(), strict=True):
                problems[row] = f"bad_id: {name} {shown(text)}"
    if "price" in items.column_names:
        price = items["price"]
        right = pc.and_(
            pc.and_(pc.greater_equal(price, 0), pc.less(price, MAX_EXACT)), pc.equal(price, pc.floor(price))
        )
        bad = items.filter(pc.invert(pc.fill_null(right, True)))
        for row, amount in zip(bad[ROW].to_pylist(), bad["price"].to_pylist(), strict=True):
            problems[row] = f"not_whole: price {amount} is no whole amount of minor units (is unit: major meant?)"
    return problems


def _require_right(text: TextTable, problems: Mapping[int, str]) -> None:
    """Refuse a catalogue with a line that is no item: nobody would miss what was left out."""
    if not problems and not text.broken.num_rows:
        return
    said = accept([Lines(text.path.name, text.cells, _NO_EVENTS, problems, text.broken)])[1]
    more = f" (and {said.num_rows - 1} more lines of {text.path.name})" if said.num_rows > 1 else ""
    raise BadInputError(f"{said['detail'][0].as_py()}{more}; correct the catalogue and import again")


def _read(mapping: MappingFile, file: EventFile | ItemFile, at: Location, data_dir: Path) -> TextTable:
    """Read a file and see that it has the columns the mapping names."""
    try:
        text = read_text_table(mapping.find(file.file, data_dir), delimiter=file.delimiter, encoding=file.encoding)
    except LarderError as error:
        raise type(error)(f"{mapping.place((*at, 'file'))}: {error}") from None
    for name, source in _fields(file).items():
        for way, column in source.columns():
            if column not in text.columns:
                close = difflib.get_close_matches(column, text.columns, 1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(text.columns)}"
                place = mapping.place((*at, "fields", name, way))
                raise BadInputError(f"{place}: {text.path.name} has no column {column!r}{hint}")
    return text


def _fields(file: EventFile | ItemFile) -> dict[str, Source]:
    return {name: source for name, source in file.fields if source is not None}


def _lines(file: EventFile | ItemFile, found: Mapping[str, FieldSql]) -> str:
    """Return the query of all fields and of the first problem of each line; cells that say nothing are null in it."""
    nothing = ", ".join(map(literal, ["", *file.empty]))
    used = {column for source in _fields(file).values() for _, column in source.columns()}
    cells = [f"CASE WHEN trim({c}) NOT IN ({nothing}) THEN {c} END AS {c}" for c in map(identifier, sorted(used))]
    columns = [f"{one.value} AS {name}" for name, one in found.items()]
    problems = [one.problem for one in found.values()]
    said = f"SELECT {', '.join([_ROW, *cells])} FROM cell"  # noqa: S608 - names and constants only, all quoted
    return f"SELECT {', '.join([_ROW, *columns])}, coalesce({', '.join(problems)}, NULL) AS problem FROM ({said})"  # noqa: S608 - as above


def _of(found: Mapping[str, FieldSql]) -> str:
    return f"SELECT {', '.join([_ROW, *found])} FROM line"  # noqa: S608 - names of our own fields
