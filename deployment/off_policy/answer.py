"""An off-policy question answered by three estimators with intervals, or a refusal that says what is missing. PURE."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deployment.off_policy.estimators import (
    Logged,
    clip_at,
    clipped,
    clipped_mass,
    dr,
    effective_size,
    ips,
    mean_weight_error,
    snips,
)
from deployment.off_policy.intervals import intervals


@dataclass(frozen=True, slots=True)
class Demands:
    """What a log must have to be asked.

    Attributes
    ----------
    effective_rounds
        Least effective sample size of the weights.
    effective_rewards
        Least effective number of rewarded rounds: with fewer, an interval is a guess about rare events.
    units
        Least number of users.
    unsupported
        Largest share of the target's choices that the log could not have made.
    clipped
        Largest share that clipping may leave out.
    weight_errors
        Standard errors by which the mean weight may differ from 1.
    """

    effective_rounds: float = 200.0
    effective_rewards: float = 10.0
    units: int = 50
    unsupported: float = 0.01
    clipped: float = 0.02
    weight_errors: float = 4.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimator's value with its 95 % interval."""

    estimator: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the log says of the target; without `estimates` where it cannot say.

    Attributes
    ----------
    estimates
        IPS, SNIPS and, with a reward model, DR, each with its interval; empty where the answer is refused.
    refused
        Why there is no answer, as sentences.
    rounds, units, rewarded
        Rounds of the log, users they belong to, rounds with a reward.
    effective_rounds, effective_rewards
        What they are worth for this target.
    largest_weight, clip, clipped, unsupported, mean_weight
        Health of the weights, before clipping.
    """

    estimates: tuple[Estimate, ...]
    refused: tuple[str, ...]
    rounds: int
    units: int
    rewarded: int
    effective_rounds: float
    effective_rewards: float
    largest_weight: float
    clip: float
    clipped: float
    unsupported: float
    mean_weight: float

    def __getitem__(self, estimator: str) -> Estimate:
        """Return one estimator's value."""
        return next(one for one in self.estimates if one.estimator == estimator)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def answer(logged: Logged, *, demands: Demands | None = None, clip: float | None = None, seed: int = 0) -> Answer:
    """Estimate what the target earns a round, or refuse.

    Parameters
    ----------
    clip
        Largest weight; `clip_at` if None.
    """
    demands = demands or Demands()
    n, raw = len(logged), logged.weight
    clip = clip_at(n) if clip is None else clip
    weight = clipped(raw, clip)
    found = Answer(
        (),
        (),
        rounds=n,
        units=len(np.unique(logged.unit)),
        rewarded=int((logged.reward > 0).sum()),
        effective_rounds=effective_size(weight),
        effective_rewards=effective_size(weight * logged.reward),
        largest_weight=float(raw.max(initial=0.0)),
        clip=clip,
        clipped=clipped_mass(raw, clip) if n else 0.0,
        unsupported=float(logged.unsupported.mean()) if n else 0.0,
        mean_weight=float(raw.mean()) if n else 0.0,
    )
    refused = _missing(found, mean_weight_error(raw, logged.unsupported), demands)
    if refused:
        return _with(found, (), refused)
    terms = {"IPS": ips(logged.reward, weight), "SNIPS": snips(logged.reward, weight)}
    if logged.predicted is not None and logged.expected is not None:
        terms["DR"] = dr(logged.reward, weight, logged.predicted, logged.expected)
    bounds = intervals(list(terms.values()), logged.unit, seed=seed)
    estimates = tuple(
        Estimate(name, one.value, float(low), float(high))
        for (name, one), (low, high) in zip(terms.items(), bounds, strict=True)
    )
    return _with(found, estimates, ())


def _with(found: Answer, estimates: tuple[Estimate, ...], refused: tuple[str, ...]) -> Answer:
    fields = {name: getattr(found, name) for name in Answer.__dataclass_fields__}
    return Answer(**(fields | {"estimates": estimates, "refused": refused}))


def _missing(found: Answer, weight_errors: float, demands: Demands) -> tuple[str, ...]:
    """Return what a log lacks, the gravest first."""
    if not found.rounds:
        return ("The log has no round in which anything was drawn.",)
    out = []
    if found.unsupported > demands.unsupported:
        out.append(
            f"{found.unsupported:.1%} of the target's choices could never have been made by the policy that wrote the "
            f"log (at most {demands.unsupported:.0%}): nothing is known of them."
        )
    if found.clipped > demands.clipped:
        out.append(
            f"{found.clipped:.1%} of the weight is of choices so rare in the log that clipping leaves it out (at most "
            f"{demands.clipped:.0%}; the largest weight is {found.largest_weight:,.0f}, clipped at "
            f"{found.clip:,.0f})."
        )
    if not abs(weight_errors) <= demands.weight_errors:
        size = "many" if math.isinf(weight_errors) else f"{abs(weight_errors):.1f}"
        out.append(
            f"The mean weight is {found.mean_weight:.3f} and must be {1 - found.unsupported:.3f}; that is {size} "
            "standard errors away: the propensities are not those of the policy that wrote the log."
        )
    if found.units < demands.units:
        out.append(f"The log is of {found.units} users; at least {demands.units} are needed.")
    if found.effective_rounds < demands.effective_rounds:
        out.append(
            f"Its {found.rounds:,} rounds are worth {found.effective_rounds:,.0f} of the target's own; at least "
            f"{demands.effective_rounds:,.0f} are needed."
        )
    if found.effective_rewards < demands.effective_rewards:
        out.append(
            f"Its {found.rewarded:,} clicks are worth {found.effective_rewards:,.1f} of the target's own; at least "
            f"{demands.effective_rewards:,.0f} are needed."
        )
    return tuple(out)
