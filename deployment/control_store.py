"""The control plane's database: the plan and the history of every move, committed in one transaction.

SQLite here; the plan row is the truth about what serves, MLflow's aliases and the published copies only show it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from feature_repo.errors import ConflictError
from serving.plan import Arm, Plan, decode_plan, encode_plan

Action = Literal["promote", "rollback"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plan (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    entry INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL UNIQUE, at TEXT NOT NULL, who TEXT NOT NULL,
    action TEXT NOT NULL, why TEXT NOT NULL, bundle_id TEXT NOT NULL, model_version TEXT NOT NULL,
    previous_version TEXT NOT NULL, verdict TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Move:
    """One line of the ledger: who moved what, when and why."""

    epoch: int
    at: str
    who: str
    action: str
    why: str
    bundle_id: str
    model_version: str
    previous_version: str


class ControlStore:
    """Plan and ledger of one project."""

    def __init__(self, path: Path, key: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._key = key
        with self._transaction() as connection:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)

    def plan(self) -> Plan | None:
        """Return the plan in force; None before the first promotion."""
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT body FROM plan").fetchone()
        return decode_plan(row[0].encode(), self._key) if row else None

    def commit(
        self,
        arm: Arm,
        *,
        expected_epoch: int,
        action: Action,
        who: str,
        why: str,
        now: datetime,
        verdict: dict[str, Any],
    ) -> Plan:
        """Replace the plan and append to the ledger, both or neither.

        Parameters
        ----------
        expected_epoch
            Epoch of the plan the decision was made on; 0 where there was none.

        Raises
        ------
        ConflictError
            If somebody else moved since.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT body FROM plan").fetchone()
            old = decode_plan(row[0].encode(), self._key) if row else None
            epoch = old.epoch if old else 0
            if epoch != expected_epoch:
                raise ConflictError(
                    f"the plan is at epoch {epoch} now, the decision was made at {expected_epoch}: somebody moved; "
                    "look at `larder models history` and decide again"
                )
            plan = Plan(epoch + 1, arm, now)
            connection.execute(
                "INSERT OR REPLACE INTO plan VALUES (1, ?, ?)", (plan.epoch, encode_plan(plan, self._key).decode())
            )
            connection.execute(
                "INSERT INTO ledger (epoch, at, who, action, why, bundle_id, model_version, previous_version, verdict) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    plan.epoch,
                    now.isoformat(),
                    who,
                    action,
                    why,
                    arm.bundle_id,
                    arm.model_version,
                    old.stable.model_version if old else "",
                    json.dumps(verdict, sort_keys=True),
                ),
            )
        return plan

    def history(self) -> list[Move]:
        """Every move, newest first."""
        with closing(self._connect()) as connection:
            rows = connection.execute(
                "SELECT epoch, at, who, action, why, bundle_id, model_version, previous_version FROM ledger "
                "ORDER BY entry DESC"
            ).fetchall()
        return [Move(*row) for row in rows]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=10.0, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock from the first read on, so that two operators cannot both pass the epoch check."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
