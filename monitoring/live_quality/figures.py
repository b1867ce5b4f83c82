"""From lists and what became of them to figures: DuckDB sums by user and group, six sums a figure come back.

Every figure is summed by user first and over users then (`ratio.py`), so nothing here grows with the log but DuckDB's
tables, which go through files.
"""
# ruff: noqa: S608 - the SQL is made of names of ours

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import duckdb

from monitoring.live_quality.answered import WARM_EVENTS, Period
from monitoring.live_quality.ratio import Estimate, Kind, Sums
from monitoring.live_quality.report import FIGURES, FIRST, NDCG_AT, Group, Point

#: Bins of the reliability curve, of equal numbers of items, and categories that are shown by name.
BINS: Final = 10
CATEGORIES: Final = 20
#: Ranks with a point of their own.
RANKS: Final = 30
#: Bundle, version, arm, segment.
_Key = tuple[str, str, str, str]
_GROUP: Final = ("bundle_id", "model_version", "arm")
#: Figure to (numerator, denominator), of a user's lists, items shown or verdicts.
_OF_ITEMS: Final = {
    "ctr": ("clicked", "1"),
    "seen_ctr": ("clicked AND seen", "seen"),
    "predicted": ("coalesce(score, 0)", "score IS NOT NULL AND mature"),
    "observed": ("score IS NOT NULL AND hit", "score IS NOT NULL AND mature"),
    "observed_to_predicted": ("score IS NOT NULL AND hit", "coalesce(score, 0)"),
    "confirmed": ("verdict = 1", "verdict IS NOT NULL"),
    "precision": (f"verdict = 1 AND rank <= {FIRST}", f"verdict IS NOT NULL AND rank <= {FIRST}"),
    "recall": (f"verdict = 1 AND rank <= {FIRST}", "verdict = 1"),
    # 2 TP / (2 TP + FP + FN), where TP + FN is all that was confirmed and TP + FP all verdicts on the first.
    "f1": (
        f"2 * (verdict = 1 AND rank <= {FIRST})::INT",
        f"(verdict = 1)::INT + (verdict IS NOT NULL AND rank <= {FIRST})::INT",
    ),
    "novelty_bits": ("coalesce(bits, 0)", "bits IS NOT NULL"),
    "popular_share": ("coalesce(head, false)", "bits IS NOT NULL"),
}
_OF_LISTS: Final = {
    "click_rate": ("clicks > 0", "1"),
    "cart_rate": ("mature AND carts > 0", "mature"),
    "conversion": ("mature AND bought > 0", "mature"),
    "ndcg": ("coalesce(gain / ideal, 0)", "clicks > 0"),
    "mrr": ("coalesce(1.0 / first, 0)", "clicks > 0"),
}
#: Figures of probabilities count only items whose window is over, on both sides.
_MATURE_ONLY: Final = frozenset({"predicted", "observed", "observed_to_predicted"})


def prepare(connection: duckdb.DuckDBPyConnection, period: Period) -> None:
    """Make the views `lists` (a row per answer of the report) and `lines` (a row per item shown).

    Needs the tables of `shown.py`, `answered.py` and `catalogue` (item_id, category, available).
    """
    ideal = ", ".join(f"{sum(1.0 / math.log2(rank + 1) for rank in range(1, n + 1))!r}" for n in range(1, NDCG_AT + 1))
    connection.execute(f"""
        CREATE TABLE surprise AS
        SELECT item_id, log2(total) - log2(n) AS bits, above < 0.8 * total * (1 - 1e-12) AS head FROM (
          SELECT item_id, n, sum(n) OVER () AS total,
            coalesce(sum(n) OVER (ORDER BY n DESC, item_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
              AS above
          FROM popular);
        CREATE TABLE kept AS
        SELECT imp, user_id, time_us, coalesce(bundle_id, '') AS bundle_id,
          coalesce(model_version, '') AS model_version, arm, time_us < {period.mature} AS mature,
          CASE WHEN new_user THEN 'new' WHEN coalesce(history.n, 0) >= {WARM_EVENTS} THEN 'warm' ELSE 'cold' END
            AS segment
        FROM requests LEFT JOIN history USING (user_id) WHERE time_us >= {period.since} AND time_us < {period.until};
        CREATE TABLE lines AS
        SELECT kept.* EXCLUDE (imp), shown.* EXCLUDE (item_id), item_id, clicked, seen, carted, bought, hit, verdict,
          CASE WHEN (SELECT count(*) FROM popular) > 0
               THEN coalesce(bits, (SELECT log2(sum(n)) FROM popular)) END AS bits, head
        FROM shown JOIN kept USING (imp) LEFT JOIN done USING (imp, item_id) LEFT JOIN surprise USING (item_id);
        CREATE TABLE lists AS
        SELECT kept.*, coalesce(clicks, 0) AS clicks, coalesce(carts, 0) AS carts, coalesce(bought, 0) AS bought, gain,
          first, [{ideal}][least(clicks, {NDCG_AT})::INT] AS ideal
        FROM kept LEFT JOIN (
          SELECT imp, count_if(clicked) AS clicks, count_if(carted) AS carts, count_if(bought) AS bought,
            sum(1.0 / log2(rank + 1)) FILTER (clicked AND rank <= {NDCG_AT}) AS gain,
            min(rank) FILTER (clicked) AS first
          FROM lines WHERE clicked OR carted OR bought GROUP BY imp) USING (imp)""")


