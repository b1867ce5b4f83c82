"""The lease: one active controller; its fencing token grows with every acquisition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from deployment.store.records import Lease
from deployment.store.rows import put
from deployment.store.tables import LEASE
from feature_repo.errors import ConflictError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def acquire(connection: Connection, project: str, holder: str, ttl_s: float, now: datetime) -> Lease | None:
    """Take the lease if it is free, expired or one's own."""
    row = _row(connection, project)
    if row is not None and row.holder not in ("", holder) and row.expires_us > _us(now):
        return None
    lease = Lease(holder, (row.token if row is not None else 0) + 1, now + timedelta(seconds=ttl_s))
    values = {"holder": holder, "token": lease.token, "expires_us": _us(lease.expires_at)}
    put(connection, LEASE, {"project": project}, values)
    return lease


def held(connection: Connection, project: str) -> Lease | None:
    """Read the lease."""
    row = _row(connection, project)
    if row is None or not row.holder:
        return None
    return Lease(row.holder, row.token, _EPOCH + timedelta(microseconds=row.expires_us))


def renew(connection: Connection, project: str, lease: Lease, ttl_s: float, now: datetime) -> Lease:
    """Move the end of a lease that is still held."""
    check(connection, project, lease)
    expires_at = now + timedelta(seconds=ttl_s)
    connection.execute(update(LEASE).where(LEASE.c.project == project).values(expires_us=_us(expires_at)))
    return Lease(lease.holder, lease.token, expires_at)


def release(connection: Connection, project: str, lease: Lease) -> None:
    """Give a lease back; the token stays, so that the next one is larger."""
    mine = (LEASE.c.project == project) & (LEASE.c.token == lease.token)
    connection.execute(update(LEASE).where(mine).values(holder="", expires_us=0))


def check(connection: Connection, project: str, lease: Lease | None) -> None:
    """Refuse the writes of a controller that lost its lease.

    An expired lease that nobody took is still good: the token decides, not a clock.

    Raises
    ------
    ConflictError
        If another controller has taken over.
    """
    if lease is None:
        return
    row = _row(connection, project)
    if row is None or (row.token, row.holder) != (lease.token, lease.holder):
        now = f"{row.holder or 'nobody'} has it, token {row.token}" if row is not None else "there is none"
        raise ConflictError(f"the lease of {lease.holder} (token {lease.token}) was lost: {now}")


def _row(connection: Connection, project: str) -> Any:
    return connection.execute(select(LEASE).where(LEASE.c.project == project)).one_or_none()


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
