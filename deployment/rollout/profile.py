"""What a rollout demands before it goes on, by name: steps, least requests and times, margins, error rates. PURE."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from feature_repo.errors import BadInputError
from serving.plan import MAX_WEIGHT

#: Ways a request can fail, counted by the arm the user was assigned to.
GUARDRAILS: Final = ("error", "fallback", "slow", "non_finite", "empty")
#: What is counted per user.
CLICKS: Final = ("ctr", "conversion")


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight of the canary.

    Attributes
    ----------
    weight
        Of 10,000 buckets of users.
    requests, minutes
        Least number of requests in each of canary and baseline, and least time, before the next step.
    """

    weight: int
    requests: int
    minutes: float


class ShadowDemands(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the shadow must show; with 0 `comparisons` there is no shadow.

    `error_share` and `slow_share` are of comparisons; `overlap_floor` is only reported.
    """

    comparisons: int
    minutes: float
    error_share: float
    slow_share: float
    overlap_floor: float


class ClickDemands(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How clicks and purchases of users are judged.

    Attributes
    ----------
    users
        With a recommendation, in each arm: the horizon.
    looks
        How often, at equal parts of the horizon.
    minutes
        How long after its recommendation a click or purchase counts.
    margins
        By what share of the baseline's value it may be lower; one per name of `CLICKS`.
    required
        Those that must be shown to be not worse before there is a new champion; the others only stop what is worse.
    """

    users: int
    looks: int
    minutes: float
    margins: dict[str, float]
    required: tuple[str, ...]


class RolloutProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All demands of a rollout.

    Attributes
    ----------
    latency_objective_ms
        Slower requests fail the guardrail `slow`.
    alpha
        Probability that a candidate that is no worse is rolled back by any guardrail, ever.
    ratio_alpha, click_alpha
        The same for the test of the sample ratio, and for clicks and purchases.
    window_s
        Seconds after which evidence is taken together, judged and kept.
    max_hold_minutes
        A step without a conclusion for so long is rolled back.
    margins
        By how much the share of users who meet a failure may be higher than the baseline's; one per name of
        `GUARDRAILS`.
    """

    name: str
    description: str
    latency_objective_ms: float
    alpha: float
    ratio_alpha: float
    click_alpha: float
    window_s: float
    max_hold_minutes: float
    shadow: ShadowDemands
    steps: tuple[Step, ...]
    margins: dict[str, float]
    clicks: ClickDemands

    def minutes_of(self, step: int) -> float:
        """Least time of a step; -1 is the shadow."""
        return self.shadow.minutes if step < 0 else self.steps[step].minutes


def read_profile(name: str, values: dict[str, Any]) -> RolloutProfile:
    """Make a profile of a table of the file, and check it.

    Raises
    ------
    BadInputError
        For a name that is missing or unknown, or a value that cannot be meant.
    """
    try:
        profile = msgspec.convert({"name": name, **values}, RolloutProfile)
    except msgspec.ValidationError as error:
        raise BadInputError(f"rollout profile {name!r}: {error}") from None
    for wrong in _impossible(profile):
        raise BadInputError(f"rollout profile {name!r}: {wrong}")
    return profile


def _impossible(profile: RolloutProfile) -> list[str]:
    """Return what cannot be meant."""
    wrong = []
    weights = [step.weight for step in profile.steps]
    if not weights or weights != sorted(set(weights)) or weights[0] < 1 or weights[-1] > MAX_WEIGHT:
        wrong.append(f"steps must have rising weights from 1 to {MAX_WEIGHT}, not {weights}")
    if any(step.requests < 1 for step in profile.steps):
        wrong.append("every step needs at least 1 request")
    if set(profile.margins) != set(GUARDRAILS):
        wrong.append(f"margins must name {', '.join(GUARDRAILS)}, not {', '.join(profile.margins)}")
    if set(profile.clicks.margins) != set(CLICKS):
        wrong.append(f"clicks.margins must name {', '.join(CLICKS)}, not {', '.join(profile.clicks.margins)}")
    if set(profile.clicks.required) - set(CLICKS):
        wrong.append(f"clicks.required may name {', '.join(CLICKS)}, not {', '.join(profile.clicks.required)}")
    if profile.clicks.users < 2 or profile.clicks.looks < 1:
        wrong.append("clicks needs at least 2 users and 1 look")
    if profile.shadow.comparisons < 0:
        wrong.append("shadow.comparisons cannot be negative")
    wrong += _out_of_range(profile)
    longest = max([profile.shadow.minutes, *(step.minutes for step in profile.steps)])
    if not longest < profile.max_hold_minutes:
        wrong.append(f"max_hold_minutes must be longer than every step ({longest} minutes)")
    return wrong


def _out_of_range(profile: RolloutProfile) -> list[str]:
    shares = {
        "alpha": profile.alpha,
        "ratio_alpha": profile.ratio_alpha,
        "click_alpha": profile.click_alpha,
        **{f"margins.{name}": value for name, value in profile.margins.items()},
        **{f"clicks.margins.{name}": value for name, value in profile.clicks.margins.items()},
    }
    at_least_0 = {
        "shadow.minutes": profile.shadow.minutes,
        "shadow.error_share": profile.shadow.error_share,
        "shadow.slow_share": profile.shadow.slow_share,
        "clicks.minutes": profile.clicks.minutes,
        **{f"minutes of step {n}": step.minutes for n, step in enumerate(profile.steps, start=1)},
    }
    above_0 = {"latency_objective_ms": profile.latency_objective_ms, "window_s": profile.window_s}
    wrong = [f"{name} must lie between 0 and 1, not {value}" for name, value in shares.items() if not 0 < value < 1]
    wrong += [
        f"{name} must be 0 or more, not {value}"
        for name, value in at_least_0.items()
        if not (value >= 0 and math.isfinite(value))
    ]
    wrong += [
        f"{name} must be above 0, not {value}"
        for name, value in above_0.items()
        if not (value > 0 and math.isfinite(value))
    ]
    if not math.isfinite(profile.max_hold_minutes):
        wrong.append("max_hold_minutes must be a number of minutes")
    return wrong
