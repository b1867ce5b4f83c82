"""Point-in-time joins over a user's own rows: equal to a slow search, late rows included, and beside Feast's store."""

import tempfile
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from feast.types import Int64, String
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo import asof_join, entity_rows
from feature_repo.asof_join import Join, joined_batches, joined_table
from feature_repo.asof_sql import Source
from feature_repo.offline_store import DuckDBAsOfOfflineStore
from tests.event_tables import START

Row = dict[str, Any]
KEYS = ["branch", "shelf"]
SECOND = timedelta(seconds=1)
MAX_AGE = timedelta(seconds=3)
FEATURE_SCHEMA = pa.schema(
    [
        ("branch", pa.string()),
        ("shelf", pa.int64()),
        ("at", pa.timestamp("us", "UTC")),
        ("created", pa.timestamp("us", "UTC")),
        ("stock", pa.int64()),
        ("note", pa.string()),
    ]
)

times = st.integers(0, 6).map(lambda n: START + n * SECOND)
# Mostly one key, so that rows meet.
keys = st.fixed_dictionaries(
    {"branch": st.sampled_from(["é", "é", "é", "é", "日本", "a b'\"", ""]), "shelf": st.sampled_from([1, 1, 1, 2])}
)


@st.composite
def feature_row(draw: st.DrawFn) -> Row:
    at = draw(st.one_of(times, times, times, st.none()))
    created = draw(st.one_of(st.none(), times, times)) if at is None else at + draw(st.integers(-1, 4)) * SECOND
    row = draw(keys) | {"at": at, "created": draw(st.sampled_from([created, created, created, None]))}
    return row | {
        "stock": draw(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))),
        "note": draw(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=3))),
    }


entities = st.lists(
    st.builds(lambda key, time: key | {"event_timestamp": time}, keys, st.one_of(times, times, times, st.none())),
    min_size=4,
    max_size=12,
)


def stock(row: Row) -> Row:
    return {"branch": "a", "shelf": 1, "created": row["at"], "stock": 1, "note": None} | row


OLD_FACT_COMES_LATE = (
    [stock({"at": START, "created": START + 4 * SECOND}), stock({"at": START + SECOND, "stock": 2})],
    [{"branch": "a", "shelf": 1, "event_timestamp": START + n * SECOND} for n in (1, 2, 6)],
)


def entity_frame(rows: list[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*KEYS, "event_timestamp"])
    return frame.assign(
        n=range(len(frame)),
        branch=frame["branch"].astype(str),
        shelf=frame["shelf"].astype("int64"),
        event_timestamp=pd.to_datetime(frame["event_timestamp"], utc=True),
    )


def known(row: Row, time: datetime, *, with_created: bool) -> bool:
    arrival = (row["created"] or row["at"]) if with_created else row["at"]
    return row["at"] < time and arrival < time


def slow_join(rows: list[Row], wanted: list[Row], *, with_created: bool, max_age: timedelta | None) -> list[Any]:
    """For every entity row, look at every feature row: the greatest (time, arrival, position) of those known."""
    found = []
    for entity in wanted:
        time = entity["event_timestamp"]
        best = None
        for position, row in enumerate(rows):
            same = all(row[key] == entity[key] for key in KEYS)
            if time is None or row["at"] is None or not same or not known(row, time, with_created=with_created):
                continue
            order = (row["at"], (row["created"] or row["at"]) if with_created else row["at"], position)
            if best is None or order > best[0]:
                best = (order, row)
        old = best is not None and max_age is not None and time - best[0][0] > max_age
        found.append((None, None) if best is None or old else (best[1]["stock"], best[1]["note"]))
    return found


def written(directory: Path, rows: list[Row], files: int = 1) -> list[Path]:
    paths = []
    for number in range(files):
        part = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        paths.append(directory / f"{number}.parquet")
        pq.write_table(pa.Table.from_pylist(part, FEATURE_SCHEMA), paths[-1])
    return paths


def join_of(paths: list[Path], *, with_created: bool, max_age: timedelta | None) -> Join:
    age = None if max_age is None else max_age // timedelta(microseconds=1)
    source = Source(paths, KEYS, "at", "created" if with_created else None, folded=False, max_age_us=age)
    return Join(source, {"stock": "stock", "text": "note"}, KEYS)


def values(table: pa.Table) -> list[Any]:
    return list(zip(table["stock"].to_pylist(), table["text"].to_pylist(), strict=True))


