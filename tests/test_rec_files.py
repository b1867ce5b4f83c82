"""Files that are graded: the same in every format, and errors that name the line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import BadInputError, NotFoundError
from training.grading import Recs
from training.rec_files import read_catalogue, read_event_file, read_recs, write_recs

ROWS = [("u1", "a", 1), ("u2", "007", 2), ("u2", "é", 1), ("u1", "NA", 2)]


def columns(recs: Recs) -> list[tuple[str, str, int]]:
    return list(zip(recs.user.to_pylist(), recs.item.to_pylist(), recs.rank.tolist(), strict=True))


def write(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("user_id", "item_id", "rank")) -> Path:
    frame = pd.DataFrame(rows, columns=list(names))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "ndjson"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    """Ids stay text (007, NA), and are brought to NFC like those of events."""
    decomposed = [(user, item.replace("é", "e\u0301"), rank) for user, item, rank in ROWS]
    assert columns(read_recs(write(tmp_path / f"recs.{suffix}", decomposed))) == ROWS


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_whole_numbers_are_ids(tmp_path: Path, suffix: str) -> None:
    assert columns(read_recs(write(tmp_path / f"recs.{suffix}", [(17850, 22, 1)]))) == [("17850", "22", 1)]


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text("abé0 ", min_size=1), st.lists(st.text("xyz1 ", min_size=1), unique=True, min_size=1), min_size=1
    )
)
def test_lists_written_are_read_back(tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[str]]) -> None:
    path = tmp_path_factory.mktemp("recs") / "new" / "recs.parquet"
    write_recs(path, lists)
    expected = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, start=1)]
    assert columns(read_recs(path)) == expected


HEAD = "user_id,item_id,rank\n"
WRONG = [
    (HEAD + "u1,a,1\nu1,b,1\n", "recs.csv, line 3: user 'u1' has rank 1 twice (also in recs.csv, line 2)"),
    (HEAD + "u1,a,1\nu1,b,3\n", "recs.csv, line 3: user 'u1' has rank 3, but no rank 2"),
    (HEAD + "u1,a,0\nu1,b,1\n", "recs.csv, line 2: user 'u1' has rank 0, but no rank 1"),
    (
        HEAD + "u1,a,1\nu2,a,1\nu1,a,2\n",
        "recs.csv, line 4: item 'a' is twice in the list of user 'u1' (also in recs.csv, line 2)",
    ),
    (HEAD + "u1,a,1\nu1,b,second\n", "recs.csv, line 3: rank must be a whole number from 1, not 'second'"),
    (HEAD + "u1,a,1\nu1,b,1.5\n", "recs.csv, line 3: rank must be a whole number from 1, not '1.5'"),
    (HEAD + "u1,a,1\n\nu1,b,2\n", "recs.csv, line 3: user_id is missing"),
    (HEAD + "u1,,1\n", "recs.csv, line 2: item_id is missing"),
    (HEAD + "u1,a,1,7\n", "recs.csv cannot be read: CSV parse error: Row #2: Expected 3 columns, got 4"),
    ("user_id,item_id,rank,w\nu1,a,1,7\n", "recs.csv: unknown column 'w'; a file of recommendations has user_id"),
    ("user_id,item,rank\nu1,a,1\n", "recs.csv has no column 'item_id'; its columns are: user_id, item, rank"),
    ("", "recs.csv has no column 'user_id'; its columns are: none"),
    (HEAD, "recs.csv has no rows"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recs.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInputError) as caught:
        read_recs(path)
    assert message in str(caught.value)


JSON_WRONG = [
    ('{"user_id":"u","item_id":"a","rank":1}\n{"user_id":"u"\n', "recs.jsonl, line 2 is no JSON object"),
    ('{"user_id":"u","item_id":"a","rank":1}\n[1]\n', "recs.jsonl, line 2 is no JSON object"),
    ('{"user_id":"u","item_id":1.5,"rank":1}\n', "recs.jsonl, line 1: item_id must be text or a whole number, not 1.5"),
    ('{"user_id":"u","item_id":"a","rank":1,"w":1}\n', "unknown column 'w'"),
    ('{"user_id":"u","item_id":"a","rank":1}\n{"user_id":"u","rank":2}\n', "recs.jsonl, line 2: item_id is missing"),
]


@pytest.mark.parametrize(("text", "message"), JSON_WRONG)
def test_errors_in_json_lines_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recs.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInputError) as caught:
        read_recs(path)
    assert message in str(caught.value)


def test_errors_in_parquet_name_row_and_type(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"recs.parquet, row 1: user 'u' has rank 3"):
        read_recs(write(tmp_path / "recs.parquet", [("u", "a", 1), ("u", "b", 3)]))
    with pytest.raises(BadInputError, match="column user_id must hold text or whole numbers, not double"):
        read_recs(write(tmp_path / "recs.parquet", [(1.0, "a", 1)]))
    with pytest.raises(BadInputError, match="column rank must hold whole numbers, not double"):
        read_recs(write(tmp_path / "recs.parquet", [("u", "a", 1.0)]))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadInputError, match=r"broken.parquet cannot be read"):
        read_recs(tmp_path / "broken.parquet")


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read_recs(tmp_path / "recs.csv")
    (tmp_path / "recs.xlsx").write_text("")
    with pytest.raises(BadInputError, match=r"recs.xlsx: the file must be .parquet, .csv, .jsonl or .ndjson"):
        read_recs(tmp_path / "recs.xlsx")


NAMES = ("user_id", "item_id", "event_type", "event_timestamp")
MOMENT = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1e6)


@pytest.mark.parametrize("text", ["2026-03-01T12:00:00Z", "2026-03-01 13:00:00+01:00", "2026-03-01T12:00"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_times_of_events_in_any_zone(tmp_path: Path, suffix: str, text: str) -> None:
    events = read_event_file(write(tmp_path / f"events.{suffix}", [("u", "a", "view", text)], NAMES))
    assert events.time_us.tolist() == [MOMENT]


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Berlin")])
def test_times_of_events_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    time = pa.array([MOMENT], pa.timestamp("us", "UTC" if kind.tz else None)).cast(kind)
    row = {"user_id": ["u"], "item_id": ["a"], "event_type": ["view"], "event_timestamp": time}
    pq.write_table(pa.table(row), tmp_path / "events.parquet")
    assert read_event_file(tmp_path / "events.parquet").time_us.tolist() == [MOMENT]


def test_an_event_counts_from_when_it_was_known(tmp_path: Path) -> None:
    rows = [("u", "a", "view", "2026-03-01T10:00Z", "2026-03-01T12:00Z"), ("u", "a", "view", "2026-03-01T12:00Z", None)]
    events = read_event_file(write(tmp_path / "events.csv", rows, (*NAMES, "received_at")))
    assert events.time_us.tolist() == [MOMENT, MOMENT]


@pytest.mark.parametrize(("time", "shown"), [("yesterday", "'yesterday'"), ("", "None")])
def test_a_time_that_is_none_names_its_line(tmp_path: Path, time: str, shown: str) -> None:
    rows = [("u", "a", "view", "2026-03-01T12:00Z"), ("u", "a", "view", time)]
    with pytest.raises(BadInputError, match=f"events.csv, line 3: event_timestamp must be a time .* not {shown}"):
        read_event_file(write(tmp_path / "events.csv", rows, NAMES))


def test_a_catalogue_may_have_more_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", [("a", "A lamp", 5), ("b", "B", 6)], ("item_id", "title", "price"))
    assert read_catalogue(path).to_pylist() == ["a", "b"]


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["user_id", "item_id", "rank"])
    frame[frame["rank"] == 1].iloc[::-1].to_parquet(tmp_path / "recs.parquet")
    assert columns(read_recs(tmp_path / "recs.parquet")) == [("u2", "é", 1), ("u1", "a", 1)]


def test_categories_of_pandas_are_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "rank": np.array([1, 2], np.int8)})
    frame.astype({"user_id": "category"}).to_parquet(tmp_path / "recs.parquet")
    assert columns(read_recs(tmp_path / "recs.parquet")) == [("u", "a", 1), ("u", "b", 2)]
