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
        The champion, which answers everybody.
    published_at
        When the control plane committed the plan, aware UTC.
    """

    epoch: int
    stable: Arm
    published_at: datetime


def plan_key(project: str) -> str:
    """Redis key that holds a project's plan."""
    return f"{project}:plan"


def encode_plan(plan: Plan) -> bytes:
    """Encode a plan as JSON."""
    return msgspec.json.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Decode and check a plan.

    Raises
    ------
    BadInputError
        If the data are not a plan, or one that cannot be meant (no positive epoch, a naive time, an id that is no
        bundle id and could name another directory).
    """
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"not a plan: {error}") from None
    if plan.epoch < 1:
        raise BadInputError(f"a plan's epoch starts at 1, not {plan.epoch}")
    if not _BUNDLE_ID.fullmatch(plan.stable.bundle_id):
        raise BadInputError(f"{plan.stable.bundle_id[:64]!r} is not a bundle id (32 hexadecimal digits)")
    if not plan.stable.model_version:
        raise BadInputError("the plan's stable arm names no model version")
    if plan.published_at.tzinfo is None:
        raise BadInputError(f"published_at must have a time zone, got {plan.published_at.isoformat()}")
    return plan


def load_plan(path: Path) -> Plan | None:
    """Read a plan from disk; None if there is none.

    Raises
    ------
    BadInputError
        If the file is not a plan.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode_plan(data)


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan to disk so that a reader sees the old one or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".plan-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(encode_plan(plan))
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
