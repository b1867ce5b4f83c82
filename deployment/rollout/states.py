"""A rollout's states and the rules by which it moves. PURE.

    shadow -> canary, step by step -> champion,   or rolled_back / aborted at any time

A rollout begins when the gate has let a version through; one it has not is `rejected`. What is decided here is carried
out by `moves.py`, plan and ledger and rollout in one transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from deployment.rollout.evidence import Evidence
from deployment.rollout.profile import GUARDRAILS, RolloutProfile
from feature_repo.errors import ConflictError
from serving.plan import Arm
from serving.rollout_status import TestStatus, Transition

Kind = Literal["hold", "advance", "promote", "roll_back"]
#: States in which traffic of a candidate is in the plan.
ACTIVE: Final = ("shadow", "canary")
#: Of one tick, no more than this counts as time that has passed: a process that slept, or a machine that did, has not
#: watched anything meanwhile.
MAX_TICK_S: Final = 5.0
#: Step number of the shadow.
SHADOW: Final = -1


class Decision(msgspec.Struct, frozen=True):
    """What to do, and why, in words for people."""

    kind: Kind
    reason: str


class Rollout(msgspec.Struct, frozen=True):
    """One candidate on its way; goes to and from JSON.

    Attributes
    ----------
    state
        A word of `serving.rollout_status.STATES`.
    step
        Position in `profile.steps`; -1 in the shadow.
    profile
        As it was when the rollout started.
    epoch
        Of the plan of this step: answers made under another one say nothing about it.
    epochs
        Epoch (as text, JSON has no other keys) to step, of the canary's steps so far: the strata of clicks.
    elapsed_s
        Watched time of this step. Sum of what a monotonic clock has measured from tick to tick, each bounded, without
        pauses: no jump of the wall clock and no restart can make it long.
    decision, reason
        The newest decision.
    """

    rollout_id: str
    state: str
    step: int
    candidate: Arm
    stable: Arm
    profile: RolloutProfile
    started_at: str
    step_started_at: str
    epoch: int
    epochs: dict[str, int] = {}
    elapsed_s: float = 0.0
    paused: bool = False
    decision: str = "hold"
    reason: str = ""
    history: tuple[Transition, ...] = ()

    @property
    def active(self) -> bool:
        """Whether it still runs."""
        return self.state in ACTIVE

    @property
    def weight(self) -> int:
        """Buckets of the canary now, of 10,000."""
        return self.profile.steps[self.step].weight if self.state == "canary" else 0

    @property
    def is_last_step(self) -> bool:
        """Whether the next one is the champion."""
        return self.step == len(self.profile.steps) - 1


def begin(
    rollout_id: str, candidate: Arm, stable: Arm, profile: RolloutProfile, *, epoch: int, now: datetime, who: str,
    why: str,
) -> Rollout:  # fmt: skip
    """Return a rollout at its first step: the shadow, or the canary's first where the profile has no shadow."""
    at = now.isoformat()
    gated = Transition(at, "gated", SHADOW, 0, who, why)
    rollout = Rollout(rollout_id, "gated", SHADOW, candidate, stable, profile, at, at, epoch, history=(gated,))
    if profile.shadow.comparisons:
        return _enter(rollout, "shadow", SHADOW, epoch, at, who, why)
    return _enter(rollout, "canary", 0, epoch, at, who, why)


def rejected(
    rollout_id: str, candidate: Arm, stable: Arm, profile: RolloutProfile, *, epoch: int, now: datetime, who: str,
    why: str,
) -> Rollout:  # fmt: skip
    """Return the rollout of a version the gate has stopped: one that never began."""
    at = now.isoformat()
    rollout = Rollout(rollout_id, "gated", SHADOW, candidate, stable, profile, at, at, epoch)
    return _enter(rollout, "rejected", SHADOW, epoch, at, who, why)


def passed(rollout: Rollout, seconds: float) -> Rollout:
    """Return it after some time was watched; less than nothing and more than a tick do not count, nor do pauses."""
    if not rollout.active or rollout.paused:
        return rollout
    # min and max in this order: a NaN becomes 0
    return replace(rollout, elapsed_s=rollout.elapsed_s + min(max(0.0, seconds), MAX_TICK_S))


