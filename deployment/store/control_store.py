"""The control plane's truth: the plan, the ledger of every move, rollouts and the lease, each write one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from deployment.store import leases, ledger, rollouts
from deployment.store.database import Database, database_url
from deployment.store.old_schema import take_over
from deployment.store.records import Lease, LedgerBrokenError, LedgerEntry, NewEntry, RolloutRow
from deployment.store.rows import put
from deployment.store.schema import upgrade
from deployment.store.tables import PLAN
from feature_repo.errors import BadInputError, ConflictError
from feature_repo.settings import Settings
from serving.plan import Plan, decode_plan, encode_plan

#: Given the plan in force, returns the one wanted; epoch and time are set by the store.
Change = Callable[[Plan | None], Plan]


class ControlStore:
    """Plan, ledger, rollouts and lease of one project.

    Nothing is connected to before the first use; then the schema is brought up to date once.

    Parameters
    ----------
    settings
        Project and place: `platform_url`, else SQLite in the project's directory.
    key
        Signs what is written and checks what is read.
    """

    def __init__(self, settings: Settings, key: bytes) -> None:
        self._settings = settings
        self._project = settings.project
        self._key = key
        self._database = Database(database_url(settings))
        self._current = False

    def plan(self) -> Plan | None:
        """Return the plan in force; None before the first promotion."""
        with self._read() as connection:
            return self._plan(connection)

    def commit(
        self,
        change: Change,
        *,
        expected_epoch: int,
        entry: NewEntry,
        now: datetime,
        rollout: RolloutRow | None = None,
        lease: Lease | None = None,
        seen_epoch: int = 0,
    ) -> Plan:
        """Replace the plan, append to the ledger and keep the rollout: all of it or nothing.

        Parameters
        ----------
        change
            Makes the new plan of the old one; what it says of epoch and time does not count.
        expected_epoch
            Epoch of the plan the decision was made on; 0 where there was none.
        entry
            What the ledger says of it.
        rollout
            State of the rollout after the move, with the revision that was read.
        lease
            Of the controller; None for people, whose moves the epoch check alone decides.
        seen_epoch
            Largest epoch that was published: the new one is larger, also where the database is an older copy.

        Raises
        ------
        ConflictError
            If somebody else moved since, the lease has gone to another, or the rollout's revision is another.
        BadInputError
            If the new plan is none that serving would obey.
        LedgerBrokenError
            If the end of the ledger is not what was written: nothing is appended to it.
        UnavailableError
            If the database cannot be used now.
        """
        with self._write() as connection:
            head = ledger.lock_head(connection, self._project, self._key)
            leases.check(connection, self._project, lease)
            old = self._plan(connection)
            epoch = old.epoch if old else 0
            if epoch != expected_epoch:
                raise ConflictError(
                    f"the plan is at epoch {epoch} now, the decision was made at {expected_epoch}: somebody moved; "
                    "look at `larder models history` and decide again"
                )
            plan = replace(change(old), epoch=max(epoch, seen_epoch) + 1, published_at=now)
            encoded = encode_plan(plan, self._key)
            decode_plan(encoded, self._key)
            put(connection, PLAN, {"project": self._project}, {"epoch": plan.epoch, "body": encoded.decode()})
            entry = replace(entry, body={**entry.body, "plan": _without_salt(plan)})
            version = old.stable.model_version if old else ""
            ledger.append(connection, self._project, self._key, head, entry, now, plan.epoch, version)
            rollouts.store(connection, self._project, self._key, rollout)
        return plan

    def append(
        self, entry: NewEntry, now: datetime, *, rollout: RolloutRow | None = None, lease: Lease | None = None
    ) -> LedgerEntry:
        """Append to the ledger without moving the plan, and keep the rollout in the same transaction.

        Raises
        ------
        ConflictError, LedgerBrokenError, UnavailableError
            As `commit`.
        """
        with self._write() as connection:
            head = ledger.lock_head(connection, self._project, self._key)
            leases.check(connection, self._project, lease)
            plan = self._plan(connection)
            epoch, version = (plan.epoch, plan.stable.model_version) if plan else (0, "")
            added = ledger.append(connection, self._project, self._key, head, entry, now, epoch, version)
            rollouts.store(connection, self._project, self._key, rollout)
        return added

    def ledger(self, limit: int | None = None) -> list[LedgerEntry]:
        """Return the newest entries, newest first; all if `limit` is None."""
        with self._read() as connection:
            return ledger.entries(connection, self._project, self._key, limit)

    def verdict(self, bundle_id: str) -> LedgerEntry | None:
        """Return the newest verdict on a bundle, None if it was never judged.

        Raises
        ------
        LedgerBrokenError
            If that entry is not what was written.
        """
        with self._read() as connection:
            found = ledger.newest_verdict(connection, self._project, self._key, bundle_id)
        if found is not None and not found.intact:
            raise LedgerBrokenError(
                f"entry {found.entry} of the ledger, the verdict on bundle {bundle_id}, was changed after it was "
                "written; `larder ledger verify` looks at all of it"
            )
        return found

    def verify(self) -> int:
        """Check the whole chain, and that the plan is the one its last move made.

        Returns
        -------
        int
            Number of entries.

        Raises
        ------
        LedgerBrokenError
            Naming the first entry that is not as it was written.
        """
        with self._read() as connection:
            count, moved = ledger.verify(connection, self._project, self._key)
            try:
                plan = self._plan(connection)
            except BadInputError as error:
                raise LedgerBrokenError(f"the plan in the database is not what was committed: {error}") from error
        if (plan and (plan.epoch, _without_salt(plan))) != (moved and (moved.epoch, moved.body["plan"])):
            last = f"entry {moved.entry} made epoch {moved.epoch}" if moved else "no entry made one"
            raise LedgerBrokenError(
                f"the plan in the database is of epoch {plan.epoch if plan else 0}, but {last}: plan and ledger do not "
                "belong together"
            )
        return count

    def rollout(self, rollout_id: str | None = None) -> RolloutRow | None:
        """Return a rollout, the newest if no id is given; None if there is none.

        Raises
        ------
        LedgerBrokenError
            If it is not what the controller wrote.
        """
        with self._read() as connection:
            return rollouts.load(connection, self._project, self._key, rollout_id)

    def save_rollout(self, row: RolloutRow, *, lease: Lease | None = None) -> RolloutRow:
        """Keep a rollout without moving anything and without a line in the ledger; return it with its new revision.

        Raises
        ------
        ConflictError
            If the lease has gone to another, or the revision is not the stored one.
        """
        with self._write() as connection:
            ledger.lock_head(connection, self._project, self._key)
            leases.check(connection, self._project, lease)
            rollouts.store(connection, self._project, self._key, row)
        return replace(row, revision=row.revision + 1)

    def acquire_lease(self, holder: str, ttl_s: float, now: datetime) -> Lease | None:
        """Become the active controller; None while another one is.

        A holder that has the lease gets a new token: of two processes by one name, the later counts.
        """
        with self._write() as connection:
            ledger.lock_head(connection, self._project, self._key)
            return leases.acquire(connection, self._project, holder, ttl_s, now)

    def lease(self) -> Lease | None:
        """Return the lease as it stands, also one that is over; None if nobody has it."""
        with self._read() as connection:
            return leases.held(connection, self._project)

    def renew_lease(self, lease: Lease, ttl_s: float, now: datetime) -> Lease:
        """Hold the lease longer.

        Raises
        ------
        ConflictError
            If another has it.
        """
        with self._write() as connection:
            ledger.lock_head(connection, self._project, self._key)
            return leases.renew(connection, self._project, lease, ttl_s, now)

    def release_lease(self, lease: Lease) -> None:
        """Let another controller take over at once; nothing happens if one has."""
        with self._write() as connection:
            ledger.lock_head(connection, self._project, self._key)
            leases.release(connection, self._project, lease)

    def known_aliases(self) -> list[dict[str, str]]:
        """Return what MLflow's aliases may be without anybody's hand: as last seen in line, and as being set now."""
        with self._read() as connection:
            return rollouts.load_aliases(connection, self._project)

    def keep_aliases(self, states: list[dict[str, str]], epoch: int) -> None:
        """Remember that, unless somebody has for a newer plan."""
        with self._write() as connection:
            rollouts.store_aliases(connection, self._project, states, epoch)

    def _plan(self, connection: Connection) -> Plan | None:
        body = connection.execute(select(PLAN.c.body).where(PLAN.c.project == self._project)).scalar()
        return None if body is None else decode_plan(body.encode(), self._key)

    def _read(self) -> Any:
        self._upgrade()
        return self._database.transaction(write=False)

    def _write(self) -> Any:
        self._upgrade()
        return self._database.transaction(write=True)

    def _upgrade(self) -> None:
        if not self._current:
            upgrade(self._database)
            take_over(self._database, self._project, self._key)
            self._current = True


def _without_salt(plan: Plan) -> dict[str, Any]:
    """Return a plan as the ledger keeps it: who is in which arm stays secret."""
    return {name: value for name, value in msgspec.to_builtins(plan).items() if name != "salt"}
