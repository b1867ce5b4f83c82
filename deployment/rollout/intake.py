"""What the gate judged becomes a rollout: the newest version with a passing verdict that was never tried."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

from deployment.promotion import ControlPlane
from deployment.rollout import states
from deployment.rollout.collected import Collected
from deployment.rollout.kept import Kept, to_body
from deployment.rollout.moves import Current, Moves, new_id, shortened
from deployment.rollout.profile import RolloutProfile
from deployment.store.records import Lease, LedgerEntry, RolloutRow
from serving.plan import Arm, Plan

_LOG = logging.getLogger(__name__)
#: Older verdicts are of the past: a person may still start their rollout.
_ENTRIES: Final = 300
#: What shows that a bundle had its chance.
_TRIED: Final = frozenset({"rollout_start", "promote", "rollback"})


class Intake:
    """Starts rollouts by itself.

    Parameters
    ----------
    plane
        Control plane of the project.
    profile
        Of the rollouts it starts; read anew for each.
    who
        Kept in the ledger.
    stale
        Called with a version whose verdict compares it with a champion of the past.
    """

    def __init__(
        self,
        plane: ControlPlane,
        profile: Callable[[], RolloutProfile],
        who: str,
        stale: Callable[[str], None] = lambda _version: None,
    ) -> None:
        self._plane = plane
        self._profile = profile
        self._who = who
        self._stale = stale
        self._looked_at = ""

    def next(self, moves: Moves, collected: Callable[[], Collected], now: datetime, lease: Lease) -> Current | None:
        """Start the next rollout, or note that the newest version was rejected; None if there is nothing new.

        Raises
        ------
        ConflictError, UnavailableError
            As `Moves.start`; the next call tries again.
        """
        newest = self._plane.store.ledger(1)
        if not newest or newest[0].hash == self._looked_at:
            return None
        entries = self._plane.store.ledger(_ENTRIES)
        plan = self._plane.store.plan()
        started = (
            None if plan is not None and plan.release else self._start(moves, entries, plan, collected, now, lease)
        )
        self._looked_at = newest[0].hash
        return started

    def _start(
        self, moves: Moves, entries: list[LedgerEntry], plan: Plan | None, collected: Callable[[], Collected],
        now: datetime, lease: Lease,
    ) -> Current | None:  # fmt: skip
        for entry in _untried(entries):
            document = entry.body.get("verdict", {})
            if not _passed(document):
                return self._reject(moves, entry, document, plan, now, lease)
            why = f"the gate let version {entry.model_version} through"
            if plan is None:
                self._plane.promote(entry.model_version, why=f"{why}: the first champion", who=self._who, judge=False)
                return None
            if document.get("champion_version", plan.stable.model_version) != plan.stable.model_version:
                _LOG.info(
                    "version %s was compared with a champion of the past: it is judged again", entry.model_version
                )
                self._stale(entry.model_version)
                return None
            candidate, body = Arm(entry.bundle_id, entry.model_version), {"verdict_entry": entry.entry}
            return moves.start(
                candidate, self._profile(), collected(), who=self._who, why=why, now=now, body=body, lease=lease
            )
        return None

    def _reject(
        self, moves: Moves, entry: LedgerEntry, document: dict[str, Any], plan: Plan | None, now: datetime, lease: Lease
    ) -> Current | None:
        """Keep a rollout that never began, so that whoever looks sees why; the ledger has the verdict already."""
        current = moves.current()
        if plan is None or (current is not None and current.rollout.started_at >= entry.at):
            return None
        failed = [f"{one['name']} ({one['result']})" for one in document.get("checks", []) if one["result"] != "pass"]
        why = shortened(f"the gate stopped version {entry.model_version}: {', '.join(failed) or 'no check was made'}")
        candidate = Arm(entry.bundle_id, entry.model_version)
        rollout = states.rejected(
            new_id(candidate, now), candidate, plan.stable, self._profile(), epoch=plan.epoch, now=now, who=self._who,
            why=why,
        )  # fmt: skip
        kept = Kept(rollout, Collected(), reported=True)
        row = RolloutRow(rollout.rollout_id, rollout.state, to_body(kept))
        return Current(self._plane.store.save_rollout(row, lease=lease), kept)


def _untried(entries: list[LedgerEntry]) -> Iterator[LedgerEntry]:
    """Yield the newest verdict of each bundle, newest first, if nothing came of it yet."""
    done = {entry.bundle_id for entry in entries if entry.action in _TRIED}
    for entry in entries:
        if entry.action != "verdict" or (entry.bundle_id and entry.bundle_id in done):
            continue
        done.add(entry.bundle_id)
        if entry.intact:
            yield entry


def _passed(document: dict[str, Any]) -> bool:
    checks = document.get("checks", [])
    return bool(checks) and all(one["result"] == "pass" for one in checks)
