"""Is the canary failing more? An always-valid test of one guardrail, and how much worse it could be. PURE.

A guardrail is a yes or no per request: an error, a fallback, slower than the objective, not finite, empty. What is
counted is users, each once per step: of the users who ever failed, was the next one in the canary or in the baseline?
Users were put into the two arms by equal shares of a hash, so where the arm makes no difference this is a fair coin,
whatever else is true: users may fail again and again, failures may come in bursts and go with the hour of the day. The
price is that a user's second failure says nothing.

Evidence is an e-process (Ramdas, Grünwald, Vovk and Shafer 2023, Game-theoretic statistics and safe anytime-valid
inference): a mixture of likelihood ratios over how many times as often the canary fails. Its mean is at most 1 at every
moment where the canary is no worse, so that it ever reaches 1 / alpha has probability alpha at most (Ville), however
often one looks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from scipy.special import betaln

#: How many times as often the canary's users may fail, of which the mixture believes each alike.
RISK_RATIOS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
#: Exponents of the bound on how many failures were to be expected; each pays a share of alpha.
_RATES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_HALVINGS: Final = 60


@dataclass(frozen=True, slots=True)
class GuardrailTest:
    """Counts of one step, and the most evidence there ever was.

    Attributes
    ----------
    canary_users, baseline_users
        Users with a request in the step.
    canary_failed, baseline_failed
        Users with a failure in it.
    most_log_e
        Largest natural logarithm of the e-value at the end of any window.
    """

    canary_users: int = 0
    baseline_users: int = 0
    canary_failed: int = 0
    baseline_failed: int = 0
    most_log_e: float = 0.0

    def update(
        self, *, canary_users: int, baseline_users: int, canary_failed: int, baseline_failed: int
    ) -> GuardrailTest:
        """Add what was new in a window: users seen for the first time in the step, users who failed for the first time.

        Raises
        ------
        ValueError
            If a count is negative, or more users failed than there are.
        """
        new = replace(
            self,
            canary_users=self.canary_users + canary_users,
            baseline_users=self.baseline_users + baseline_users,
            canary_failed=self.canary_failed + canary_failed,
            baseline_failed=self.baseline_failed + baseline_failed,
        )
        if min(canary_users, baseline_users, canary_failed, baseline_failed) < 0:
            raise ValueError("a window cannot take users or failures away")
        if new.canary_failed > new.canary_users or new.baseline_failed > new.baseline_users:
            raise ValueError("more users failed than were seen")
        return replace(new, most_log_e=max(self.most_log_e, new.log_e))

    @property
    def log_e(self) -> float:
        """Natural logarithm of the e-value now."""
        return log_e_value(self.canary_failed, self.baseline_failed)

    @property
    def e_value(self) -> float:
        """Evidence now that the canary fails more; 1 is none."""
        return math.exp(min(self.log_e, 700.0))

    def worse(self, alpha: float) -> bool:
        """Whether the canary is worse: says so falsely in at most a share `alpha` of all steps, looked at for ever."""
        return self.most_log_e >= -math.log(alpha)

    @property
    def difference(self) -> float | None:
        """Share of the canary's users who failed less that of the baseline's; None without users in both."""
        if not self.canary_users or not self.baseline_users:
            return None
        return self.canary_failed / self.canary_users - self.baseline_failed / self.baseline_users

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return an interval of `difference` that holds at all moments together, with probability 1 - `alpha`.

        So many failures are to be expected in all (exponential bounds, valid for users of any and of changing risk),
        and such a share of them falls into the canary (a confidence sequence by the beta mixture of Robbins 1970; the
        arms' risk ratio is taken as constant over the step).
        """
        if not self.canary_users or not self.baseline_users:
            return -1.0, 1.0
        failed = self.canary_failed + self.baseline_failed
        few, many = _expected(failed, alpha / 2)
        shares = _share(self.canary_failed, failed, alpha / 2)
        low, high = (share / self.canary_users - (1.0 - share) / self.baseline_users for share in shares)
        return max(low * (few if low > 0 else many), -1.0), min(high * (many if high > 0 else few), 1.0)

    def not_worse(self, margin: float, alpha: float) -> bool:
        """Whether the canary is certainly worse by less than `margin` (a difference of shares of users)."""
        return self.interval(alpha)[1] < margin

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> GuardrailTest:
        """Restore a state."""
        return cls(**state)


def log_e_value(canary_failed: int, baseline_failed: int) -> float:
    """Natural logarithm of the evidence that failures favour the canary, each falling there with 1/2 if they do not."""
    logs = [
        canary_failed * math.log(2.0 * ratio / (1.0 + ratio)) + baseline_failed * math.log(2.0 / (1.0 + ratio))
        for ratio in RISK_RATIOS
    ]
    most = max(logs)
    return most + math.log(sum(math.exp(one - most) for one in logs) / len(logs))


def _expected(failed: int, alpha: float) -> tuple[float, float]:
    """Bound the sum of all users' risks, given how many failed; at all moments together.

    exp(rate * failed - (exp(rate) - 1) * sum of risks) is a supermartingale for each rate, above 0 and below.
    """
    paid = math.log(2 * len(_RATES) / alpha)
    most = min((rate * failed + paid) / -math.expm1(-rate) for rate in _RATES)
    least = max((rate * failed - paid) / math.expm1(rate) for rate in _RATES)
    return max(least, 0.0), most


def _share(hits: int, n: int, alpha: float) -> tuple[float, float]:
    """Confidence sequence of a coin: all p against which the beta mixture has less than 1 / alpha of evidence."""
    if not n:
        return 0.0, 1.0
    mixture = float(betaln(hits + 0.5, n - hits + 0.5) - betaln(0.5, 0.5))

    def refused(p: float) -> bool:
        heads = hits * math.log(p) if hits else 0.0
        tails = (n - hits) * math.log1p(-p) if n > hits else 0.0
        return mixture - heads - tails >= -math.log(alpha)

    middle = min(max(hits / n, 1e-12), 1.0 - 1e-12)
    return _edge(refused, middle, 1e-12), _edge(refused, middle, 1.0 - 1e-12)


def _edge(refused: Any, inside: float, outside: float) -> float:
    """Find by halving where the interval around `inside` ends on the way to `outside`."""
    if not refused(outside):
        return round(outside)
    for _ in range(_HALVINGS):
        between = (inside + outside) / 2
        inside, outside = (inside, between) if refused(between) else (between, outside)
    return outside
