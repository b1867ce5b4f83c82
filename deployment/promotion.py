"""Moves the champion: a verdict, one transaction on plan and ledger, then the copies of what was committed."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployment.alias_watch import AliasWatch
from deployment.checks.contract import Progress
from deployment.gate import gate
from deployment.publication import publish_committed, published_epoch
from deployment.registry import Registry, Version
from deployment.store.control_store import ControlStore
from deployment.store.records import Action, LedgerBrokenError, NewEntry
from deployment.verdict import Verdict
from deployment.verdict_entries import record_verdict, recorded_verdict
from feature_repo.errors import BadInputError, ConflictError, LarderError, NotFoundError
from feature_repo.settings import Settings
from serving.bundle import load_bundle
from serving.plan import Arm, Plan
from serving.signature import signing_key


class NotJudgedError(ConflictError):
    """A version that has no verdict yet was asked for where none can be made."""

    code = "not_judged"


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did; `plan` is None where the verdict did not allow it, `unpublished` as `publish` says."""

    version: Version
    verdict: Verdict
    plan: Plan | None
    unpublished: list[str]


class ControlPlane:
    """Judge, promote, roll back and publish for one project.

    Parameters
    ----------
    settings
        Project, database, MLflow.
    registry
        Another client of MLflow, say one that gives up sooner; one of its own if None.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._settings = settings
        self._key = signing_key(settings)
        self.store = ControlStore(settings, self._key)
        self.registry = registry or Registry(settings)
        self.aliases = AliasWatch(self.store, self.registry)

    def promote(
        self,
        number: str | None = None,
        *,
        why: str,
        who: str | None = None,
        expected_epoch: int | None = None,
        judge: bool = True,
        again: bool = False,
        progress: Progress | None = None,
    ) -> Promotion:
        """Make a version the champion if its verdict is a pass.

        The verdict in the ledger counts; a version without one is judged now.

        Parameters
        ----------
        number
            Registered version; the newest if None.
        why, who
            Kept in the ledger; `who` is the user of the operating system if None.
        expected_epoch
            Epoch the decision was made on; the one in force now if None.
        judge
            Whether a version without a verdict may be judged here, which takes minutes.
        again
            Judge also a version that has a verdict.

        Raises
        ------
        ConflictError
            If somebody else moved since, a rollout is running, or the version is the champion already.
        NotJudgedError
            If there is no verdict and none may be made.
        BadInputError
            If the bundle is not the one that was judged.
        """
        before = self.store.plan()
        if expected_epoch is None:
            expected_epoch = before.epoch if before else 0
        version = self.registry.version(number)
        self._require_movable(version, before, expected_epoch)
        champion = before.stable.model_version if before else ""
        verdict = None if again else recorded_verdict(self.store, version.bundle_id, champion)
        if verdict is None:
            if not judge:
                raise NotJudgedError(
                    f"version {version.version} has no verdict against the champion of now; "
                    f"`larder models promote {version.version}` judges it"
                )
            verdict = self.judge(version, who=who, progress=progress)
            version = self.registry.version(version.version)  # a plain ranker has a bundle only now
        if not verdict.passed:
            return Promotion(version, verdict, None, [])
        self._require_judged_content(version, verdict)
        arm = Arm(verdict.bundle_id, version.version)
        plan = self._commit(arm, expected_epoch, "promote", why, who, {"gated_at": verdict.gated_at})
        return Promotion(version, verdict, plan, self.publish())

    def judge(self, version: Version, *, who: str | None = None, progress: Progress | None = None) -> Verdict:
        """Let the gate judge a version, and append the verdict to the ledger."""
        verdict = gate(self._settings, self.registry, version, progress, plan=self.store.plan())
        record_verdict(self.store, verdict, who or getpass.getuser(), datetime.now(UTC))
        return verdict

    def rollback(
        self, *, why: str, who: str | None = None, expected_epoch: int | None = None
    ) -> tuple[Plan, list[str]]:
        """Return to the champion before the current one, whose verdict stands. A rollout that runs ends with it.

        Works with MLflow away: the bundle is in the content store.

        Raises
        ------
        NotFoundError
            If there was none.
        ConflictError
            If somebody else moved since.
        """
        before = self.store.plan()
        if before is None:
            raise NotFoundError("there is no champion to roll back from; promote a version first")
        expected = before.epoch if expected_epoch is None else expected_epoch
        _require_epoch(before, expected)
        arm = self._previous(before)
        load_bundle(self._kept(arm))
        plan = self._commit(arm, expected, "rollback", why, who, {})
        return plan, self.publish()

    def publish(self) -> list[str]:
        """Bring every copy of the plan in line with the committed one: disk, Redis, MLflow's aliases.

        Returns
        -------
        list
            What could not be reached, in words. The move stands; `larder models publish` repeats this.
        """
        failed = self.publish_plan()
        try:
            self.aliases.check(datetime.now(UTC))
        except LarderError as error:
            failed.append(f"MLflow's aliases ({error})")
        return failed

    def publish_plan(self) -> list[str]:
        """Bring the copies that serving reads in line with the committed plan, as `publish` does; for every tick."""
        return publish_committed(self._settings, self.store, self._key)

    def _previous(self, plan: Plan) -> Arm:
        """Champion that served before the current one was first promoted."""
        # Going back twice must not return to where one came from: walk the promotions below the current one.
        stack: list[Arm] = []
        for entry in reversed(self.store.ledger()):
            if not entry.moved:
                continue
            if not entry.intact:
                raise LedgerBrokenError(
                    f"entry {entry.entry} of the ledger is not what was written: it cannot say what to go back to; "
                    "promote a version by its number"
                )
            stable = Arm(**entry.body["plan"]["stable"])
            if entry.action == "rollback" and stable in stack:
                while stack[-1] != stable:
                    stack.pop()
            elif stack[-1:] != [stable]:
                stack.append(stable)
        if len(stack) < 2 or stack[-1] != plan.stable:
            raise NotFoundError(f"version {plan.stable.model_version} is the first champion: nothing to go back to")
        return stack[-2]

    def _kept(self, arm: Arm) -> Path:
        """Directory of a bundle in the content store; fetched from MLflow if it is not there."""
        directory = self._settings.bundles_dir / arm.bundle_id
        return directory if directory.is_dir() else self.registry.fetch_bundle(self.registry.version(arm.model_version))

    def _require_movable(self, version: Version, before: Plan | None, expected_epoch: int) -> None:
        """Refuse before anything is measured what the transaction would refuse in the end.

        Raises
        ------
        ConflictError
            If the plan is not the one the decision was made on, a rollout runs, or it is the champion already.
        """
        _require_epoch(before, expected_epoch)
        if before is None:
            return
        if before.release:
            raise ConflictError(
                f"rollout {before.release} is running; end it first: `larder rollout abort` or `larder rollout force`"
            )
        if before.stable == Arm(version.bundle_id, version.version):
            raise ConflictError(f"version {version.version} is the champion already")

    def _require_judged_content(self, version: Version, verdict: Verdict) -> None:
        """Refuse a bundle that is not, byte for byte, the one that was judged."""
        if version.bundle_id != verdict.bundle_id:
            raise BadInputError(
                f"version {version.version} names bundle {version.bundle_id}, the verdict is on {verdict.bundle_id}: "
                "it was changed after it was judged"
            )
        self.registry.fetch_bundle(version)

    def _commit(
        self,
        arm: Arm,
        expected_epoch: int,
        action: Action,
        why: str,
        who: str | None,
        body: dict[str, Any],
    ) -> Plan:
        now = datetime.now(UTC)
        return self.store.commit(
            lambda _: Plan(0, arm, now),
            expected_epoch=expected_epoch,
            entry=NewEntry(who or getpass.getuser(), action, why, arm.bundle_id, arm.model_version, body),
            now=now,
            seen_epoch=published_epoch(self._settings, self._key),
        )


def _require_epoch(plan: Plan | None, expected: int) -> None:
    """Say early what the transaction would say in the end: that somebody moved."""
    if (plan.epoch if plan else 0) != expected:
        raise ConflictError(
            f"the plan is at epoch {plan.epoch if plan else 0}, the decision was made at {expected}: somebody moved; "
            "look at `larder models history` and decide again"
        )
