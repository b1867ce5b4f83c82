"""Brings the impression log into DuckDB: a row per answer, and a row per item shown, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import duckdb
import msgspec
import pyarrow as pa

from serving.impressions import read_as

#: Answers that are held in memory on their way into DuckDB.
BLOCK: Final = 20_000
#: Rungs of the ladder on which a model made the scores.
_BY_MODEL: Final = frozenset({"full", "item_side"})
_POPULAR: Final = "popular"

_REQUESTS: Final = pa.schema(
    [
        ("imp", pa.int64()), ("request_id", pa.string()), ("user_id", pa.string()), ("time_us", pa.int64()),
        ("bundle_id", pa.string()), ("model_version", pa.string()), ("arm", pa.string()), ("new_user", pa.bool_()),
    ]
)  # fmt: skip
_SHOWN: Final = pa.schema(
    [("imp", pa.int64()), ("item_id", pa.string()), ("rank", pa.int32()), ("score", pa.float64())]
)


class _Line(msgspec.Struct, frozen=True):
    """What is needed of `RankedItem`."""

    item_id: str
    rank: int
    score: float | None = None
    source: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What is needed of `ImpressionRecord`; the features the model saw are skipped unread."""

    request_id: str
    time_us: int
    user_id: str
    assigned_arm: str
    items: list[_Line]
    served_bundle: str | None = None
    model_version: str | None = None
    level: str = "full"
    user_seq: int = 0


def load_shown(
    connection: duckdb.DuckDBPyConnection,
    directory: Path,
    since_us: int,
    until_us: int,
    report: Callable[[int], None] = lambda _answers: None,
) -> int:
    """Make the tables `requests` and `shown` of the answers given in [since, until); return how many there were.

    Parameters
    ----------
    directory
        `Settings.impressions_dir`.
    report
        Called with the number of answers read, block by block.

    Notes
    -----
    `score` is null where no model made it: it is a share of purchases there, no probability.
    """
    for name, schema in (("requests", _REQUESTS), ("shown", _SHOWN)):
        connection.register("block", schema.empty_table())
        connection.execute(f"CREATE TABLE {name} AS FROM block")
    rest, read = _within(directory, since_us, until_us), 0
    while block := list(itertools.islice(rest, BLOCK)):
        _insert(connection, "requests", _requests(block, read))
        _insert(connection, "shown", _lines(block, read))
        read += len(block)
        report(len(block))
    return read


def _within(directory: Path, since_us: int, until_us: int) -> Iterator[_Answer]:
    return (one for one in read_as(_Answer, directory, since_us) if one.time_us < until_us)


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("block", rows)
    connection.execute(f"INSERT INTO {name} FROM block")
    connection.unregister("block")


def _requests(block: Iterable[_Answer], first: int) -> pa.Table:
    rows = [
        (n, one.request_id, one.user_id, one.time_us, one.served_bundle, one.model_version, one.assigned_arm,
         one.user_seq == 0)
        for n, one in enumerate(block, start=first)
    ]  # fmt: skip
    return _table(rows, _REQUESTS)


def _lines(block: Iterable[_Answer], first: int) -> pa.Table:
    rows = []
    for n, one in enumerate(block, start=first):
        ranked = one.served_bundle is not None and one.level in _BY_MODEL
        rows += [
            (n, line.item_id, line.rank, line.score if ranked and line.source != _POPULAR else None)
            for line in one.items
        ]
    return _table(rows, _SHOWN)


def _table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
