"""What a project's data look like, in numbers: DuckDB aggregates over the log's files, never a row per event here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import duckdb

from feature_repo.errors import NotFoundError
from feature_repo.event_log import read_report
from feature_repo.events import EventType
from feature_repo.live_files import files_kept, log_paths
from feature_repo.settings import Settings

TOP_CATEGORIES: Final = 15
FUNNEL: Final = ("view", "cart", "purchase")
#: Bars per factor of ten in the distribution of prices.
PRICE_BINS: Final = 5
#: Longest span that is shown by day, and by week; beyond by month.
_DAYS, _WEEKS = 70, 730
_QUANTILES: Final = (0.5, 0.9, 0.99)

_CATEGORIES: Final = """
SELECT category, count(*) AS events, count(DISTINCT item_id) FROM event WHERE category IS NOT NULL
GROUP BY category ORDER BY events DESC, category
"""
_PRICES: Final = """
SELECT floor(log10(price) * BINS) AS bar, count(*) FROM event WHERE price > 0 GROUP BY bar ORDER BY bar
"""


@dataclass(frozen=True)
class Period:
    """One day, week or month.

    Attributes
    ----------
    new_users, new_items
        Of those active in it, how many had no event before.
    """

    start: datetime
    events: int
    users: int
    new_users: int
    items: int
    new_items: int


@dataclass(frozen=True)
class Lengths:
    """How many events each user (or item) has: quantiles, and how many of them have 1, 2-3, 4-7, 8-15, ... events."""

    quantiles: Mapping[str, float]
    bars: Mapping[int, int]


@dataclass(frozen=True)
class Description:
    """Everything the report shows.

    Attributes
    ----------
    kinds
        Events of each type, in the order of `EventType`.
    hours, weekdays
        Events by hour of the day (UTC) and by day of the week, Monday first.
    funnel
        (user, item) pairs with a view, with a cart, with a purchase, and with each after the ones before it.
    categories
        Name, events, items; the most frequent first.
    prices
        Lower end of a bar (minor units) to priced events in it; `PRICE_BINS` bars per factor of ten.
    """

    project: str
    data_set: str
    first: datetime
    last: datetime
    events: int
    users: int
    items: int
    catalogue: int
    kinds: Mapping[str, int]
    hours: list[int]
    weekdays: list[int]
    step: str
    periods: list[Period]
    funnel: Mapping[str, int]
    funnel_after: Mapping[str, int]
    categories: list[tuple[str, int, int]]
    no_category: int
    prices: Mapping[float, int]
    price_quantiles: Mapping[str, float]
    per_user: Lengths
    per_item: Lengths
    quarantine: Mapping[str, int]


def describe(settings: Settings) -> Description:
    """Compute the figures of a project's log, history and live events.

    Raises
    ------
    NotFoundError
        If the project has no events.
    """
    try:
        name = read_report(settings).name
    except NotFoundError:  # there may be live events
        name = "live events only"
    with files_kept(settings.events_dir), duckdb.connect() as db:
        files = [str(path) for path in log_paths(settings.events_dir)]
        if not files:
            raise NotFoundError(
                f"project {settings.project!r} has no events; import a data set first (larder data import)"
            )
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"SET threads = {int(settings.threads)}")
        db.from_parquet(files, hive_partitioning=False).create_view("event")
        total, users, items, first, last = _one(
            db, "SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), min(event_timestamp), "
            "max(event_timestamp) FROM event",
        )  # fmt: skip
        days = (last - first).days
        step = "day" if days <= _DAYS else "week" if days <= _WEEKS else "month"
        kinds = dict(_rows(db, "SELECT event_type, count(*) FROM event GROUP BY 1"))
        hours = dict(_rows(db, "SELECT hour(event_timestamp), count(*) FROM event GROUP BY 1"))
        weekdays = dict(_rows(db, "SELECT isodow(event_timestamp), count(*) FROM event GROUP BY 1"))
        together, after = _funnel(db)
        categories = _rows(db, _CATEGORIES)[:TOP_CATEGORIES]
        (no_category,) = _one(db, "SELECT count(*) FROM event WHERE category IS NULL")
        prices = _rows(db, _PRICES.replace("BINS", str(PRICE_BINS)))
        return Description(
            project=settings.project,
            data_set=name,
            first=first,
            last=last,
            events=total,
            users=users,
            items=items,
            catalogue=_catalogue(db, settings),
            kinds={kind: kinds[kind] for kind in EventType.__members__ if kind in kinds},
            hours=[hours.get(hour, 0) for hour in range(24)],
            weekdays=[weekdays.get(day, 0) for day in range(1, 8)],
            step=step,
            periods=_periods(db, step),
            funnel=together,
            funnel_after=after,
            categories=[(name, n, items) for name, n, items in categories],
            no_category=no_category,
            prices={10 ** (bar / PRICE_BINS): n for bar, n in prices},
            price_quantiles=_quantiles(db, "price", "event WHERE price > 0"),
            per_user=_lengths(db, "user_id"),
            per_item=_lengths(db, "item_id"),
            quarantine=_quarantine(db, settings),
        )


def _periods(db: duckdb.DuckDBPyConnection, step: str) -> list[Period]:
    rows = _rows(
        db,
        f"""
