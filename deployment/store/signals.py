"""The signals table: what monitoring found, kept where retraining looks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Row, delete, func, select

from deployment.store.database import Database, database_url
from deployment.store.rows import put_if_new
from deployment.store.schema import upgrade
from deployment.store.tables import SIGNAL
from feature_repo.settings import Settings
from monitoring.signals import Kind, Signal, still_open


class SignalStore:
    """Signals of one project, in the control plane's database."""

    def __init__(self, settings: Settings) -> None:
        self._project = settings.project
        self._database = Database(database_url(settings))
        self._current = False

    def add(self, signals: Iterable[Signal]) -> None:
        """Append rows, all or none; a row that is there (kind, subject, time) stays as it is, so a retry is harmless.

        Raises
        ------
        UnavailableError
            If the database cannot be used now.
        """
        rows = list(signals)
        self._ready()
        with self._database.transaction(write=True) as connection:
            for row in rows:
                key = {"kind": row.kind, "subject": row.subject, "at_us": _us(row.at)}
                put_if_new(connection, SIGNAL, {"project": self._project, **key}, _values(row))

    def newest(self, limit: int = 100, kind: Kind | None = None, *, alarms_only: bool = False) -> list[Signal]:
        """Return the newest rows, the newest first."""
        query = select(SIGNAL).where(SIGNAL.c.project == self._project)
        query = query if kind is None else query.where(SIGNAL.c.kind == kind)
        query = query.where(SIGNAL.c.alarm) if alarms_only else query
        self._ready()
        with self._database.transaction(write=False) as connection:
            rows = connection.execute(query.order_by(SIGNAL.c.at_us.desc(), SIGNAL.c.subject).limit(limit)).all()
        return [_signal(row) for row in rows]

    def open_alarms(self) -> list[Signal]:
        """Return what retraining may act on: the newest row of every kind and subject, where it is an alarm.

        An alarm closes when a later window of the subject is without, or when another champion is watched.
        """
        of_project = SIGNAL.c.project == self._project
        last = (
            select(SIGNAL.c.kind, SIGNAL.c.subject, func.max(SIGNAL.c.at_us).label("at_us"))
            .where(of_project)
            .group_by(SIGNAL.c.kind, SIGNAL.c.subject)
            .subquery()
        )
        same = (SIGNAL.c.kind == last.c.kind) & (SIGNAL.c.subject == last.c.subject) & (SIGNAL.c.at_us == last.c.at_us)
        self._ready()
        with self._database.transaction(write=False) as connection:
            rows = connection.execute(select(SIGNAL).join(last, same).where(of_project)).all()
        return still_open(_signal(row) for row in rows)

    def prune(self, before: datetime) -> int:
        """Delete rows from before a time; returns how many."""
        self._ready()
        with self._database.transaction(write=True) as connection:
            old = (SIGNAL.c.project == self._project) & (SIGNAL.c.at_us < _us(before))
            return connection.execute(delete(SIGNAL).where(old)).rowcount

    def _ready(self) -> None:
        if not self._current:
            upgrade(self._database)
            self._current = True


def _us(at: datetime) -> int:
    return round(at.timestamp() * 1e6)


def _values(row: Signal) -> dict[str, Any]:
    return {
        "bundle_id": row.bundle_id,
        "value": _finite(row.value),
        "threshold": _finite(row.threshold),
        "p_value": _finite(row.p_value),
        "effect": _finite(row.effect),
        "window_s": row.window_s,
        "alarm": row.alarm,
        "details": json.dumps(row.details, allow_nan=False, sort_keys=True),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _signal(row: Row[Any]) -> Signal:
    return Signal(
        at=datetime.fromtimestamp(row.at_us / 1e6, UTC),
        kind=cast("Kind", row.kind),
        subject=row.subject,
        value=math.nan if row.value is None else row.value,
        threshold=math.nan if row.threshold is None else row.threshold,
        alarm=bool(row.alarm),
        bundle_id=row.bundle_id,
        p_value=row.p_value,
        effect=row.effect,
        window_s=row.window_s,
        details=json.loads(row.details),
    )
