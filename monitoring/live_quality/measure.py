"""Measures live quality: joins what was served with what users did, in DuckDB and through files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_log import read_item_changes, read_items, read_report
from feature_repo.events import EventType
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from monitoring.live_quality import figures
from monitoring.live_quality.answered import Period, load_answered
from monitoring.live_quality.report import Group, QualityReport, Settled
from monitoring.live_quality.shown import load_shown

#: What DuckDB may hold in memory; beyond that it goes through files.
MEMORY_LIMIT: Final = "1GB"
HOUR_US: Final = 3_600_000_000
#: A curve over time has at most so many points, else they are days apart.
_HOURS: Final = 72


@dataclass(frozen=True, slots=True)
class Extent:
    """What is measured.

    Attributes
    ----------
    since_us, until_us
        Answers given in [since, until), µs since the epoch; 0: all, and up to now.
    window_us
        How long after its list an event counts.
    wait_us
        Answers younger than this are left out: people have hardly had the time to click.
    target
        Event type the model's probability is of; None: that of the project's data.
    """

    since_us: int = 0
    until_us: int = 0
    window_us: int = DAY_US
    wait_us: int = 600_000_000
    target: str | None = None


def measure(
    settings: Settings, now_us: int, extent: Extent | None = None, report: Callable[[int], None] = lambda _answers: None
) -> QualityReport:
    """Join the log of what was served with the event log and return what came of it.

    Reads files only; writes none but scratch, which is gone at the end.

    Parameters
    ----------
    now_us
        Time of the report, µs since the epoch.
    report
        Called with the number of answers read, block by block.

    Raises
    ------
    NotFoundError
        If nothing was served in that time.
    BadInputError
        For a target that is no type of event.
    """
    extent, began = extent or Extent(), time.perf_counter()
    until = min(extent.until_us or now_us, now_us - extent.wait_us)
    target = extent.target or _target(settings)
    if target not in EventType.__members__:
        raise BadInputError(f"the target must be a type of event ({', '.join(EventType.__members__)}), not {target!r}")
    if not settings.impressions_dir.is_dir():
        raise NotFoundError(f"nothing was served yet: there is no {settings.impressions_dir}")
    with _scratch(settings) as connection:
        # What answers a list from before the report's time must be told from what answers none.
        load_shown(connection, settings.impressions_dir, max(extent.since_us - extent.window_us, 0), now_us, report)
        young = _count(connection, f"time_us >= {max(until, extent.since_us)}")
        wanted = f"time_us >= {extent.since_us} AND time_us < {until}"
        first = connection.sql(f"SELECT min(time_us) FROM requests WHERE {wanted}").fetchall()  # noqa: S608 - numbers
        if first[0][0] is None:
            also = f"; {young:,} answers are too young (--wait)" if young else ""
            raise NotFoundError(
                f"project {settings.project!r} has no answers in that time in its log of what was served{also}"
            )
        period = Period(extent.since_us or first[0][0], until, now_us, extent.window_us)
        load_answered(connection, settings, period, target)
        _load_catalogue(connection, settings)
        figures.prepare(connection, period)
        return replace(_report(connection, settings, period, target, young), seconds=time.perf_counter() - began)


def _report(
    connection: duckdb.DuckDBPyConnection, settings: Settings, period: Period, target: str, young: int
) -> QualityReport:
    bucket = HOUR_US if period.until - period.since <= _HOURS * HOUR_US else DAY_US
    points, errors = figures.reliability(connection)
    fates = connection.sql("FROM fates").fetchall()
    within = f"time_us >= {period.since} AND time_us < {period.until}"
    left_out = {
        "too young to have been clicked": young,
        "of an unfinished window, in carts, purchases and calibration": _count(
            connection, f"{within} AND time_us >= {period.mature}"
        ),
    }
    return QualityReport(
        project=settings.project,
        taken_at=datetime.fromtimestamp(period.now / 1e6, UTC).isoformat(timespec="seconds"),
        since_us=period.since,
        until_us=period.until,
        window_us=period.window,
        target=target,
        champion=_champion(connection),
        requests=_count(connection, within),
        groups=tuple(_calibrated(one, errors) for one in figures.groups(connection)),
        by_time=tuple(figures.by_time(connection, bucket)),
        by_rank=tuple(figures.by_rank(connection)),
        reliability=tuple(points),
        by_category=tuple(figures.by_category(connection)),
        settled=tuple(Settled(kind, fate, claimed, events, int(other)) for kind, fate, claimed, events, other in fates),
        left_out={why: number for why, number in left_out.items() if number},
        bucket_us=bucket,
    )


def _calibrated(group: Group, errors: dict[tuple[str, str], tuple[float, float]]) -> Group:
    found = errors.get((group.bundle_id, group.arm)) if group.segment == "all" else None
    return replace(group, calibration_error=found[0], calibration_noise=found[1]) if found else group


def _champion(connection: duckdb.DuckDBPyConnection) -> str:
    """Return the bundle of the stable arm's newest answer."""
    newest = "SELECT arg_max(bundle_id, time_us) FROM kept WHERE arm = 'stable' AND bundle_id <> ''"
    return connection.sql(newest).fetchall()[0][0] or ""


def _count(connection: duckdb.DuckDBPyConnection, condition: str) -> int:
    return int(connection.sql(f"SELECT count(*) FROM requests WHERE {condition}").fetchall()[0][0])  # noqa: S608 - ours


def _target(settings: Settings) -> str:
    try:
        return read_report(settings).target
    except NotFoundError:
        return EventType.purchase.name


def _load_catalogue(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Make the table `catalogue`: what each item is now, by the import and the changes since."""
    connection.execute("CREATE TABLE catalogue (item_id VARCHAR, category VARCHAR, available BOOLEAN)")
    try:
        connection.register("imported", read_items(settings).select(["item_id", "category", "available"]))
    except NotFoundError:
        return
    changes = read_item_changes(settings).select(["item_id", "seq", "sets", "category", "available", "blocked"])
    connection.register("changes", changes)
    newest = {
        name: f"arg_max(struct_pack(v := {name}), seq) FILTER (list_contains(sets, '{name}')) AS {name}"
        for name in ("category", "available", "blocked")
    }
    connection.execute(f"""
        INSERT INTO catalogue
        SELECT item_id, CASE WHEN new.category IS NULL THEN imported.category ELSE new.category.v END,
          coalesce(new.available.v, imported.available, true) AND NOT coalesce(new.blocked.v, false)
        FROM imported FULL JOIN (SELECT item_id, {", ".join(newest.values())} FROM changes GROUP BY item_id) new
        USING (item_id)""")  # noqa: S608 - names of ours


@contextmanager
def _scratch(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB in a file of its own that goes through the disk rather than through memory."""
    with tempfile.TemporaryDirectory(prefix=".quality-", dir=settings.root) as work:
        options: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(Path(work) / "spill"),
            "threads": settings.threads,
        }
        with duckdb.connect(str(Path(work) / "scratch.db"), config=options) as connection:
            connection.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
            yield connection