def decide(rollout: Rollout, evidence: Evidence) -> Decision:
    """Decide what to do with what is known now.

    What is worse goes back at once, also in a pause: users are answered by it. Going on needs everything at once: no
    guardrail worse, every guardrail shown to be not worse, the least requests and time, arms of the size they should
    have. Where that is not reached for too long, it goes back as well.
    """
    if not rollout.active:
        return Decision("hold", f"the rollout has ended: {rollout.state}")
    in_shadow = rollout.state == "shadow"
    if found := _harm_in_shadow(rollout, evidence) if in_shadow else _harm(rollout, evidence):
        return Decision("roll_back", found)
    if rollout.paused:
        return Decision("hold", "paused; it goes on with `larder rollout resume`")
    if missing := _missing_in_shadow(rollout, evidence) if in_shadow else _missing(rollout, evidence):
        return _wait(rollout, "; ".join(missing))
    if in_shadow:
        return Decision("advance", f"{evidence.shadow.compared:,} answers of the shadow were compared, within bounds")
    reason = f"not worse at any guardrail at {_percent(rollout.weight)} of users"
    return Decision("promote" if rollout.is_last_step else "advance", reason)


def _wait(rollout: Rollout, missing: str) -> Decision:
    """Wait for what is missing, but not for ever."""
    longest = rollout.profile.max_hold_minutes
    if rollout.elapsed_s >= longest * 60:
        return Decision("roll_back", f"nothing could be concluded in {_minutes(longest)}: {missing}")
    return Decision("hold", f"waiting: {missing}")


def apply(rollout: Rollout, decision: Decision, *, epoch: int, now: datetime, who: str) -> Rollout:
    """Return the rollout after a decision.

    Parameters
    ----------
    epoch
        Epoch of the plan that is committed with it.

    Raises
    ------
    ConflictError
        If the rollout has ended.
    """
    require_active(rollout)
    at = now.isoformat()
    if decision.kind == "hold":
        return replace(rollout, decision="hold", reason=decision.reason)
    if decision.kind == "roll_back":
        return _enter(rollout, "rolled_back", rollout.step, epoch, at, who, decision.reason)
    if decision.kind == "promote":
        return _enter(rollout, "champion", rollout.step, epoch, at, who, decision.reason)
    if rollout.state == "canary" and rollout.is_last_step:
        raise ConflictError(f"rollout {rollout.rollout_id} is at its last step: what comes next is the champion")
    return _enter(rollout, "canary", rollout.step + 1, epoch, at, who, decision.reason)


def abort(rollout: Rollout, *, epoch: int, now: datetime, who: str, why: str) -> Rollout:
    """End it because a person, or a plan that changed without it, said so.

    Raises
    ------
    ConflictError
        If it has ended already.
    """
    require_active(rollout)
    return _enter(rollout, "aborted", rollout.step, epoch, now.isoformat(), who, why)


def pause(rollout: Rollout, *, now: datetime, who: str, why: str) -> Rollout:
    """Let it not go on until it is resumed.

    Raises
    ------
    ConflictError
        If it has ended, or is paused already.
    """
    require_active(rollout)
    if rollout.paused:
        raise ConflictError(f"rollout {rollout.rollout_id} is paused already")
    return _noted(replace(rollout, paused=True, decision="hold", reason=f"paused: {why}"), now, who, f"paused: {why}")


def resume(rollout: Rollout, *, now: datetime, who: str, why: str) -> Rollout:
    """Let it go on.

    Raises
    ------
    ConflictError
        If it has ended, or is not paused.
    """
    require_active(rollout)
    if not rollout.paused:
        raise ConflictError(f"rollout {rollout.rollout_id} is not paused")
    return _noted(replace(rollout, paused=False, reason=f"resumed: {why}"), now, who, f"resumed: {why}")


def require_active(rollout: Rollout) -> None:
    """Refuse to move what has ended.

    Raises
    ------
    ConflictError
        If it has.
    """
    if not rollout.active:
        raise ConflictError(f"rollout {rollout.rollout_id} has ended: {rollout.state}")


