"""Carries out what was decided of a rollout: plan, ledger and rollout in one transaction.

The controller and people's commands go the same way. Whoever decided on what is no longer so gets a `ConflictError`:
the plan's epoch, the rollout's revision and the controller's lease are all checked in the transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from deployment.publication import published_epoch
from deployment.rollout import states
from deployment.rollout.collected import Collected, restarted
from deployment.rollout.kept import Kept, from_body, to_body
from deployment.rollout.profile import RolloutProfile
from deployment.rollout.states import Decision, Rollout
from deployment.store.control_store import ControlStore
from deployment.store.records import Action, Lease, NewEntry, RolloutRow
from feature_repo.errors import ConflictError, NotFoundError
from feature_repo.settings import Settings
from serving.plan import Arm, Plan

#: What the ledger calls an end or a step.
_ACTIONS: Final[dict[str, Action]] = {
    "champion": "promote",
    "rolled_back": "rollout_end",
    "aborted": "abort",
    "canary": "rollout_step",
}
#: Called with the name of a place in the code; tests kill the process there.
CrashPoint = Callable[[str], None]


def nowhere(_name: str) -> None:
    """Do nothing: the crash point of every process but a test's."""


@dataclass(frozen=True, slots=True)
class Current:
    """A rollout as it is in the store."""

    row: RolloutRow
    kept: Kept

    @property
    def rollout(self) -> Rollout:
        """Its state machine."""
        return self.kept.rollout


