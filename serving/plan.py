"""The plan: which bundle gets which traffic. Published by the control plane, obeyed by serving."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from feature_repo.errors import BadInputError
from serving.signature import seal, unseal

#: A canary and its concurrent baseline share the users: half each at most.
MAX_WEIGHT = 5_000
_BUNDLE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Arm:
    """A bundle and the registry version it came from."""

    bundle_id: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is served.

    Attributes
    ----------
    epoch
        Grows with every published plan; serving never goes back to a smaller one.
    stable
        The champion, which answers everybody who is not in the canary.
    published_at
        When the control plane committed the plan, aware UTC.
    release, salt
        Id of the rollout and its secret: they decide who is in which arm (assignment.py). Empty where none runs.
    canary, weight
        The candidate and how many of 10,000 buckets of users it answers, at most half; as many, counted apart, make
        the concurrent baseline, which the stable model answers.
    shadow
        A candidate that answers the same requests after the user's answer has left, for comparison only.
    """

    epoch: int
    stable: Arm
    published_at: datetime
    release: str = ""
    salt: str = ""
    canary: Arm | None = None
    weight: int = 0
    shadow: Arm | None = None

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every bundle that must be loaded, the stable one first."""
        return tuple(arm for arm in (self.stable, self.canary, self.shadow) if arm is not None)


def require_bundle_id(text: str) -> str:
    """Return the id of a bundle as it is.

    Raises
    ------
    BadInputError
        If it cannot be one: it names a directory.
    """
    if not _BUNDLE_ID.fullmatch(text):
        raise BadInputError(f"{text!r} is no bundle id: 32 hexadecimal digits")
    return text


def plan_key(project: str) -> str:
    """Redis key that holds a project's plan."""
    return f"{project}:plan"


def encode_plan(plan: Plan, key: bytes) -> bytes:
    """Encode a plan as JSON, signed."""
    return seal(msgspec.json.encode(plan), key)


def decode_plan(data: bytes, key: bytes) -> Plan:
    """Decode and check a plan.

    Raises
    ------
    BadInputError
        If the data are not a plan, not signed with the key, or one that cannot be meant (no positive epoch, a naive
        time, an id that is no bundle id and could name another directory, a weight above half).
    """
    try:
        plan = msgspec.json.decode(unseal(data, key, "plan"), type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"not a plan: {error}") from None
    if plan.epoch < 1:
        raise BadInputError(f"a plan's epoch starts at 1, not {plan.epoch}")
    for arm in plan.arms:
        if not _BUNDLE_ID.fullmatch(arm.bundle_id):
            raise BadInputError(f"{arm.bundle_id[:64]!r} is not a bundle id (32 hexadecimal digits)")
        if not arm.model_version:
            raise BadInputError(f"the plan names no model version for bundle {arm.bundle_id}")
    if not 0 <= plan.weight <= MAX_WEIGHT:
        raise BadInputError(f"a canary takes 0 to {MAX_WEIGHT} of 10,000 buckets, not {plan.weight}")
    if (plan.canary or plan.shadow) and not (plan.release and plan.salt):
        raise BadInputError("a plan with a canary or a shadow names its release and salt")
    if plan.weight and plan.canary is None:
        raise BadInputError("a plan with a weight names its canary")
    if plan.published_at.tzinfo is None:
        raise BadInputError(f"published_at must have a time zone, got {plan.published_at.isoformat()}")
    return plan


def load_plan(path: Path, key: bytes) -> Plan | None:
    """Read a plan from disk; None if there is none.

    Raises
    ------
    BadInputError
        If the file is not a plan signed with the key.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode_plan(data, key)


def save_plan(plan: Plan, path: Path, key: bytes) -> None:
    """Write a plan to disk so that a reader sees the old one or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".plan-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(encode_plan(plan, key))
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
