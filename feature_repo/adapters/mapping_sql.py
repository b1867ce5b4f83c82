"""The SQL (DuckDB) of one field of a mapping: the value a line gives it, and what is wrong with the line's cell. PURE.

Cells are text; empty ones are null. A problem is `"slug: column 'price': '12,5' is not a number"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from feature_repo.adapters.mapping_spec import Flag, Kind, Money, Source, Tags, Text, Time

_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
#: ISO 8601 with a zone at the end, as far as DuckDB reads it.
_ZONED = r".*[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)? ?(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)"
_PER_SECOND = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
#: Years 1 to 9999 in µs; what is outside becomes a bad time here and not an overflow somewhere else.
_TIME_RANGE = "BETWEEN -62135596800000000 AND 253402300799000000"


@dataclass(frozen=True)
class FieldSql:
    """Expressions of one field; `problem` is null where there is none."""

    value: str
    problem: str = "NULL"


def field_sql(source: Source, *, required: bool, decimal: str) -> FieldSql:
    """Return the expressions of a field.

    Parameters
    ----------
    required
        Whether an empty cell is a problem.
    decimal
        The sign before the decimals of numbers.
    """
    if isinstance(source, Tags):
        return FieldSql(_tags(source))
    cell = _cell(source)
    if isinstance(source, Time):
        found = _time(source, cell)
    elif isinstance(source, Kind):
        found = _kind(source, cell)
    elif isinstance(source, Flag):
        value = (
            f"CASE WHEN lower({cell}) IN ('true', '1') THEN true WHEN lower({cell}) IN ('false', '0') THEN false END"
        )
        found = FieldSql(value, _unless(value, cell, source, "bad_type", "is none of true, false, 1, 0"))
    elif isinstance(source, Text):
        found = FieldSql(cell)
    else:
        found = _number(source, cell, decimal)
    if not required or source.constant is not None:
        return found
    empty = f"CASE WHEN {cell} IS NULL THEN {literal(f'missing_field: {_named(source)} is empty')} END"
    return FieldSql(found.value, f"coalesce({empty}, {found.problem})")


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a column's name as SQL names it."""
    return '"' + name.replace('"', '""') + '"'


def _cell(source: Source) -> str:
    """Return the expression of the text a line gives the field."""
    if source.constant is not None:
        return literal(source.constant)
    if isinstance(source, Text) and source.join is not None:
        names = [identifier(name) for name in source.join]
        missing = " OR ".join(f"{name} IS NULL" for name in names)
        return f"CASE WHEN NOT ({missing}) THEN concat_ws({literal(source.separator)}, {', '.join(names)}) END"
    if isinstance(source, Text) and source.hash is not None:
        cells = ", ".join(f"coalesce({identifier(name)}, '')" for name in source.hash)
        return f"md5(concat_ws(chr(31), {cells}))"
    cell = _first(identifier(name) for name in source.column or ())
    if isinstance(source, Text) and source.split is not None:
        return f"string_split({cell}, {literal(source.split)})[1]"
    return cell


def _first(cells: Iterable[str]) -> str:
    found = list(cells)
    return found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"


def _named(source: Source) -> str:
    names = [repr(name) for _, name in source.columns()]
    return f"column {names[0]}" if len(names) == 1 else f"column {' or '.join(names)}"


def _unless(value: str, cell: str, source: Source, slug: str, says: str) -> str:
    """Return the problem of a cell that says something where no value came out of it."""
    begins = literal(f"{slug}: {_named(source) if source.constant is None else 'constant'}: ")
    shown = f"'''' || {cell}[:80] || ''' '"
    return f"CASE WHEN {cell} IS NOT NULL AND ({value}) IS NULL THEN {begins} || {shown} || {literal(says)} END"


def _number(source: Source, cell: str, decimal: str) -> FieldSql:
    text = f"trim({cell})" if decimal == "." else f"replace(trim({cell}), ',', '.')"
    value = f"CASE WHEN regexp_full_match({text}, {literal(_NUMBER)}) THEN TRY_CAST({text} AS DOUBLE) END"
    problem = _unless(value, cell, source, "bad_type", "is not a number")
    if isinstance(source, Money) and source.unit == "major":
        value = f"round(({value}) * {10**source.decimals})"
    return FieldSql(value, problem)


def _kind(source: Kind, cell: str) -> FieldSql:
    if source.values is None:
        return FieldSql(cell)  # the rules of events say which there are
    cases = " ".join(f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in source.values.items())
    value = f"CASE {cell} {cases} END"
    return FieldSql(value, _unless(value, cell, source, "bad_event_type", "is not among the values of the mapping"))


def _tags(source: Tags) -> str:
    if source.constant is not None:
        return f"[{literal(source.constant)}]"
    lists = []
    for name in source.column or ():
        cell = identifier(name)
        parts = f"[{cell}]" if source.split is None else f"string_split({cell}, {literal(source.split)})"
        lists.append(f"CASE WHEN {cell} IS NULL THEN [] ELSE {parts} END")
    every = f"list_filter(list_transform(flatten([{', '.join(lists)}]), lambda x: trim(x)), lambda x: x <> '')"
    return f"CASE WHEN len({every}) > 0 THEN {every} END"


def _time(source: Time, cell: str) -> FieldSql:
    """Microseconds since 1970."""
    text, zone = f"trim({cell})", literal(source.zone or "UTC")
    if source.format in _PER_SECOND:
        number = f"CASE WHEN regexp_full_match({text}, {literal(_NUMBER)}) THEN TRY_CAST({text} AS DOUBLE) END"
        value = f"TRY_CAST(round(({number}) * {_PER_SECOND[source.format]}) AS BIGINT)"
        says = f"is not a number of {source.format.removeprefix('epoch_')}"
    elif source.format == "iso":
        zoned = f"regexp_full_match({text}, {literal(_ZONED)})"
        value = (
            f"CASE WHEN {zoned} THEN epoch_us(TRY_CAST({text} AS TIMESTAMPTZ)) "
            f"ELSE epoch_us(timezone({zone}, TRY_CAST({text} AS TIMESTAMP))) END"
        )
        says = "is not an ISO 8601 time"
    else:
        parsed = f"try_strptime({text}, {literal(source.format)})"
        value = f"epoch_us({parsed})" if "%z" in source.format else f"epoch_us(timezone({zone}, {parsed}))"
        says = f"is not a time like {source.format}"
    value = f"CASE WHEN ({value}) {_TIME_RANGE} THEN {value} END"
    problem = _unless(value, cell, source, "bad_type", says)
    if source.format == "iso" and source.zone is None:
        naive = f"CASE WHEN NOT ({zoned}) AND ({value}) IS NOT NULL THEN true END"
        says = "names no time zone; add zone: to the mapping"
        unzoned = _unless(f"CASE WHEN ({naive}) IS NULL THEN true END", cell, source, "naive_time", says)
        problem = f"coalesce({problem}, {unzoned})"
    return FieldSql(value, problem)