def groups(connection: duckdb.DuckDBPyConnection) -> list[Group]:
    """Return the figures of every bundle and arm: of all users together, and by segment."""
    both = _by_group(connection, "lists", _OF_LISTS)
    for key, found in _by_group(connection, "lines", _OF_ITEMS).items():
        both.setdefault(key, {}).update(found)
    return [
        Group(*key, requests, users, shown, _named(both.get(key, {})), coverage)
        for key, (requests, users, shown, coverage) in sorted(_counts(connection).items())
    ]


def by_time(connection: duckdb.DuckDBPyConnection, bucket_us: int) -> list[Point]:
    """CTR of each bundle and arm over time; a point's time is its bucket's beginning."""
    return _curve(connection, "lines", f"time_us // {bucket_us} * {bucket_us}", _OF_ITEMS["ctr"])


def by_rank(connection: duckdb.DuckDBPyConnection) -> list[Point]:
    """CTR of each place in the list."""
    return _curve(connection, f"(FROM lines WHERE rank <= {RANKS})", "rank", _OF_ITEMS["ctr"])


def by_category(connection: duckdb.DuckDBPyConnection) -> list[Point]:
    """CTR of the categories shown most; the others together are "(others)"."""
    connection.execute(f"""
        CREATE OR REPLACE TABLE often AS SELECT category FROM lines JOIN catalogue USING (item_id)
        WHERE category IS NOT NULL GROUP BY category ORDER BY count(*) DESC, category LIMIT {CATEGORIES}""")
    of = (
        "(SELECT lines.*, coalesce(often.category, '(others)') AS name FROM lines "
        "LEFT JOIN catalogue USING (item_id) LEFT JOIN often ON often.category = catalogue.category)"
    )
    return _curve(connection, of, "name", _OF_ITEMS["ctr"])


