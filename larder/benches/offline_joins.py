"""Point-in-time joins beside Feast's DuckDB offline store and a bare ASOF join; memory while streaming to Parquet.

Three views of 1 M rows and ten features each, with arrival times. "Deep" history has 400 rows a key, "shallow" has 4.
Every join runs in a process of its own, ours and theirs in turns, and the best of the rounds counts.
"""
# ruff: noqa: S608 - the SQL is made of names and numbers of ours

from __future__ import annotations

import sys
import tempfile
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb

from feature_repo.settings import Settings
from larder.benches.child import TaskFailedError, measured, report
from larder.progress import progress

FEATURE_ROWS = 1_000_000
VIEWS = 3
FEATURES = 10
#: Rows a key.
DEPTHS = {"deep": 400, "shallow": 4}
#: Entity rows for the comparison with Feast's store over deep history: it builds every pair of an entity row and an
#: earlier feature row before it picks one, so its memory grows with their product.
COMPARED = 100_000
ENTITY_ROWS = 1_000_000
STREAMED = (1_000_000, 4_000_000, 12_000_000)
_ROUNDS = 2
_MODULE = "larder.benches.offline_joins"
_DAY_US = 86_400_000_000


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Make the tables, join them by each way, and plot the memory of streaming."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        with progress("make the tables"):
            for depth in DEPTHS:
                _make(Path(work), depth)
        for name, ways, depth, rows in (
            (f"deep_{COMPARED // 1000}k", ("ours", "feast"), "deep", COMPARED),
            ("deep_1m", ("ours",), "deep", ENTITY_ROWS),
            ("shallow_1m", ("ours", "bare", "feast"), "shallow", ENTITY_ROWS),
        ):
            with progress(f"{name}: {', '.join(ways)}"):
                _compare(figures, name, ways, work, depth, rows)
        for rows in STREAMED:
            with progress(f"stream {rows:,} rows to Parquet"):
                done = measured(_MODULE, "stream", work, "shallow", str(rows))
            figures[f"stream_{rows // 1000}k_s"] = done["seconds"]
            figures[f"stream_{rows // 1000}k_peak_gb"] = done["peak_gb"]
    deep = f"deep_{COMPARED // 1000}k"
    figures["deep_speedup"] = _ratio(figures, f"{deep}_feast_s", f"{deep}_ours_s")
    figures["deep_memory_share"] = _ratio(figures, f"{deep}_ours_peak_gb", f"{deep}_feast_peak_gb")
    # Ours over 1 M entity rows against theirs over a tenth of them: a floor of the speed-up at 1 M.
    figures["deep_1m_against_feast_100k"] = _ratio(figures, f"{deep}_feast_s", "deep_1m_ours_s")
    figures["shallow_to_bare"] = _ratio(figures, "shallow_1m_ours_s", "shallow_1m_bare_s")
    # DuckDB may hold 1 GB before it goes through files, which 1 M rows do not fill.
    figures["stream_peak_12m_to_4m"] = _ratio(figures, "stream_12000k_peak_gb", "stream_4000k_peak_gb")
    _plot(figures, settings.results_dir / "offline_joins.png")
    return figures, {
        "deep_speedup": (">=", 5.0),
        "deep_memory_share": ("<=", 1 / 3),
        "shallow_to_bare": ("<=", 3.0),
        "stream_peak_12m_to_4m": ("<", 1.15),
    }


def _compare(figures: dict[str, float], name: str, ways: tuple[str, ...], work: str, depth: str, rows: int) -> None:
    for _ in range(_ROUNDS):
        for way in ways:
            try:
                done = measured(_MODULE, way, work, depth, str(rows))
            except TaskFailedError as error:
                print(f"  {error}")
                continue
            for key, figure in ((f"{name}_{way}_s", done["seconds"]), (f"{name}_{way}_peak_gb", done["peak_gb"])):
                figures[key] = min(figure, figures.get(key, figure))


def _ratio(figures: dict[str, float], one: str, other: str) -> float:
    return figures.get(one, float("nan")) / figures.get(other, float("nan"))


