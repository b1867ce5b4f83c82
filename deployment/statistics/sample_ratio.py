"""Do the arms have the users they should? A sequential test of the sample ratio. PURE.

Where it fails, assignment or logging is broken, and no other comparison of the arms means anything. The e-process is
the beta mixture against equal shares (Lindon and Malek 2022, Anytime-valid inference for multinomial count data).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import betaln


@dataclass(frozen=True, slots=True)
class SampleRatioTest:
    """Distinct users of two arms with equal shares, and the most evidence there ever was against them."""

    canary_users: int = 0
    baseline_users: int = 0
    most_log_e: float = 0.0

    def update(self, *, canary_users: int, baseline_users: int) -> SampleRatioTest:
        """Add users seen for the first time.

        Raises
        ------
        ValueError
            If a count is negative.
        """
        if min(canary_users, baseline_users) < 0:
            raise ValueError("a window cannot take users away")
        canary, baseline = self.canary_users + canary_users, self.baseline_users + baseline_users
        return SampleRatioTest(canary, baseline, max(self.most_log_e, _log_e(canary, baseline)))

    @property
    def e_value(self) -> float:
        """Evidence now that the shares differ; 1 is none."""
        return math.exp(min(_log_e(self.canary_users, self.baseline_users), 700.0))

    def mismatch(self, alpha: float) -> bool:
        """Whether the shares differ: says so falsely in at most a share `alpha` of all steps, looked at for ever."""
        return self.most_log_e >= -math.log(alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SampleRatioTest:
        """Restore a state."""
        return cls(**state)


def _log_e(canary: int, baseline: int) -> float:
    return float(betaln(canary + 1, baseline + 1)) + (canary + baseline) * math.log(2.0)
