"""Takes over a platform.db of the first version: its plan and history become the plan and the start of the ledger."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, inspect, text

from deployment.store import ledger
from deployment.store.database import Database
from deployment.store.records import NewEntry
from deployment.store.rows import put
from deployment.store.tables import PLAN
from feature_repo.errors import BadInputError, UnavailableError
from serving.plan import Plan, decode_plan


def take_over(database: Database, project: str, key: bytes) -> None:
    """Copy the old tables into the new ones and drop them, in one transaction; nothing where there are none.

    Raises
    ------
    UnavailableError
        If the old plan does not carry this installation's signature: it is not silently made ours.
    """
    if not database.is_sqlite:
        return  # the first version had SQLite only
    with database.transaction(write=False) as connection:
        if not _is_old(connection):
            return
    with database.transaction(write=True) as connection:
        if _is_old(connection):
            _copy(connection, database.name, project, key)


def _is_old(connection: Connection) -> bool:
    names = inspect(connection).get_table_names()
    return "plan" in names and "ledger" in names


def _copy(connection: Connection, name: str, project: str, key: bytes) -> None:
    body = connection.execute(text("SELECT body FROM plan")).scalar()
    try:
        plan = None if body is None else decode_plan(body.encode(), key)
    except BadInputError as error:
        raise UnavailableError(
            f"{name} is of an older version of Larder and cannot be taken over: {error}; set LARDER_SIGNING_KEY to the "
            "key it was signed with, or move the file away and promote again"
        ) from error
    head = ledger.lock_head(connection, project, key)
    for row in connection.execute(text("SELECT * FROM ledger ORDER BY entry")).mappings():
        entry = _entry(row, plan)
        added = ledger.append(
            connection, project, key, head, entry, datetime.fromisoformat(row["at"]), row["epoch"],
            row["previous_version"],
        )  # fmt: skip
        head = ledger.Head(added.entry, added.hash)
    if plan is not None:
        put(connection, PLAN, {"project": project}, {"epoch": plan.epoch, "body": body})
    connection.execute(text("DROP TABLE plan"))
    connection.execute(text("DROP TABLE ledger"))


def _entry(row: Any, plan: Plan | None) -> NewEntry:
    """Write an old move as a new entry. Only the last plan is known whole; of earlier ones, what the move says."""
    stable = {"bundle_id": row["bundle_id"], "model_version": row["model_version"]}
    moved: dict[str, Any] = {"epoch": row["epoch"], "stable": stable}
    if plan is not None and plan.epoch == row["epoch"]:
        moved = {key: value for key, value in msgspec.to_builtins(plan).items() if key != "salt"}
    body = {"plan": moved, "verdict": json.loads(row["verdict"] or "{}"), "from": "first version of the store"}
    return NewEntry(row["who"] or "?", row["action"], row["why"] or "?", row["bundle_id"], row["model_version"], body)