def _plot(figures: dict[str, float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    deep = f"deep_{COMPARED // 1000}k"
    for offset, way in ((-0.2, "ours"), (0.2, "feast")):
        values = [figures.get(f"{name}_{way}_s", 0.0) for name in (deep, "shallow_1m")]
        axes[0].bar([i + offset for i in range(2)], values, 0.4, label=way)
    axes[0].set_xticks([0, 1], [f"deep, {COMPARED // 1000} k rows", "shallow, 1 M rows"])
    axes[0].set(title="seconds, three views")
    axes[0].legend()
    peaks = [figures[f"stream_{rows // 1000}k_peak_gb"] for rows in STREAMED]
    axes[1].plot([rows / 1e6 for rows in STREAMED], peaks, "o-")
    axes[1].set(xlabel="entity rows, million", title="peak memory streaming to Parquet, GB", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _make(work: Path, depth: str) -> None:
    """Write the feature tables and the entity rows of every size."""
    keys = FEATURE_ROWS // DEPTHS[depth]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for view in range(VIEWS):
            columns = ", ".join(f"(hash(i + {n}) % 1000000) / 1000.0 AS v{view}_f{n}" for n in range(FEATURES))
            # A minute or so late, one row in ten by up to a day; rows in the order of arrival.
            event = f"1700000000000000 + (hash(i + {view}) % {100 * _DAY_US})::BIGINT"
            late = f"(hash(i) % IF(i % 10 = 0, {_DAY_US}, 60000000))::BIGINT"
            query = (
                f"WITH fact AS (SELECT i, i % {keys} AS k, {event} AS t, {late} AS late "
                f"FROM range({FEATURE_ROWS}) r(i)) "
                "SELECT 'k' || lpad(k::VARCHAR, 7, '0') AS key, make_timestamptz(t) AS at, "
                f"make_timestamptz(t + late) AS created, {columns} "
                "FROM fact ORDER BY t + late"
            )
            connection.sql(query).write_parquet(str(work / f"{depth}-{view}.parquet"), compression="zstd")
        for rows in {COMPARED, ENTITY_ROWS, *STREAMED}:
            query = (
                f"SELECT 'k' || lpad((hash(i) % {keys + keys // 20})::VARCHAR, 7, '0') AS key, "
                f"make_timestamptz(1700000000000000 + (hash(i + 7) % {100 * _DAY_US})::BIGINT) AS event_timestamp, "
                f"(i % 2)::INTEGER AS label FROM range({rows}) r(i)"
            )
            connection.sql(query).write_parquet(str(work / f"{depth}-entities-{rows}.parquet"), compression="zstd")


def _feast_job(work: Path, depth: str, entities: Any, *, ours: bool) -> Any:
    """Return the retrieval job of our store or of Feast's."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    kind = (
        {"type": "feature_repo.offline_store.DuckDBAsOfOfflineStore", "path": str(work)} if ours else {"type": "duckdb"}
    )
    with tempfile.TemporaryDirectory(prefix="larder-registry-") as directory:
        config = RepoConfig(
            project="joins", provider="local", registry=f"{directory}/registry.db", offline_store=kind,
            online_store={"type": "sqlite", "path": f"{directory}/online.db"}, entity_key_serialization_version=3,
        )  # fmt: skip
        registry = FeatureStore(config=config).registry
        key = Entity(name="key", join_keys=["key"], value_type=ValueType.STRING)
        views, refs = [], []
        for view in range(VIEWS):
            names = [f"v{view}_f{n}" for n in range(FEATURES)]
            source = FileSource(
                name=f"s{view}", path=str(work / f"{depth}-{view}.parquet"), timestamp_field="at",
                created_timestamp_column="created",
            )  # fmt: skip
            fields = [Field(name="key", dtype=String), *(Field(name=name, dtype=Float64) for name in names)]
            views.append(FeatureView(name=f"v{view}", entities=[key], schema=fields, source=source, ttl=timedelta(0)))
            refs += [f"v{view}:{name}" for name in names]
        module = "feature_repo.offline_store" if ours else "feast.infra.offline_stores.duckdb"
        store: Any = getattr(import_module(module), "DuckDBAsOfOfflineStore" if ours else "DuckDBOfflineStore")
        return store.get_historical_features(
            config, views, refs, entities, registry, "joins", filter_by_created_timestamp=True
        )


def _bare(work: Path, depth: str, rows: int) -> Any:
    """Join the views by ASOF alone, on the event time: no arrival times, no order."""
    joins = "".join(
        f" ASOF LEFT JOIN '{work}/{depth}-{view}.parquet' v{view} "
        f"ON e.key = v{view}.key AND e.event_timestamp > v{view}.at"
        for view in range(VIEWS)
    )
    columns = ", ".join(f"v{view}_f{n}" for view in range(VIEWS) for n in range(FEATURES))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(
            f"SELECT e.*, {columns} FROM '{work}/{depth}-entities-{rows}.parquet' e{joins}"
        ).to_arrow_table()


def _task(way: str, work: Path, depth: str, rows: int) -> None:
    import pandas as pd

    path = work / f"{depth}-entities-{rows}.parquet"
    if way == "stream":
        job = _feast_job(work, depth, str(path), ours=True)
        start = time.perf_counter()
        count = job.to_parquet(work / "streamed.parquet")
    elif way == "bare":
        start = time.perf_counter()
        count = _bare(work, depth, rows).num_rows
    else:
        job = _feast_job(work, depth, pd.read_parquet(path), ours=way == "ours")
        start = time.perf_counter()
        count = job.to_arrow().num_rows
    seconds = time.perf_counter() - start
    if count != rows:
        raise ValueError(f"{way} returned {count} of {rows} rows")
    report(seconds=seconds)


if __name__ == "__main__":
    _task(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
