"""Do the canary's users click and buy as much? Compared per user, by step, at a few planned looks. PURE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scipy.stats import norm

from deployment.statistics.group_sequential import next_boundary

Decision = Literal["open", "worse", "better", "not worse", "undecided"]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Users of one arm in one step: how many, how many of them did it (clicked, bought)."""

    users: int
    successes: int

    @property
    def share(self) -> float:
        """Share of users who did it."""
        return self.successes / self.users if self.users else 0.0


@dataclass(frozen=True, slots=True)
class ClickTest:
    """A group-sequential comparison of shares of users, stratified by step.

    A user counts once per step, however much they click: users are independent, clicks are not. Weights of strata are
    those of Mantel and Haenszel, so that a step in which the arms had other users than in the next confounds nothing.

    Attributes
    ----------
    planned
        Users per arm at the end of the plan.
    looks
        Fractions of `planned` from which on a look is taken.
    margin
        Loss, as a share of the baseline's rate, that is tolerated.
    alpha
        Two-sided, for all looks together.
    done
        Fractions at which looks were taken.
    decision
        What the last look said; stays once it is not "open".
    difference, low, high
        Of the last look: canary less baseline, with its repeated confidence interval.
    """

    planned: int
    looks: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    margin: float = 0.05
    alpha: float = 0.05
    done: tuple[float, ...] = ()
    decision: Decision = "open"
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def look(self, canary: Mapping[str, Stratum], baseline: Mapping[str, Stratum]) -> ClickTest:
        """Look at the counts so far, by step, if a look is due; else return the same state."""
        users = min(sum(one.users for one in canary.values()), sum(one.users for one in baseline.values()))
        fraction = min(users / self.planned, 1.0)
        if self.decision != "open" or len(self.done) >= len(self.looks) or fraction < self.looks[len(self.done)]:
            return self
        difference, error = stratified_difference(canary, baseline)
        if not error > 0.0:
            return self  # nobody, or everybody, clicked: wait
        bound = next_boundary(self.done, fraction, self.alpha)
        low, high = difference - bound * error, difference + bound * error
        rate = sum(one.successes for one in baseline.values()) / sum(one.users for one in baseline.values())
        last = len(self.done) + 1 == len(self.looks) or fraction >= 1.0
        decision: Decision = "open"
        if high < 0.0:
            decision = "worse"
        elif low > 0.0:
            decision = "better"
        elif last:
            decision = "not worse" if low > -self.margin * rate else "undecided"
        return replace(self, done=(*self.done, fraction), decision=decision, difference=difference, low=low, high=high)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> ClickTest:
        """Restore a state, from JSON too."""
        return cls(**{**state, "looks": tuple(state["looks"]), "done": tuple(state["done"])})


def stratified_difference(canary: Mapping[str, Stratum], baseline: Mapping[str, Stratum]) -> tuple[float, float]:
    """Return the Mantel-Haenszel difference of shares, canary less baseline, and its standard error; 0, 0 without data.

    Only steps in which both arms have users count.
    """
    total = difference = variance = 0.0
    for step in canary.keys() & baseline.keys():
        one, other = canary[step], baseline[step]
        if not one.users or not other.users:
            continue
        weight = one.users * other.users / (one.users + other.users)
        # Half a user more on either side keeps the error above 0 where nobody did it.
        spread = sum((p := (arm.successes + 0.5) / (arm.users + 1.0)) * (1.0 - p) / arm.users for arm in (one, other))
        total += weight
        difference += weight * (one.share - other.share)
        variance += weight**2 * spread
    return (difference / total, math.sqrt(variance) / total) if total else (0.0, 0.0)


def users_needed(rate: float, change: float, *, alpha: float = 0.05, power: float = 0.9) -> int:
    """Return the users per arm that show a relative change of a share, at one look.

    Parameters
    ----------
    rate
        Share of the baseline's users, in (0, 1).
    change
        Relative: -0.2 is a fifth less.
    alpha, power
        Two-sided error, and how often the change is found.
    """
    other = rate * (1.0 + change)
    spread = rate * (1.0 - rate) + other * (1.0 - other)
    z = float(norm.ppf(1.0 - alpha / 2.0) + norm.ppf(power))
    return math.ceil(z**2 * spread / (other - rate) ** 2)
