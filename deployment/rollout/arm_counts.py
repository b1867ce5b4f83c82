"""An answer as it is read from the log, and what is counted of each arm's answers. PURE."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from deployment.rollout.histogram import BUCKETS, bucket_of
from deployment.rollout.profile import GUARDRAILS

#: Why an assigned arm did not answer well, as the log says it, to the guardrail that counts it; others are errors.
_GUARDRAIL_OF: Final = {"fallback": "fallback", "non_finite": "non_finite", "empty": "empty"}


class Answer(msgspec.Struct, frozen=True):
    """What is read of a record of the impression log; see `serving/impressions.py`."""

    request_id: str
    time_us: int
    user_id: str
    assigned_arm: str
    latency_ms: float | None = None
    failure: str | None = None
    epoch: int = 0

    def failed(self, objective_ms: float) -> list[str]:
        """Return the guardrails it failed."""
        found = [_GUARDRAIL_OF.get(self.failure, "error")] if self.failure else []
        latency = self.latency_ms
        if latency is not None and not (math.isfinite(latency) and latency <= objective_ms):
            found.append("slow")
        return found


class ArmCounts(msgspec.Struct):
    """Requests of one arm since the step began; goes to and from JSON."""

    requests: int = 0
    failures: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(GUARDRAILS, 0))
    latency: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)

    def add(self, answer: Answer, failed: list[str]) -> None:
        """Count one answer."""
        self.requests += 1
        for name in failed:
            self.failures[name] += 1
        if answer.latency_ms is not None:
            self.latency[bucket_of(answer.latency_ms)] += 1

    def plus(self, more: ArmCounts) -> ArmCounts:
        """Return the sum of two counts."""
        return ArmCounts(
            self.requests + more.requests,
            {name: self.failures.get(name, 0) + more.failures[name] for name in more.failures},
            [a + b for a, b in zip(self.latency, more.latency, strict=True)],
        )
