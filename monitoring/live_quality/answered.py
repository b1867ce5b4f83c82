"""What users did with what they were shown: the event log joined with the lists, each event to one item of one list.

An event that names a request is believed only where the log of what was served agrees: that user, that list, that item,
in that time. Feedback that nobody could check when it came in (`shown: null`) is settled here in the same way.
"""
# ruff: noqa: S608 - the SQL is made of names of ours

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb

from feature_repo.events import MAX_FUTURE_S, SEQ_COUNTER_BITS
from feature_repo.live_files import files_kept, log_paths
from feature_repo.settings import Settings

#: A user of whom so many events were logged before the report's time is warm; with fewer, cold.
WARM_EVENTS: Final = 10
#: What became of an event that names a request.
FATES: Final = ("settled", "not_shown", "other_user", "no_record", "too_late")
VERDICTS: Final = ("confirm", "reject")
_CLAIMS: Final = ("view", "impression", "cart", "purchase", *VERDICTS)


@dataclass(frozen=True, slots=True)
class Period:
    """Times of a report, µs since the epoch.

    Attributes
    ----------
    since, until
        Answers given in [since, until) are reported.
    now
        Up to where the event log is read.
    window
        An event counts so long after its list.
    """

    since: int
    until: int
    now: int
    window: int

    @property
    def mature(self) -> int:
        """Answers given before then have had their whole window."""
        return self.now - self.window


def load_answered(connection: duckdb.DuckDBPyConnection, settings: Settings, period: Period, target: str) -> None:
    """Make the tables `done` (a row per item of a list that was answered), `fates`, `history` and `popular`.

    Needs `requests` and `shown` of [since - window, until).

    Parameters
    ----------
    target
        Event type the model's probability is of.

    Notes
    -----
    `done`: clicked, seen (the client confirmed the impression), carted, bought, hit (the target), verdict (1, -1,
    null). `fates`: kind, fate, claimed (whether the event had a rank), events, rank_differs. `history`: events of each
    user before `since`. `popular`: interactions of each item before `since`.
    """
    with files_kept(settings.events_dir):
        paths = [str(path) for path in log_paths(settings.events_dir)]
        _read_log(connection, paths, period, (*_CLAIMS, target))
    _settle(connection, period)
    _attribute(connection, period, ("cart", "purchase", target))
    connection.execute(f"""
        CREATE TABLE done AS SELECT imp, item_id,
          bool_or(kind = 'view') AS clicked, bool_or(kind = 'impression') AS seen, bool_or(kind = 'cart') AS carted,
          bool_or(kind = 'purchase') AS bought, bool_or(kind = '{target}') AS hit,
          CASE arg_max(kind, seq) FILTER (kind IN {VERDICTS}) WHEN 'confirm' THEN 1 WHEN 'reject' THEN -1 END AS verdict
        FROM (SELECT imp, item_id, kind, seq FROM settled WHERE fate = 'settled' UNION ALL FROM attributed)
        GROUP BY imp, item_id""")


def _read_log(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[str], period: Period, kinds: Sequence[str]
) -> None:
    """Take what is needed of the event log: answers with their claims, and counts of what was before."""
    if paths:
        connection.read_parquet(list(paths), hive_partitioning=False).create_view("log")
    else:
        connection.execute(
            "CREATE VIEW log AS SELECT * FROM (SELECT 0::BIGINT AS seq, '' AS user_id, '' AS item_id, "
            "'' AS event_type, now() AS event_timestamp, NULL::VARCHAR AS request_id, NULL::BIGINT AS rank) WHERE false"
        )
    first, last = (_seq(at) for at in (period.since - period.window, period.now))
    connection.execute(f"""
        CREATE TABLE events AS SELECT seq, user_id, item_id, event_type AS kind, request_id, rank,
          epoch_us(event_timestamp) AS at_us FROM log
        WHERE seq BETWEEN {first} AND {last} AND event_type IN {tuple(dict.fromkeys(kinds))}
          AND (request_id IS NOT NULL OR event_type NOT IN ('view', 'impression'))""")
    before = f"FROM log WHERE seq < {_seq(period.since)} AND event_type <> 'impression'"
    connection.execute(f"""
        CREATE TABLE history AS SELECT user_id, count(*) AS n {before}
          AND user_id IN (SELECT user_id FROM requests) GROUP BY user_id""")
    connection.execute(f"CREATE TABLE popular AS SELECT item_id, count(*) AS n {before} GROUP BY item_id")


def _settle(connection: duckdb.DuckDBPyConnection, period: Period) -> None:
    """Find the list each event names: the newest of that request and user that has the item."""
    early = MAX_FUTURE_S * 1_000_000  # a client's clock may be behind
    connection.execute(f"""
        CREATE TABLE settled AS
        WITH claims AS (FROM events WHERE request_id IS NOT NULL),
        hits AS (
          SELECT claims.seq, requests.imp, requests.time_us, shown.rank FROM claims
          JOIN requests USING (request_id, user_id) JOIN shown USING (imp, item_id)
          QUALIFY row_number() OVER (PARTITION BY claims.seq ORDER BY requests.time_us DESC, requests.imp DESC) = 1),
        known AS (
          SELECT request_id, list(DISTINCT user_id) AS users FROM requests
          WHERE request_id IN (SELECT request_id FROM claims) GROUP BY request_id)
        SELECT claims.seq, claims.item_id, claims.kind, hits.imp, claims.rank IS NOT NULL AS claimed,
          coalesce(claims.rank <> hits.rank, false) AS rank_differs,
          CASE WHEN known.request_id IS NULL THEN 'no_record'
               WHEN NOT list_contains(known.users, claims.user_id) THEN 'other_user'
               WHEN hits.imp IS NULL THEN 'not_shown'
               WHEN at_us NOT BETWEEN hits.time_us - {early} AND hits.time_us + {period.window} THEN 'too_late'
               ELSE 'settled' END AS fate
        FROM claims LEFT JOIN known USING (request_id) LEFT JOIN hits USING (seq)""")
    connection.execute(f"""
        CREATE TABLE fates AS SELECT kind, fate, claimed, count(*) AS events, count_if(rank_differs) AS rank_differs
        FROM settled WHERE seq >= {_seq(period.since)} GROUP BY ALL ORDER BY ALL""")


def _attribute(connection: duckdb.DuckDBPyConnection, period: Period, kinds: Sequence[str]) -> None:
    """Give what names no request (a purchase at the till) to the last list that showed the user the item before."""
    connection.execute(f"""
        CREATE TABLE attributed AS
        SELECT requests.imp, events.item_id, events.kind, events.seq FROM shown
        JOIN requests USING (imp) JOIN events USING (user_id, item_id)
        WHERE events.request_id IS NULL AND events.kind IN {tuple(dict.fromkeys(kinds))}
          AND events.at_us BETWEEN requests.time_us AND requests.time_us + {period.window}
        QUALIFY row_number() OVER (PARTITION BY events.seq ORDER BY requests.time_us DESC, requests.imp DESC) = 1""")


def _seq(at_us: int) -> int:
    return max(at_us, 0) // 1000 << SEQ_COUNTER_BITS