def reliability(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[list[Point], dict[tuple[str, str], tuple[float, float]]]:
    """Share of items that became the target, by what the ranker said, and the curve's error by bundle and arm.

    Returns
    -------
    tuple
        Points, at the mean probability of their bin, of `BINS` bins of equally many items; and (error, noise) by
        (bundle, arm): the mean distance from the diagonal, weighted by items, and its mean if all probabilities were
        right, as each bin's observed share then still varies.
    """
    scored = "(FROM lines WHERE score IS NOT NULL AND mature)"
    shares = [n / BINS for n in range(1, BINS)]
    edges = connection.sql(f"SELECT approx_quantile(score, {shares}) FROM {scored}").fetchall()
    cuts = sorted(set(edges[0][0] or ()))
    bin_of = " + ".join(["0", *(f"(score > {cut!r})::INT" for cut in cuts)])
    said = {(p.bundle_id, p.arm, p.at): p for p in _curve(connection, scored, bin_of, ("score", "1"), "mean")}
    points, distances = [], dict[tuple[str, str], list[tuple[float, float, float]]]()
    for point in _curve(connection, scored, bin_of, ("coalesce(hit, false)", "1")):
        one, predicted = point.estimate, said[point.bundle_id, point.arm, point.at].estimate.value
        points.append(Point(point.bundle_id, point.arm, predicted, one))
        noise = math.sqrt(max(predicted * (1.0 - predicted), 0.0) / one.denominator * 2.0 / math.pi)
        distances.setdefault((point.bundle_id, point.arm), []).append(
            (one.denominator, abs(one.value - predicted), noise)
        )
    errors = {
        key: tuple(sum(row[0] * row[n] for row in rows) / sum(row[0] for row in rows) for n in (1, 2))
        for key, rows in distances.items()
    }
    return points, errors  # type: ignore[return-value] # two floats each


def _by_group(
    connection: duckdb.DuckDBPyConnection, table: str, figures: Mapping[str, tuple[str, str]]
) -> dict[_Key, dict[str, Sums]]:
    """Return sums by (bundle, version, arm, segment) and figure; segment "all" has each user once."""
    keys = ", ".join(_GROUP)
    rows = _sums(connection, table, f"{keys}, segment", figures, sets=f"({keys}, segment, user_id), ({keys}, user_id)")
    return {(key[0], key[1], key[2], key[3] or "all"): found for key, found in rows}


def _curve(
    connection: duckdb.DuckDBPyConnection, table: str, at: str, ratio: tuple[str, str], kind: Kind = "share"
) -> list[Point]:
    """Return a point for each value of `at`, by bundle and arm."""
    rows = _sums(connection, f"(SELECT *, {at} AS place FROM {table})", "bundle_id, arm, place", {"value": ratio})
    return [Point(key[0], key[1], key[2], found["value"].estimate(kind)) for key, found in rows if found["value"].x]


def _sums(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    keys: str,
    figures: Mapping[str, tuple[str, str]],
    sets: str | None = None,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Sums]]]:
    """Yield (key, sums by figure): by user, then over users.

    Parameters
    ----------
    sets
        Grouping sets of the sums by user; None: the keys and the user.
    """
    inner = ", ".join(
        f"coalesce(sum(({part})::DOUBLE){_mature(name)}, 0) AS {side}{n}"
        for n, (name, ratio) in enumerate(figures.items())
        for side, part in zip("yx", ratio, strict=True)
    )
    outer = ", ".join(
        f"count_if(x{n} > 0), sum(y{n}), sum(x{n}), sum(y{n} * y{n}), sum(x{n} * y{n}), sum(x{n} * x{n})"
        for n in range(len(figures))
    )
    by_user = f"GROUPING SETS ({sets})" if sets else f"{keys}, user_id"
    rows = connection.sql(
        f"WITH users AS (SELECT {keys}, user_id, {inner} FROM {table} GROUP BY {by_user}) "
        f"SELECT {keys}, {outer} FROM users GROUP BY {keys} ORDER BY ALL"
    ).fetchall()
    width = keys.count(",") + 1
    for row in rows:
        parts = [row[start : start + 6] for start in range(width, len(row), 6)]
        yield row[:width], {name: Sums(*part) for name, part in zip(figures, parts, strict=True)}


def _mature(figure: str) -> str:
    return " FILTER (mature)" if figure in _MATURE_ONLY else ""


def _named(found: Mapping[str, Sums]) -> dict[str, Estimate]:
    return {name: found[name].estimate(kind) for name, (kind, _) in FIGURES.items() if name in found and found[name].x}


def _counts(connection: duckdb.DuckDBPyConnection) -> dict[_Key, tuple[int, int, int, float | None]]:
    """Return requests, users, items shown and coverage by group and segment."""
    keys = ", ".join(_GROUP)
    sets = f"GROUPING SETS (({keys}, segment), ({keys}))"
    rows = connection.sql(f"""
        WITH asked AS (
          SELECT {keys}, coalesce(segment, 'all') AS part, count(*) AS requests, count(DISTINCT user_id) AS users
          FROM lists GROUP BY {sets}),
        given AS (
          SELECT {keys}, coalesce(segment, 'all') AS part, sum(n)::BIGINT AS shown,
            count(DISTINCT item_id) FILTER (available)::DOUBLE AS items
          FROM (SELECT {keys}, segment, item_id, count(*) AS n FROM lines GROUP BY ALL)
          LEFT JOIN catalogue USING (item_id) GROUP BY {sets})
        SELECT {keys}, part, requests, users, coalesce(shown, 0), items / nullif(size, 0)
        FROM asked LEFT JOIN given USING ({keys}, part), (SELECT count_if(available) AS size FROM catalogue)""")
    return {(row[0], row[1], row[2], row[3]): (row[4], row[5], row[6], row[7]) for row in rows.fetchall()}