WITH cut AS (SELECT date_trunc('{step}', event_timestamp) AS start, user_id, item_id FROM event),
new_user AS (SELECT start, count(*) AS n FROM (SELECT min(start) AS start FROM cut GROUP BY user_id) GROUP BY start),
new_item AS (SELECT start, count(*) AS n FROM (SELECT min(start) AS start FROM cut GROUP BY item_id) GROUP BY start)
SELECT start, count(*), count(DISTINCT user_id), coalesce(any_value(new_user.n), 0), count(DISTINCT item_id),
    coalesce(any_value(new_item.n), 0)
FROM cut LEFT JOIN new_user USING (start) LEFT JOIN new_item USING (start)
GROUP BY start ORDER BY start
""",  # noqa: S608 - one of three words of ours
    )
    return [Period(*row) for row in rows]


def _funnel(db: duckdb.DuckDBPyConnection) -> tuple[dict[str, int], dict[str, int]]:
    """Return pairs of a user and an item that reached a step, and that reached it after the steps before it."""
    first = [f"min(event_timestamp) FILTER (event_type = '{kind}') AS {kind}" for kind in FUNNEL]
    row = _one(
        db,
        f"""
SELECT count("view"), count(cart), count(purchase), count("view"), count(*) FILTER (cart >= "view"),
    count(*) FILTER (purchase >= cart AND cart >= "view")
FROM (SELECT {", ".join(first).replace("AS view", 'AS "view"')} FROM event GROUP BY user_id, item_id)
""",  # noqa: S608 - names of ours
    )
    return dict(zip(FUNNEL, row[:3], strict=True)), dict(zip(FUNNEL, row[3:], strict=True))


def _lengths(db: duckdb.DuckDBPyConnection, key: str) -> Lengths:
    counts = f"(SELECT count(*) AS n FROM event GROUP BY {key})"  # noqa: S608 - a column of ours
    bars = dict(_rows(db, f"SELECT floor(log2(n))::INTEGER, count(*) FROM {counts} GROUP BY 1 ORDER BY 1"))  # noqa: S608 - as above
    whole = {2**power: bars.get(power, 0) for power in range(max(bars) + 1)}
    return Lengths(_quantiles(db, "n", counts), whole)


def _quantiles(db: duckdb.DuckDBPyConnection, column: str, source: str) -> dict[str, float]:
    row = _one(
        db,
        f"SELECT min({column}), quantile_cont({column}, {list(_QUANTILES)}), max({column}) FROM {source}",  # noqa: S608 - names of ours
    )
    if row[0] is None:
        return {}
    middle = {f"p{round(q * 100)}": float(value) for q, value in zip(_QUANTILES, row[1], strict=True)}
    return {"min": float(row[0]), **middle, "max": float(row[2])}


def _catalogue(db: duckdb.DuckDBPyConnection, settings: Settings) -> int:
    if not settings.items_path.is_file():
        return 0
    count, _ = db.from_parquet(str(settings.items_path)).aggregate("count(*), 0").fetchall()[0]
    return int(count)


def _quarantine(db: duckdb.DuckDBPyConnection, settings: Settings) -> dict[str, int]:
    files = sorted(str(path) for path in settings.quarantine_dir.glob("*.parquet"))
    if not files:
        return {}
    found = db.from_parquet(files).aggregate("reason, count(*)", "reason").fetchall()
    return dict(Counter({str(reason): int(count) for reason, count in found}).most_common())


def _rows(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return db.execute(query).fetchall()


def _one(db: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    return _rows(db, query)[0]


def share(part: float, whole: float) -> float:
    """Return part / whole, 0 where there is no whole."""
    return part / whole if whole else 0.0
