"""Gathers a rollout's evidence: reads the logs, joins clicks, and feeds the tests window by window.

A window is what was read between two looks that lie `window_s` apart: neither the API's clock nor ours can move a
record to another one. What was counted and up to where was read become durable together, with the rollout's row. So a
restart counts nothing twice and forgets nothing: an open window is read again, and the table of users, which is in
memory only, is filled from the logs once more.
"""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any, Final

import msgspec

from deployment.rollout.arm_counts import Answer, ArmCounts
from deployment.rollout.collected import Collected
from deployment.rollout.evidence import Evidence
from deployment.rollout.histogram import quantile
from deployment.rollout.log_tail import LogTail, positions
from deployment.rollout.outcome_log import newest_seq, outcomes_after
from deployment.rollout.states import Rollout
from deployment.rollout.user_table import ARMS, UserTable
from feature_repo.settings import Settings
from serving.rollout_status import ArmStatus, Point

_ANSWERS: Final = msgspec.json.Decoder(Answer)
_SHADOWS: Final = msgspec.json.Decoder(dict[str, Any])
#: Points of the curves that are shown; beyond it every second one goes.
_MAX_POINTS: Final = 160


def collected_from_here(settings: Settings) -> Collected:
    """Return the evidence of a rollout that begins now: none, and where the logs end."""
    offsets, seq = positions(settings.impressions_dir), newest_seq(settings.events_dir)
    shadow = positions(settings.shadow_dir)
    return Collected(origin=offsets, origin_seq=seq, offsets=offsets, shadow_offsets=shadow, seq=seq)