def joined(join: Join, frame: pd.DataFrame, directory: Path) -> list[Any]:
    opened = entity_rows.entity_rows(frame, directory)
    return values(joined_table(opened, [join], "event_timestamp", memory_limit="200MB"))


@given(
    st.lists(feature_row(), max_size=25), entities, st.booleans(), st.sampled_from([None, MAX_AGE]), st.integers(1, 3)
)
@example(*OLD_FACT_COMES_LATE, True, None, 1)
@hypothesis_settings(max_examples=25, deadline=None)
def test_equals_a_slow_search(
    rows: list[Row], wanted: list[Row], with_created: bool, max_age: timedelta | None, files: int
) -> None:
    """Late rows, ties, duplicates, nulls, unicode, two keys, ages: in memory and streamed in small batches."""
    expected = slow_join(rows, wanted, with_created=with_created, max_age=max_age)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        join = join_of(written(directory, rows, files), with_created=with_created, max_age=max_age)
        frame = entity_frame(wanted)
        assert joined(join, frame, directory) == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entity_rows, "BATCH_ROWS", 5)
            patch.setattr(asof_join, "BATCH_ROWS", 3)
            opened = entity_rows.entity_rows(frame, directory)
            batches = list(
                joined_batches(opened, [join], "event_timestamp", directory, memory_limit="200MB", on_step=lambda: None)
            )
        assert [row for batch in batches for row in values(batch)] == expected
        assert [n for batch in batches for n in batch["n"].to_pylist()] == list(range(len(wanted)))


@given(st.lists(feature_row(), max_size=20), st.lists(feature_row(), min_size=6, max_size=20), entities)
@hypothesis_settings(max_examples=12, deadline=None)
def test_what_arrives_at_or_after_a_rows_time_changes_nothing(
    rows: list[Row], more: list[Row], wanted: list[Row]
) -> None:
    """Whatever is added to the files: an entity row sees only what had arrived before its time."""
    wanted = [entity for entity in wanted if entity["event_timestamp"] is not None]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        alone, both = directory / "alone", directory / "both"
        for time in {entity["event_timestamp"] for entity in wanted}:
            frame = entity_frame([entity for entity in wanted if entity["event_timestamp"] == time])
            late = [row for row in more if row["at"] is None or max(row["at"], row["created"] or row["at"]) >= time]
            results = []
            for path, content in ((alone, rows), (both, [*late, *rows, *late])):
                path.mkdir(exist_ok=True)
                results.append(
                    joined(join_of(written(path, content), with_created=True, max_age=None), frame, directory)
                )
            assert results[0] == results[1]