class Moves:
    """Starts, moves and ends rollouts of one project."""

    def __init__(self, settings: Settings, store: ControlStore, key: bytes, crash_point: CrashPoint = nowhere) -> None:
        self._settings = settings
        self._store = store
        self._key = key
        self._crash_point = crash_point

    def current(self, rollout_id: str | None = None) -> Current | None:
        """Return a rollout, the newest if no id is given; None if there is none."""
        row = self._store.rollout(rollout_id)
        return None if row is None else Current(row, from_body(row.body))

    def running(self) -> Current:
        """Return the rollout that runs.

        Raises
        ------
        NotFoundError
            If none does.
        """
        current = self.current()
        if current is None or not current.rollout.active:
            last = f"; the last one, {current.row.rollout_id}, has ended: {current.rollout.state}" if current else ""
            raise NotFoundError(f"no rollout is running{last}")
        return current

    def start(
        self,
        candidate: Arm,
        profile: RolloutProfile,
        collected: Collected,
        *,
        who: str,
        why: str,
        now: datetime,
        body: dict[str, Any],
        lease: Lease | None = None,
    ) -> Current:
        """Begin: the candidate gets the shadow's or the first step's traffic.

        Raises
        ------
        ConflictError
            If one is running, or the candidate is the champion.
        NotFoundError
            If there is no champion to compare with.
        """
        plan = self._store.plan()
        if plan is None:
            raise NotFoundError("there is no champion to compare with; `larder models promote` makes the first one")
        if plan.release:
            raise ConflictError(f"rollout {plan.release} is running; `larder rollout abort` ends it")
        if plan.stable.bundle_id == candidate.bundle_id:
            raise ConflictError(f"version {candidate.model_version} is the champion's bundle: nothing to compare")
        epoch, seen = self._next_epoch(plan)
        rollout_id = new_id(candidate, now)
        rollout = states.begin(rollout_id, candidate, plan.stable, profile, epoch=epoch, now=now, who=who, why=why)
        kept = Kept(rollout, collected)
        entry = NewEntry(
            who, "rollout_start", why, candidate.bundle_id, candidate.model_version,
            {"rollout_id": rollout_id, "profile": profile.name, **body},
        )  # fmt: skip
        return self._commit(plan, RolloutRow(rollout_id, rollout.state, {}, 0), kept, entry, seen, now, lease)

    def carry_out(
        self,
        current: Current,
        decision: Decision,
        *,
        who: str,
        now: datetime,
        lease: Lease | None = None,
        action: Action | None = None,
    ) -> Current:
        """Do what was decided; `hold` only keeps the evidence.

        Raises
        ------
        ConflictError
            If anything it was decided on has changed.
        """
        kept = current.kept
        if decision.kind == "hold":
            rollout = states.apply(kept.rollout, decision, epoch=kept.rollout.epoch, now=now, who=who)
            return self.save(current, msgspec.structs.replace(kept, rollout=rollout), lease=lease)
        plan = self._plan_of(current)
        epoch, seen = self._next_epoch(plan)
        rollout = states.apply(kept.rollout, decision, epoch=epoch, now=now, who=who)
        return self._move(current, rollout, plan, seen, who, decision.reason, now, lease, action)

    def abort(self, current: Current, *, who: str, why: str, now: datetime, lease: Lease | None = None) -> Current:
        """End it; if the plan has moved on without it, only the rollout and the ledger are written."""
        states.require_active(current.rollout)
        plan = self._store.plan()
        if plan is None or plan.release != current.row.rollout_id:
            epoch = plan.epoch if plan else 0
            rollout = states.abort(current.rollout, epoch=epoch, now=now, who=who, why=why)
            return self._append(current, rollout, "abort", who, why, now, lease)
        epoch, seen = self._next_epoch(plan)
        rollout = states.abort(current.rollout, epoch=epoch, now=now, who=who, why=why)
        return self._move(current, rollout, plan, seen, who, why, now, lease, None)

    def pause(self, current: Current, *, who: str, why: str, now: datetime) -> Current:
        """Let it not go on."""
        rollout = states.pause(current.rollout, now=now, who=who, why=why)
        return self._append(current, rollout, "pause", who, why, now, None)

    def resume(self, current: Current, *, who: str, why: str, now: datetime) -> Current:
        """Let it go on."""
        rollout = states.resume(current.rollout, now=now, who=who, why=why)
        return self._append(current, rollout, "resume", who, why, now, None)

    def force(self, current: Current, *, who: str, why: str, now: datetime, champion: bool = False) -> Current:
        """Go on without the evidence: to the next step, or to the champion."""
        states.require_active(current.rollout)
        last = current.rollout.state == "canary" and current.rollout.is_last_step
        decision = Decision("promote" if champion or last else "advance", f"forced: {why}")
        return self.carry_out(current, decision, who=who, now=now, action="force")

    def save(self, current: Current, kept: Kept, *, lease: Lease | None = None) -> Current:
        """Keep a rollout without a line in the ledger."""
        row = RolloutRow(current.row.rollout_id, kept.rollout.state, to_body(kept), current.row.revision)
        self._crash_point("before_save")
        saved = self._store.save_rollout(row, lease=lease)
        self._crash_point("after_save")
        return Current(saved, kept)

    def _plan_of(self, current: Current) -> Plan:
        plan = self._store.plan()
        if plan is None or plan.release != current.row.rollout_id:
            raise ConflictError(
                f"the plan is no longer rollout {current.row.rollout_id}'s: somebody moved the champion"
            )
        return plan

    def _move(
        self, current: Current, rollout: Rollout, plan: Plan, seen: int, who: str, why: str, now: datetime,
        lease: Lease | None, action: Action | None,
    ) -> Current:  # fmt: skip
        kept = msgspec.structs.replace(current.kept, rollout=rollout)
        body = {"rollout_id": rollout.rollout_id, "state": rollout.state, "weight": rollout.weight}
        body |= {"from_step": current.rollout.step, "tests": msgspec.to_builtins(kept.tests)}
        if rollout.active:
            kept = msgspec.structs.replace(kept, collected=restarted(kept.collected))
        entry = NewEntry(
            who, action or _ACTIONS[rollout.state], shortened(why), rollout.candidate.bundle_id,
            rollout.candidate.model_version, body,
        )  # fmt: skip
        return self._commit(plan, current.row, kept, entry, seen, now, lease)

    def _append(
        self, current: Current, rollout: Rollout, action: Action, who: str, why: str, now: datetime, lease: Lease | None
    ) -> Current:
        kept = msgspec.structs.replace(current.kept, rollout=rollout)
        row = RolloutRow(rollout.rollout_id, rollout.state, to_body(kept), current.row.revision)
        arm, body = rollout.candidate, {"rollout_id": rollout.rollout_id, "state": rollout.state}
        entry = NewEntry(who, action, shortened(why), arm.bundle_id, arm.model_version, body)
        self._crash_point("before_append")
        self._store.append(entry, now, rollout=row, lease=lease)
        self._crash_point("after_append")
        return Current(replace(row, revision=row.revision + 1), kept)

    def _commit(
        self, plan: Plan, row: RolloutRow, kept: Kept, entry: NewEntry, seen: int, now: datetime, lease: Lease | None
    ) -> Current:
        new = RolloutRow(row.rollout_id, kept.rollout.state, to_body(kept), row.revision)
        self._crash_point(f"before_commit_{kept.rollout.state}")
        self._store.commit(
            lambda old: plan_for(old or plan, kept.rollout),
            expected_epoch=plan.epoch,
            entry=entry,
            now=now,
            rollout=new,
            lease=lease,
            seen_epoch=seen,
        )
        self._crash_point(f"after_commit_{kept.rollout.state}")
        return Current(replace(new, revision=new.revision + 1), kept)

    def _next_epoch(self, plan: Plan) -> tuple[int, int]:
        """Return the epoch the next plan will have, and the largest one serving may have seen."""
        seen = published_epoch(self._settings, self._key)
        return max(plan.epoch, seen) + 1, seen


def plan_for(old: Plan, rollout: Rollout) -> Plan:
    """Return the plan of a rollout's state; who is in which arm stays as it was while it runs."""
    if not rollout.active:
        champion = rollout.candidate if rollout.state == "champion" else old.stable
        return Plan(old.epoch, champion, old.published_at)
    salt = old.salt if old.release == rollout.rollout_id else secrets.token_hex(16)
    plan = replace(old, release=rollout.rollout_id, salt=salt, canary=None, weight=0, shadow=None)
    if rollout.state == "shadow":
        return replace(plan, shadow=rollout.candidate)
    return replace(plan, canary=rollout.candidate, weight=rollout.weight)


def new_id(candidate: Arm, now: datetime) -> str:
    """Return a new rollout's id: which version, when, which bundle; never the same twice."""
    return f"v{candidate.model_version}-{now:%Y%m%dT%H%M%S}-{candidate.bundle_id[:8]}-{secrets.token_hex(2)}"


def shortened(why: str, longest: int = 1_900) -> str:
    """Return a reason the ledger takes."""
    return why if len(why) <= longest else f"{why[:longest]} ..."
