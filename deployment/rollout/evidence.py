"""What is known of canary against baseline when a decision is made. PURE."""

from __future__ import annotations

import msgspec

from serving.rollout_status import ArmStatus, ShadowStatus, TestStatus


class ShadowEvidence(msgspec.Struct, frozen=True):
    """Answers of the shadow that were compared, and those of them that failed or were slower than the objective."""

    compared: int = 0
    errors: int = 0
    slow: int = 0


class Evidence(msgspec.Struct, frozen=True):
    """Everything a decision may rest on.

    Attributes
    ----------
    requests
        By arm ("canary", "baseline"), since the step began.
    guardrails
        By name of `profile.GUARDRAILS`; one that is missing is open. State "worse" and "not worse" decide.
    ratio
        Whether the arms got the users they should; "worse" if not.
    clicks
        By name of `profile.CLICKS`, since the candidate was first shown.
    shadow
        Since the step began.
    """

    requests: dict[str, int] = {}
    guardrails: dict[str, TestStatus] = {}
    ratio: TestStatus | None = None
    clicks: dict[str, TestStatus] = {}
    shadow: ShadowEvidence = ShadowEvidence()


class Shown(msgspec.Struct, frozen=True):
    """What is shown of the evidence, besides the tests: arms and the shadow's answers."""

    arms: tuple[ArmStatus, ...] = ()
    shadow: ShadowStatus | None = None
