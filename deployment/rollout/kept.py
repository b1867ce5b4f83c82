"""What the store keeps of a rollout, and what is shown of it. PURE."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from deployment.rollout.collected import Collected
from deployment.rollout.states import Rollout
from feature_repo.errors import BadInputError
from serving.rollout_status import ArmStatus, RolloutStatus, TestStatus


class Kept(msgspec.Struct, frozen=True):
    """Everything that must be found again after a crash; the body of the rollout's row.

    Attributes
    ----------
    arms, tests
        As of the last window, for people.
    reported
        Whether the report of its end is written and in MLflow.
    """

    rollout: Rollout
    collected: Collected
    arms: list[ArmStatus] = []
    tests: list[TestStatus] = []
    reported: bool = False


def to_body(kept: Kept) -> dict[str, Any]:
    """Return it as plain values."""
    body: dict[str, Any] = msgspec.to_builtins(kept)
    return body


def from_body(body: dict[str, Any]) -> Kept:
    """Read it back.

    Raises
    ------
    BadInputError
        If it was written by a version of Larder that this one does not know.
    """
    try:
        return msgspec.convert(body, Kept)
    except msgspec.ValidationError as error:
        raise BadInputError(
            f"the rollout in the database cannot be read by this version of Larder: {error}; `larder rollout abort` "
            "with the version that wrote it ends it"
        ) from None


def status_of(kept: Kept, plan_epoch: int, now: datetime) -> RolloutStatus:
    """Return what an operator wants to see.

    Parameters
    ----------
    plan_epoch
        Of the plan in force.
    """
    rollout, collected = kept.rollout, kept.collected
    had_shadow = any(line.state == "shadow" for line in rollout.history)
    return RolloutStatus(
        rollout_id=rollout.rollout_id,
        epoch=plan_epoch,
        state=rollout.state,
        step=rollout.step,
        steps=[step.weight for step in rollout.profile.steps],
        weight=rollout.weight,
        paused=rollout.paused,
        candidate_version=rollout.candidate.model_version,
        candidate_bundle=rollout.candidate.bundle_id,
        stable_version=rollout.stable.model_version,
        stable_bundle=rollout.stable.bundle_id,
        started_at=rollout.started_at,
        step_started_at=rollout.step_started_at,
        updated_at=now.isoformat(),
        decision=rollout.decision,
        reason=rollout.reason,
        arms=kept.arms,
        tests=kept.tests,
        shadow=collected.shadow.status() if had_shadow else None,
        history=list(rollout.history),
        series=collected.series,
    )
