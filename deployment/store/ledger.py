"""The ledger in the database: appended to under a lock on its head, read, and verified link by link."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from deployment.store.chain import FIELDS, canonical, entry_hash, holds, sign_text
from deployment.store.records import LedgerBrokenError, LedgerEntry, NewEntry
from deployment.store.rows import put, put_if_new
from deployment.store.tables import HEAD, LEDGER


@dataclass(frozen=True, slots=True)
class Head:
    """Number and hash of the last entry."""

    entries: int
    hash: str


def lock_head(connection: Connection, project: str, key: bytes) -> Head:
    """Wait until nobody else writes for this project, and return the end of its ledger.

    Raises
    ------
    LedgerBrokenError
        If the end is not what was written. Appending would sign the damage.
    """
    key_of = {"project": project}
    put_if_new(connection, HEAD, key_of, {"entries": 0, "hash": "", "signature": _sign_head(project, 0, "", key)})
    row = connection.execute(select(HEAD).where(HEAD.c.project == project).with_for_update()).one()
    last = connection.execute(
        select(LEDGER).where(LEDGER.c.project == project).order_by(LEDGER.c.entry.desc()).limit(1)
    ).first()
    head = Head(row.entries, row.hash)
    _check_head(row, project, key)
    found = (last.entry, last.hash) if last is not None else (0, "")
    if found != (head.entries, head.hash):
        raise LedgerBrokenError(
            f"the ledger ends with entry {found[0]}, but entry {head.entries} was the last one written; nothing is "
            "moved until that is explained: see `larder ledger verify`"
        )
    return head


def append(
    connection: Connection,
    project: str,
    key: bytes,
    head: Head,
    new: NewEntry,
    now: datetime,
    epoch: int,
    previous_version: str,
) -> LedgerEntry:
    """Write the next entry and move the head, whose lock the caller holds."""
    fields: dict[str, Any] = {
        "entry": head.entries + 1,
        "at": now.astimezone(UTC).isoformat(timespec="microseconds"),
        "who": new.who,
        "action": new.action,
        "why": new.why,
        "epoch": epoch,
        "bundle_id": new.bundle_id,
        "model_version": new.model_version,
        "previous_version": previous_version,
        "body": canonical(new.body),
        "previous_hash": head.hash,
    }
    digest = entry_hash(project, fields)
    connection.execute(insert(LEDGER).values(project=project, **fields, hash=digest, signature=_sign(digest, key)))
    signature = _sign_head(project, fields["entry"], digest, key)
    put(connection, HEAD, {"project": project}, {"entries": fields["entry"], "hash": digest, "signature": signature})
    return LedgerEntry(**{**fields, "body": json.loads(fields["body"])}, hash=digest)


def entries(connection: Connection, project: str, key: bytes, limit: int | None) -> list[LedgerEntry]:
    """Read the newest entries, newest first."""
    query = select(LEDGER).where(LEDGER.c.project == project).order_by(LEDGER.c.entry.desc()).limit(limit)
    return [_entry(row, project, key) for row in connection.execute(query)]


def newest_verdict(connection: Connection, project: str, key: bytes, bundle_id: str) -> LedgerEntry | None:
    """Read the last verdict on a bundle."""
    wanted = (LEDGER.c.project == project) & (LEDGER.c.bundle_id == bundle_id) & (LEDGER.c.action == "verdict")
    row = connection.execute(select(LEDGER).where(wanted).order_by(LEDGER.c.entry.desc()).limit(1)).first()
    return None if row is None else _entry(row, project, key)


def verify(connection: Connection, project: str, key: bytes) -> tuple[int, LedgerEntry | None]:
    """Check every link; return the number of entries and the last one that moved the plan.

    Raises
    ------
    LedgerBrokenError
        Naming the first broken entry.
    """
    head = connection.execute(select(HEAD).where(HEAD.c.project == project)).one_or_none()
    rows = connection.execute(select(LEDGER).where(LEDGER.c.project == project).order_by(LEDGER.c.entry))
    count, previous, moved = 0, "", None
    for row in rows:
        if row.entry != count + 1:
            raise LedgerBrokenError(f"entry {count + 1} of the ledger is missing: {row.entry} follows {count}")
        entry = _entry(row, project, key)
        if not entry.intact or entry.previous_hash != previous:
            raise LedgerBrokenError(
                f"entry {row.entry} of the ledger is not what was written ({row.action} by {row.who!r} at {row.at})"
            )
        count, previous = row.entry, row.hash
        moved = entry if entry.moved else moved
    if head is None:
        if count:
            raise LedgerBrokenError(f"the ledger has {count} entries and no signed head: entry {count + 1} may be gone")
        return 0, None
    _check_head(head, project, key)
    if (head.entries, head.hash) != (count, previous):
        raise LedgerBrokenError(
            f"entry {min(count, head.entries) + 1} of the ledger is missing: its end was cut off; {head.entries} "
            f"entries were written, {count} are there"
        )
    return count, moved


def _entry(row: Any, project: str, key: bytes) -> LedgerEntry:
    fields = {name: getattr(row, name) for name in FIELDS}
    try:
        body = json.loads(row.body)
        intact = isinstance(body, dict) and row.hash == entry_hash(project, fields)
    except (ValueError, TypeError, RecursionError):
        body, intact = {}, False
    intact = intact and holds(str(row.signature), _sign(row.hash, key))
    return LedgerEntry(**{**fields, "body": body if isinstance(body, dict) else {}}, hash=row.hash, intact=intact)


def _check_head(row: Any, project: str, key: bytes) -> None:
    if not holds(str(row.signature), _sign_head(project, row.entries, row.hash, key)):
        raise LedgerBrokenError(
            f"the head of the ledger (entry {row.entries}) does not carry a signature of this installation's key"
        )


def _sign(digest: str, key: bytes) -> str:
    return sign_text("ledger entry", [digest], key)


def _sign_head(project: str, entries: int, digest: str, key: bytes) -> str:
    return sign_text("ledger head", [project, entries, digest], key)
