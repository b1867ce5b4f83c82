"""What is known of a rollout, as the controller publishes it and as page, command line and report show it. PURE."""

from __future__ import annotations

import msgspec

from feature_repo.errors import BadInputError

#: States of a rollout; the last four are its ends.
STATES = ("gated", "shadow", "canary", "champion", "rejected", "rolled_back", "aborted")


def rollout_status_key(project: str) -> str:
    """Redis key of a project's newest `RolloutStatus`, encoded."""
    return f"{project}:rollout_status"


class ArmStatus(msgspec.Struct, frozen=True):
    """What one arm did since the step began (guardrails), and since the candidate was first shown (clicks)."""

    arm: str  #: "stable", "baseline", "canary" or "shadow"
    bundle_id: str
    model_version: str
    requests: int = 0
    users: int = 0
    #: Requests by guardrail that failed it; see `deployment/rollout/`.
    failures: dict[str, int] = {}
    p50_ms: float | None = None
    p95_ms: float | None = None
    clicks: int = 0
    conversions: int = 0
    #: Clicks per user with a recommendation, and purchases likewise.
    ctr: float | None = None
    conversion: float | None = None


class TestStatus(msgspec.Struct, frozen=True):
    """One statistical question about canary against baseline, as it stands.

    `value` is the measured difference canary - baseline, `[low, high]` its always-valid interval, `margin` what is
    tolerated; `e_value` the evidence that the canary is worse, which rolls back at `threshold`.
    """

    name: str
    state: str  #: "open", "not worse", "worse", "better", "undecided" (at its last look)
    value: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    e_value: float | None = None
    threshold: float | None = None
    text: str = ""


class Transition(msgspec.Struct, frozen=True):
    """One move of the rollout."""

    at: str  #: ISO 8601, UTC
    state: str
    step: int
    weight: int
    who: str
    reason: str


class Point(msgspec.Struct, frozen=True):
    """One moment of the curves that are shown: intervals over time."""

    at: str
    weight: int
    requests: dict[str, int]  #: by arm
    tests: dict[str, tuple[float | None, float | None, float | None]]  #: name to value, low, high


class ShadowStatus(msgspec.Struct, frozen=True):
    """What the shadow's answers were, compared with what was served."""

    compared: int = 0
    errors: int = 0
    dropped: int = 0
    overlap: float | None = None  #: mean share of the served items among the shadow's k
    rank_correlation: float | None = None
    score_shift: float | None = None
    p95_ms: float | None = None
    served_p95_ms: float | None = None
    #: Segments in which lists differ most: name to overlap.
    segments: dict[str, float] = {}


class RolloutStatus(msgspec.Struct, frozen=True):
    """Everything an operator wants to see of a rollout."""

    rollout_id: str
    epoch: int
    state: str
    step: int
    steps: list[int]  #: weights of the canary's steps, of 10,000
    weight: int
    paused: bool
    candidate_version: str
    candidate_bundle: str
    stable_version: str
    stable_bundle: str
    started_at: str
    step_started_at: str
    updated_at: str
    decision: str  #: "hold", "advance", "promote", "roll back", ...
    reason: str
    arms: list[ArmStatus] = []
    tests: list[TestStatus] = []
    shadow: ShadowStatus | None = None
    history: list[Transition] = []
    series: list[Point] = []


def encode_status(status: RolloutStatus) -> bytes:
    """Encode as JSON."""
    return msgspec.json.encode(status)


def decode_status(data: bytes) -> RolloutStatus:
    """Decode.

    Raises
    ------
    BadInputError
        If the data are no status.
    """
    try:
        return msgspec.json.decode(data, type=RolloutStatus)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"not a rollout's status: {error}") from None
