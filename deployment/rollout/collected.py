"""The durable evidence of a rollout. PURE."""

from __future__ import annotations

import msgspec

from deployment.rollout.arm_counts import ArmCounts
from deployment.rollout.arm_tests import ArmTests
from deployment.rollout.shadow_sums import ShadowSums
from serving.rollout_status import Point


class Collected(msgspec.Struct):
    """Durable evidence of a rollout; goes to and from JSON.

    Attributes
    ----------
    origin, origin_seq
        Where the logs ended when the rollout began.
    offsets, shadow_offsets, seq
        Up to where they are counted in the rest.
    arms, shadow
        Counts since the step began, and of the shadow.
    tests
        State of the statistical tests.
    every, windows
        A point of the curves is kept every so many windows; windows so far.
    """

    origin: dict[str, int] = {}
    origin_seq: int = 0
    offsets: dict[str, int] = {}
    shadow_offsets: dict[str, int] = {}
    seq: int = 0
    arms: dict[str, ArmCounts] = {}
    shadow: ShadowSums = msgspec.field(default_factory=ShadowSums)
    tests: ArmTests = msgspec.field(default_factory=ArmTests)
    series: list[Point] = []
    every: int = 1
    windows: int = 0


def restarted(collected: Collected) -> Collected:
    """Return the evidence at the beginning of another step."""
    return msgspec.structs.replace(collected, arms={}, tests=collected.tests.restarted())