def _enter(rollout: Rollout, state: str, step: int, epoch: int, at: str, who: str, reason: str) -> Rollout:
    weight = rollout.profile.steps[step].weight if state == "canary" else 0
    words = {"rolled_back": "roll back", "champion": "promote", "canary": "advance", "shadow": "start"}
    return replace(
        rollout,
        state=state,
        step=step,
        epoch=epoch,
        epochs={**rollout.epochs, str(epoch): step} if state == "canary" else rollout.epochs,
        step_started_at=at,
        elapsed_s=0.0,
        paused=False,
        decision=words.get(state, state),
        reason=reason,
        history=(*rollout.history, Transition(at, state, step, weight, who, reason)),
    )


def _noted(rollout: Rollout, now: datetime, who: str, text: str) -> Rollout:
    line = Transition(now.isoformat(), rollout.state, rollout.step, rollout.weight, who, text)
    return replace(rollout, history=(*rollout.history, line))


def _harm(rollout: Rollout, evidence: Evidence) -> str:
    """Say what is worse, or can no longer be shown not to be; empty if nothing is known to be."""
    worse = [f"{name}: {_said(test)}" for name, test in evidence.guardrails.items() if test.state == "worse"]
    worse += [f"{name}: {_said(test)}" for name, test in evidence.clicks.items() if test.state == "worse"]
    if worse:
        return "worse than the baseline at " + "; ".join(worse)
    if evidence.ratio is not None and evidence.ratio.state == "worse":
        return f"the arms did not get the users they should, so nothing can be compared: {_said(evidence.ratio)}"
    for name in rollout.profile.clicks.required:
        test = evidence.clicks.get(name)
        if test is not None and test.state == "undecided":
            return f"{name} was not shown to be not worse at its last look: {_said(test)}; plan more users for it"
    return ""


def _missing(rollout: Rollout, evidence: Evidence) -> list[str]:
    """Say what the canary's step still lacks."""
    step, missing = rollout.profile.steps[rollout.step], []
    fewest = min(evidence.requests.get(arm, 0) for arm in ("canary", "baseline"))
    if fewest < step.requests:
        missing.append(f"{fewest:,} of {step.requests:,} requests in each arm")
    missing += _time_missing(rollout, step.minutes)
    open_tests = [
        name for name in GUARDRAILS if name not in evidence.guardrails or evidence.guardrails[name].state == "open"
    ]
    if open_tests:
        missing.append(f"not yet shown to be not worse at {', '.join(open_tests)}")
    if rollout.is_last_step:
        unsure = [
            name
            for name in rollout.profile.clicks.required
            if name not in evidence.clicks or evidence.clicks[name].state not in ("not worse", "better")
        ]
        if unsure:
            missing.append(f"not yet shown to be not worse in {', '.join(unsure)}")
    return missing


def _harm_in_shadow(rollout: Rollout, evidence: Evidence) -> str:
    """Say what the shadow did too often. Its horizon is fixed, so what is over the bound now will be then."""
    demands, shadow = rollout.profile.shadow, evidence.shadow
    over = [
        f"{count:,} of {shadow.compared:,} {what}, {_percent(share * 10_000)} of {demands.comparisons:,} are tolerated"
        for count, share, what in (
            (shadow.errors, demands.error_share, "answers of the shadow failed"),
            (shadow.slow, demands.slow_share, "answers of the shadow were slower than the objective"),
        )
        if count > share * max(demands.comparisons, shadow.compared)
    ]
    return "; ".join(over)


def _missing_in_shadow(rollout: Rollout, evidence: Evidence) -> list[str]:
    demands, missing = rollout.profile.shadow, []
    if evidence.shadow.compared < demands.comparisons:
        missing.append(f"{evidence.shadow.compared:,} of {demands.comparisons:,} answers of the shadow")
    return missing + _time_missing(rollout, demands.minutes)


def _time_missing(rollout: Rollout, minutes: float) -> list[str]:
    if rollout.elapsed_s >= minutes * 60:
        return []
    return [f"{_minutes(rollout.elapsed_s / 60)} of {_minutes(minutes)}"]


def _said(test: TestStatus) -> str:
    return test.text or f"{test.value} against a margin of {test.margin}"


def _minutes(minutes: float) -> str:
    return f"{minutes * 60:.0f} s" if minutes < 2 else f"{minutes:.0f} min"


def _percent(weight: float) -> str:
    return f"{weight / 100:g} %"
