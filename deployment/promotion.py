"""Moves the champion: gate, commit plan and ledger, then publish what was committed."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime

import redis

from deployment.checks.contract import Progress
from deployment.control_store import Action, ControlStore
from deployment.gate import gate
from deployment.registry import Registry, Version
from deployment.verdict import Verdict
from feature_repo.errors import ConflictError, LarderError, NotFoundError
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from serving.bundle import load_bundle
from serving.plan import Arm, Plan, encode_plan, plan_key, save_plan
from serving.signature import signing_key


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did; `plan` is None where the verdict did not allow it, `unpublished` as `publish` says."""

    version: Version
    verdict: Verdict
    plan: Plan | None
    unpublished: list[str]


class ControlPlane:
    """Promote, roll back and publish for one project."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = signing_key(settings)
        self.store = ControlStore(settings.platform_uri, self._key)
        self.registry = Registry(settings)

    def promote(
        self, number: str | None = None, *, why: str, who: str | None = None, progress: Progress | None = None
    ) -> Promotion:
        """Gate a version and make it the champion if it passes.

        Parameters
        ----------
        number
            Registered version; the newest if None.
        why, who
            Kept in the ledger; `who` is the user of the operating system if None.
        """
        before = self.store.plan()
        version = self.registry.version(number)
        verdict = gate(self._settings, self.registry, version, progress)
        if not verdict.passed:
            return Promotion(version, verdict, None, [])
        plan = self._commit(version, before, "promote", why, who, verdict)
        return Promotion(version, verdict, plan, self.publish())

    def rollback(self, *, why: str, who: str | None = None) -> tuple[Plan, list[str]]:
        """Return to the champion before the current one, whose verdict stands.

        Raises
        ------
        NotFoundError
            If there was none.
        """
        before = self.store.plan()
        if before is None:
            raise NotFoundError("there is no champion to roll back from; promote a version first")
        previous = self._previous(before)
        version = self.registry.version(previous)
        load_bundle(self.registry.fetch_bundle(version))
        plan = self._commit(version, before, "rollback", why, who, None)
        return plan, self.publish()

    def publish(self) -> list[str]:
        """Bring every copy of the plan in line with the committed one: disk, Redis, the MLflow alias.

        Returns
        -------
        list
            What could not be reached, in words. The move stands; `larder models publish` repeats this.
        """
        plan = self.store.plan()
        if plan is None:
            return []
        save_plan(plan, self._settings.plan_path, self._key)
        failed = []
        try:
            connection = connect(self._settings, timeout_ms=2000)
            connection.set(plan_key(self._settings.project), encode_plan(plan, self._key))
        except redis.RedisError as error:
            failed.append(f"Redis ({error}); serving reads the plan from disk")
        try:
            self.registry.set_champion(plan.stable.model_version)
        except LarderError as error:
            failed.append(f"MLflow alias ({error})")
        return failed

    def _previous(self, plan: Plan) -> str:
        """Version that served before the current champion was first promoted."""
        # Going back twice must not return to where one came from: walk the promotions below the current one.
        stack: list[str] = []
        for move in reversed(self.store.history()):
            if move.action == "promote":
                stack.append(move.model_version)
            elif len(stack) > 1:
                stack.pop()
        if len(stack) < 2 or stack[-1] != plan.stable.model_version:
            raise NotFoundError(f"version {plan.stable.model_version} is the first champion: nothing to go back to")
        return stack[-2]

    def _commit(
        self, version: Version, before: Plan | None, action: Action, why: str, who: str | None, verdict: Verdict | None
    ) -> Plan:
        # What was judged is what serves: of a plain ranker, the bundle it was composed into.
        arm = Arm(verdict.bundle_id if verdict else version.bundle_id, version.version)
        if before is not None and before.stable == arm:
            raise ConflictError(f"version {version.version} is the champion already")
        return self.store.commit(
            arm,
            expected_epoch=before.epoch if before else 0,
            action=action,
            who=who or getpass.getuser(),
            why=why,
            now=datetime.now(UTC),
            verdict=verdict.to_dict() if verdict else {},
        )
