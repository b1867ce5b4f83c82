"""The statistical tests of one rollout: fed from the table of users, and put into words. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from deployment.rollout.profile import CLICKS, GUARDRAILS, RolloutProfile
from deployment.rollout.user_table import ARMS, Outcome, UserTable
from deployment.statistics.alpha import guardrail_alpha
from deployment.statistics.clicks import ClickTest, Stratum
from deployment.statistics.guardrail import GuardrailTest
from deployment.statistics.sample_ratio import SampleRatioTest
from serving.rollout_status import TestStatus

_OUTCOMES: Final[Mapping[str, Outcome]] = {"ctr": "click", "conversion": "conversion"}
_DONE: Final = {"ctr": "clicked", "conversion": "bought"}


class ArmTests(msgspec.Struct, frozen=True):
    """State of all tests; goes to and from JSON.

    Attributes
    ----------
    guardrails, ratio, clicks
        As of the last window. Guardrails begin anew with every step; the ratio and clicks only with the candidate.
    """

    guardrails: dict[str, GuardrailTest] = {}
    ratio: SampleRatioTest = SampleRatioTest()
    clicks: dict[str, ClickTest] = {}

    def restarted(self) -> ArmTests:
        """Return the state at the beginning of another step."""
        return msgspec.structs.replace(self, guardrails={})

    def after_window(self, profile: RolloutProfile, users: UserTable, step: int) -> ArmTests:
        """Return the state with everything the table of users holds by now."""
        arms = users.of(step)
        seen = {arm: len(arms[arm].known) for arm in ARMS}
        guardrails = {}
        for name in GUARDRAILS:
            old = self.guardrails.get(name, GuardrailTest())
            guardrails[name] = old.update(
                canary_users=_more(seen["canary"], old.canary_users),
                baseline_users=_more(seen["baseline"], old.baseline_users),
                canary_failed=_more(arms["canary"].by_name[name], old.canary_failed),
                baseline_failed=_more(arms["baseline"].by_name[name], old.baseline_failed),
            )
        ratio = self.ratio.update(
            canary_users=_more(users.distinct["canary"], self.ratio.canary_users),
            baseline_users=_more(users.distinct["baseline"], self.ratio.baseline_users),
        )
        clicks = {name: self._click(profile, name).look(*_strata(users, name)) for name in CLICKS}
        return ArmTests(guardrails, ratio, clicks)

    def guardrail_statuses(self, profile: RolloutProfile, step: int) -> dict[str, TestStatus]:
        """Return what each guardrail says of a step."""
        found = {}
        for name in GUARDRAILS:
            test, margin = self.guardrails.get(name, GuardrailTest()), profile.margins[name]
            alpha = guardrail_alpha(name, step, len(profile.steps), profile.alpha)
            low, high = test.interval(alpha)
            state = "worse" if test.worse(alpha) else "not worse" if test.not_worse(margin, alpha) else "open"
            text = (
                f"{test.canary_failed:,} of {test.canary_users:,} users against "
                f"{test.baseline_failed:,} of {test.baseline_users:,} met it"
            )
            found[name] = TestStatus(
                name, state, test.difference, low, high, margin, test.e_value, 1.0 / alpha, text
            )  # fmt: skip
        return found

    def ratio_status(self, profile: RolloutProfile) -> TestStatus:
        """Return whether the arms have the users they should."""
        test = self.ratio
        text = f"{test.canary_users:,} users in the canary, {test.baseline_users:,} in the baseline"
        state = "worse" if test.mismatch(profile.ratio_alpha) else "open"
        total = test.canary_users + test.baseline_users
        value = test.canary_users / total - 0.5 if total else None
        return TestStatus(
            "sample ratio", state, value, e_value=test.e_value, threshold=1.0 / profile.ratio_alpha, text=text
        )

    def click_statuses(self, profile: RolloutProfile, users: UserTable) -> dict[str, TestStatus]:
        """Return what clicks and purchases say; intervals are those of the last look."""
        found = {}
        for name in CLICKS:
            test = self._click(profile, name)
            canary, baseline = (_pooled(one) for one in _strata(users, name))
            looks = f"look {len(test.done)} of {len(test.looks)} at {profile.clicks.users:,} users in each arm"
            text = (
                f"{canary.share:.2%} of {canary.users:,} users against {baseline.share:.2%} of {baseline.users:,} "
                f"{_DONE[name]}; {looks}"
            )
            margin = profile.clicks.margins[name] * baseline.share
            found[name] = TestStatus(name, test.decision, test.difference, test.low, test.high, margin, text=text)
        return found

    def _click(self, profile: RolloutProfile, name: str) -> ClickTest:
        demands = profile.clicks
        looks = tuple((n + 1) / demands.looks for n in range(demands.looks))
        new = ClickTest(demands.users, looks, demands.margins[name], profile.click_alpha)
        return self.clicks.get(name, new)


def _more(now: int, before: int) -> int:
    """Return how much a count has grown; a table filled from logs of which some are gone has not shrunk."""
    return max(now - before, 0)


def _strata(users: UserTable, name: str) -> tuple[dict[str, Stratum], dict[str, Stratum]]:
    canary, baseline = (
        {step: Stratum(*counts) for step, counts in users.strata(arm, _OUTCOMES[name]).items()} for arm in ARMS
    )
    return canary, baseline


def _pooled(strata: dict[str, Stratum]) -> Stratum:
    return Stratum(sum(one.users for one in strata.values()), sum(one.successes for one in strata.values()))
