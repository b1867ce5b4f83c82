"""How the error of a rollout is shared: among guardrails, and among the steps that each begin anew. PURE."""

from __future__ import annotations

from typing import Final

#: A false rollback, over all guardrails and steps of one rollout, is at most this probable.
ALPHA: Final = 0.01
#: A false alarm of the sample ratio.
SAMPLE_RATIO_ALPHA: Final = 0.001
#: Shares of `ALPHA`; errors hurt most and must be found first.
GUARDRAIL_SHARE: Final = {"error": 0.4, "slow": 0.3, "fallback": 0.1, "non_finite": 0.1, "empty": 0.1}


def step_share(step: int, steps: int) -> float:
    """Return the share of alpha of one of a rollout's steps, from 0: half, a quarter, ..., the last two alike.

    Most of it goes to the first steps, where a bad candidate is met. All shares together are 1.

    Raises
    ------
    ValueError
        If there is no such step.
    """
    if not 0 <= step < steps:
        raise ValueError(f"a rollout of {steps} steps has no step {step}")
    return 0.5 ** min(step + 1, max(steps - 1, 0))


def guardrail_alpha(guardrail: str, step: int, steps: int, alpha: float = ALPHA) -> float:
    """Return the alpha of one guardrail in one step; all of them together are `alpha`."""
    return alpha * GUARDRAIL_SHARE[guardrail] * step_share(step, steps)
