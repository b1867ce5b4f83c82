"""Rollouts as the controller left them, and what is known of MLflow's aliases."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, func, select

from deployment.store.chain import canonical, holds, sign_text
from deployment.store.records import LedgerBrokenError, RolloutRow
from deployment.store.rows import put
from deployment.store.tables import ALIAS, ROLLOUT
from feature_repo.errors import ConflictError


def load(connection: Connection, project: str, key: bytes, rollout_id: str | None) -> RolloutRow | None:
    """Read a rollout, the newest if no id is given."""
    query = select(ROLLOUT).where(ROLLOUT.c.project == project).order_by(ROLLOUT.c.number.desc()).limit(1)
    row = connection.execute(query if rollout_id is None else query.where(ROLLOUT.c.rollout_id == rollout_id)).first()
    if row is None:
        return None
    if not holds(row.signature, _signature(project, row.rollout_id, row.state, row.body, row.revision, key)):
        raise LedgerBrokenError(f"rollout {row.rollout_id} in the database is not what the controller wrote")
    return RolloutRow(row.rollout_id, row.state, json.loads(row.body), row.revision)


def store(connection: Connection, project: str, key: bytes, row: RolloutRow | None) -> None:
    """Write a rollout whose revision is the stored one; the next revision is stored.

    Raises
    ------
    ConflictError
        If somebody else wrote it since.
    """
    if row is None:
        return
    mine = (ROLLOUT.c.project == project) & (ROLLOUT.c.rollout_id == row.rollout_id)
    found = connection.execute(select(ROLLOUT.c.revision, ROLLOUT.c.number).where(mine)).first()
    if (found.revision if found else 0) != row.revision:
        raise ConflictError(
            f"rollout {row.rollout_id} is at revision {found.revision if found else 0}, this was decided at "
            f"{row.revision}: somebody else moved it"
        )
    last = connection.execute(select(func.max(ROLLOUT.c.number)).where(ROLLOUT.c.project == project)).scalar()
    body, revision = canonical(row.body), row.revision + 1
    values: dict[str, Any] = {
        "number": found.number if found else (last or 0) + 1,
        "state": row.state,
        "body": body,
        "revision": revision,
        "signature": _signature(project, row.rollout_id, row.state, body, revision, key),
    }
    put(connection, ROLLOUT, {"project": project, "rollout_id": row.rollout_id}, values)


def load_aliases(connection: Connection, project: str) -> list[dict[str, str]]:
    """Read what the aliases may be."""
    text = connection.execute(select(ALIAS.c.aliases).where(ALIAS.c.project == project)).scalar()
    return [] if text is None else list(json.loads(text))


def store_aliases(connection: Connection, project: str, states: list[dict[str, str]], epoch: int) -> None:
    """Write what the aliases may be, unless a newer plan's are known."""
    known = connection.execute(select(ALIAS.c.epoch).where(ALIAS.c.project == project)).scalar()
    if known is None or known <= epoch:
        put(connection, ALIAS, {"project": project}, {"epoch": epoch, "aliases": canonical(states)})


def _signature(project: str, rollout_id: str, state: str, body: str, revision: int, key: bytes) -> str:
    return sign_text("rollout", [project, rollout_id, state, body, revision], key)