class BothStores:
    """One feature view, read by our store and by Feast's DuckDB store."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "stock.parquet"
        base = {"project": "own", "provider": "local", "registry": str(directory / "registry.db"),
                "online_store": {"type": "sqlite", "path": str(directory / "online.db")},
                "entity_key_serialization_version": 3}  # fmt: skip
        ours = {"type": "feature_repo.offline_store.DuckDBAsOfOfflineStore", "path": str(directory)}
        self.ours = RepoConfig(**base, offline_store=ours)
        self.theirs = RepoConfig(**base, offline_store={"type": "duckdb"}, repo_path=directory)
        self.registry = FeatureStore(config=self.ours).registry

    def view(self, ttl: timedelta = timedelta(0)) -> FeatureView:
        entities = [
            Entity(name="branch", join_keys=["branch"], value_type=ValueType.STRING),
            Entity(name="shelf", join_keys=["shelf"], value_type=ValueType.INT64),
        ]
        source = FileSource(
            path=str(self.file), timestamp_field="at", created_timestamp_column="created", name="stock_source"
        )
        fields = [Field(name="branch", dtype=String), Field(name="shelf", dtype=Int64)]
        fields += [Field(name="stock", dtype=Int64), Field(name="note", dtype=String)]
        return FeatureView(name="stock_view", entities=entities, schema=fields, source=source, ttl=ttl)

    def read(self, frame: pd.DataFrame, *, feast: bool, ttl: timedelta = timedelta(0), **options: Any) -> pd.DataFrame:
        store, config = (DuckDBOfflineStore, self.theirs) if feast else (DuckDBAsOfOfflineStore, self.ours)
        refs = ["stock_view:stock", "stock_view:note"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ibis
            job = store.get_historical_features(
                config, [self.view(ttl)], refs, frame.copy(), self.registry, "own", **options
            )
            return job.to_df()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> BothStores:
    return BothStores(tmp_path_factory.mktemp("both"))


def by_number(frame: pd.DataFrame) -> list[Any]:
    frame = frame.sort_values("n").astype(object)
    return list(frame[["n", "stock", "note"]].where(frame.notna(), None).itertuples(index=False, name=None))


@given(st.lists(feature_row(), min_size=6, max_size=25), entities, st.sampled_from([timedelta(0), MAX_AGE]))
@hypothesis_settings(max_examples=25, deadline=None)
def test_equals_feasts_store_where_that_is_right(
    stores: BothStores, rows: list[Row], wanted: list[Row], ttl: timedelta
) -> None:
    """Arrival times known and asked for, no two rows of the same times; its as-of is inclusive, ours is strict."""
    unique = {(r["branch"], r["shelf"], r["at"], r["created"]): r for r in rows if r["at"] and r["created"]}
    small = [row | {"stock": row["stock"] and row["stock"] % 1000} for row in unique.values()]
    pq.write_table(pa.Table.from_pylist(small, FEATURE_SCHEMA), stores.file)
    frame = entity_frame([entity for entity in wanted if entity["event_timestamp"] is not None])
    if frame.empty:
        return
    just_before = frame.assign(event_timestamp=frame["event_timestamp"] - timedelta(microseconds=1))
    theirs = stores.read(just_before, feast=True, ttl=ttl, filter_by_created_timestamp=True)
    assert by_number(stores.read(frame, feast=False, ttl=ttl)) == by_number(theirs)


def stocks(frame: pd.DataFrame) -> list[Any]:
    return [row[1] for row in by_number(frame)]


def test_where_feasts_store_is_wrong(stores: BothStores) -> None:
    """Each case of docs/offline-store.md. If one of these fails, Feast has changed: correct the page."""
    frame = entity_frame([{"branch": "a", "shelf": 1, "event_timestamp": START + 5 * SECOND}])

    def both(rows: list[Row], entity: pd.DataFrame = frame, **options: Any) -> tuple[list[Any], list[Any]]:
        pq.write_table(pa.Table.from_pylist([stock(row) for row in rows], FEATURE_SCHEMA), stores.file)
        return stocks(stores.read(entity, feast=False)), stocks(stores.read(entity, feast=True, **options))

    late = [{"at": START}, {"at": START + SECOND, "created": START + 60 * SECOND, "stock": 2}]
    assert both(late) == ([1], [2]), "a late row leaks by default"
    assert both([{"at": START}, {"at": START + 5 * SECOND, "stock": 2}]) == ([1], [2]), (
        "a row of the very moment counts"
    )
    unknown = [{"at": START, "created": None}]
    assert both(unknown, filter_by_created_timestamp=True) == ([1], [None]), (
        "an unknown arrival is lost with the filter"
    )
    nanoseconds = frame["event_timestamp"].dt.as_unit("ns") + pd.to_timedelta([7], unit="ns")
    stores.read(frame, feast=True)
    with pytest.raises(pa.ArrowInvalid, match="would lose data"):
        both([{"at": START}], frame.assign(event_timestamp=nanoseconds))
    assert stocks(stores.read(frame.assign(event_timestamp=nanoseconds), feast=False)) == [1]


def test_the_last_written_of_equal_rows_counts_and_any_time_type_is_read(tmp_path: Path) -> None:
    frame = entity_frame([{"branch": "a", "shelf": 1, "event_timestamp": START + SECOND}])
    rows = [stock({"at": START, "stock": number}) for number in range(5)]
    paths = written(tmp_path, rows, files=3)
    assert joined(join_of(paths, with_created=True, max_age=None), frame, tmp_path) == [(4, None)]
    for kind in (pa.timestamp("ns", "UTC"), pa.timestamp("us"), pa.timestamp("ms", "Asia/Kolkata"), pa.date32()):
        table = pa.Table.from_pylist(rows[:1], FEATURE_SCHEMA)
        at = table["at"].cast(pa.timestamp("ns", "UTC")).cast(kind, safe=False)
        pq.write_table(table.set_column(2, "at", at).set_column(3, "created", at), paths[0])
        join = join_of(paths[:1], with_created=True, max_age=None)
        assert joined(join, frame, tmp_path) == [(0, None)], kind