class Collector:
    """The evidence of one rollout in the process of its controller.

    Parameters
    ----------
    settings
        Where the logs are.
    rollout
        What it is the evidence of.
    collected
        As it was made durable last.
    """

    def __init__(self, settings: Settings, rollout: Rollout, collected: Collected) -> None:
        self._settings = settings
        self._rollout = rollout
        self.collected = collected
        self._users = UserTable(int(rollout.profile.clicks.minutes * 60_000_000))
        self._impressions = LogTail(settings.impressions_dir, collected.origin)
        self._shadows = LogTail(settings.shadow_dir, collected.shadow_offsets)
        self._filled = collected.offsets == collected.origin
        self._begin_window()

    @property
    def filled(self) -> bool:
        """Whether the table of users is complete again after a restart; evidence is taken from then on."""
        return self._filled

    @property
    def behind(self) -> bool:
        """Whether there was more to read than one look takes."""
        return not self._filled or self._impressions.more or self._shadows.more

    def look(self, passed_s: float) -> bool:
        """Read what came, some of it where it is much; return whether it is time to close the window."""
        if not self._filled:
            self._fill()
            return False
        for line in self._impressions.look():
            self._take(line)
        for line in self._shadows.look():
            self._take_shadow(line)
        self._window_s += max(0.0, passed_s)
        return self._window_s >= self._rollout.profile.window_s

    def close_window(self, now: datetime) -> Collected:
        """Count the open window; return the evidence to make durable, and go on from it."""
        old, profile, rollout = self.collected, self._rollout.profile, self._rollout
        outcomes, seq = outcomes_after(self._settings.events_dir, old.seq)
        for one in outcomes:
            self._users.answer(*one)
        arms = {name: counts.plus(self._counts.get(name, ArmCounts())) for name, counts in old.arms.items()}
        shadow = copy.deepcopy(old.shadow)
        for record in self._shadow_records:
            shadow.add(record, profile.latency_objective_ms)
        in_canary = rollout.state == "canary"
        self.collected = msgspec.structs.replace(
            old,
            offsets=dict(self._impressions.offsets),
            shadow_offsets=dict(self._shadows.offsets),
            seq=seq,
            arms={**self._counts, **arms},
            shadow=shadow,
            tests=old.tests.after_window(profile, self._users, rollout.step) if in_canary else old.tests,
            windows=old.windows + 1,
        )
        self._add_point(now)
        self._begin_window()
        return self.collected

    def evidence(self) -> Evidence:
        """Return what decides, as of the last closed window."""
        collected, profile, rollout = self.collected, self._rollout.profile, self._rollout
        if rollout.state != "canary":
            return Evidence(shadow=collected.shadow.evidence())
        return Evidence(
            requests={arm: collected.arms[arm].requests if arm in collected.arms else 0 for arm in ARMS},
            guardrails=collected.tests.guardrail_statuses(profile, rollout.step),
            ratio=collected.tests.ratio_status(profile),
            clicks=collected.tests.click_statuses(profile, self._users),
        )

    def follow(self, rollout: Rollout, collected: Collected) -> None:
        """Go on with a rollout of which everything read is counted, or that was paused or resumed meanwhile."""
        self._rollout, self.collected = rollout, collected

    def arms(self) -> list[ArmStatus]:
        """Return what is shown of each arm."""
        return [self._arm(name) for name in ("stable", "baseline", "canary")]

    def _arm(self, name: str) -> ArmStatus:
        counts = self.collected.arms.get(name, ArmCounts())
        arm = self._rollout.candidate if name == "canary" else self._rollout.stable
        strata = self._users.strata(name, "click") if name in ARMS else {}
        users, clicks = (sum(one[n] for one in strata.values()) for n in range(2))
        conversions = sum(one[1] for one in self._users.strata(name, "conversion").values()) if name in ARMS else 0
        return ArmStatus(
            arm=name,
            bundle_id=arm.bundle_id,
            model_version=arm.model_version,
            requests=counts.requests,
            users=strata.get(str(self._rollout.step), (0, 0))[0],
            failures=counts.failures,
            p50_ms=quantile(counts.latency, 0.5),
            p95_ms=quantile(counts.latency, 0.95),
            clicks=clicks,
            conversions=conversions,
            ctr=clicks / users if users else None,
            conversion=conversions / users if users else None,
        )

    def _begin_window(self) -> None:
        self._counts: dict[str, ArmCounts] = {}
        self._shadow_records: list[dict[str, Any]] = []
        self._window_s = 0.0

    def _take(self, line: bytes, *, counted: bool = False) -> None:
        """Take in a line of the impression log; `counted` if its request is among the durable counts already."""
        try:
            answer = _ANSWERS.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # the last line of a process that was killed
        failed = answer.failed(self._rollout.profile.latency_objective_ms)
        step = self._rollout.epochs.get(str(answer.epoch))
        if step is not None and answer.assigned_arm in ARMS:
            self._users.serve(
                answer.request_id, answer.user_id, answer.assigned_arm, step, answer.time_us, failed
            )  # fmt: skip
        if answer.epoch == self._rollout.epoch and not counted:
            self._counts.setdefault(answer.assigned_arm, ArmCounts()).add(answer, failed)

    def _take_shadow(self, line: bytes) -> None:
        try:
            record = _SHADOWS.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if self._rollout.state == "shadow" and record.get("bundle_id") == self._rollout.candidate.bundle_id:
            self._shadow_records.append(record)

    def _fill(self) -> None:
        """Fill the table of users with what was counted before a restart, some of it per look."""
        for line in self._impressions.look_until(self.collected.offsets):
            self._take(line, counted=True)
        if self._impressions.more:
            return
        outcomes, _ = outcomes_after(self._settings.events_dir, self.collected.origin_seq, self.collected.seq)
        for one in outcomes:
            self._users.answer(*one)
        self._impressions = LogTail(self._settings.impressions_dir, self.collected.offsets)
        self._filled = True

    def _add_point(self, now: datetime) -> None:
        collected = self.collected
        if collected.windows % collected.every or self._rollout.state != "canary":
            return
        evidence = self.evidence()
        tests: dict[str, tuple[float | None, float | None, float | None]] = {
            name: (test.value, test.low, test.high)
            for name, test in {**evidence.guardrails, **evidence.clicks}.items()
            if test.value is not None
        }
        requests = {arm: counts.requests for arm, counts in collected.arms.items()}
        series = [*collected.series, Point(now.isoformat(), self._rollout.weight, requests, tests)]
        if len(series) > _MAX_POINTS:
            series, collected.every = series[1::2], collected.every * 2
        collected.series = series
