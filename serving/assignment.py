"""Which arm a user belongs to. PURE: the same answer in every process, and for as long as a rollout lasts."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from serving.plan import Plan

ArmName = Literal["stable", "baseline", "canary"]
ARMS: Final[tuple[ArmName, ...]] = ("stable", "baseline", "canary")
BUCKETS: Final = 10_000


def bucket(salt: str, release: str, user_id: str) -> int:
    """Return a user's bucket, 0 to 9,999: another draw for every salt and release."""
    digest = hashlib.blake2b(f"{salt}|{release}|{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def assign(plan: Plan, user_id: str) -> ArmName:
    """Return a user's arm.

    The canary takes the lowest buckets, the concurrent baseline (the stable model, counted apart) the highest: raising
    the weight only adds users to either.
    """
    if plan.canary is None or not plan.weight:
        return "stable"
    mine = bucket(plan.salt, plan.release, user_id)
    if mine < plan.weight:
        return "canary"
    return "baseline" if mine >= BUCKETS - plan.weight else "stable"
