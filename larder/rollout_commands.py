"""What people do to rollouts: through the store, so that it works whether or not a controller runs."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import redis

from deployment.publication import publish_committed
from deployment.rollout.collector import collected_from_here
from deployment.rollout.kept import status_of
from deployment.rollout.moves import Current, Moves
from deployment.rollout.profile_file import load_profile
from deployment.rollout.report import write_report
from deployment.store.control_store import ControlStore
from deployment.verdict_entries import recorded_verdict
from feature_repo.errors import ConflictError, LarderError, NotFoundError
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from serving.plan import Arm
from serving.rollout_status import RolloutStatus, decode_status, rollout_status_key
from serving.signature import signing_key

T = TypeVar("T")
#: The controller writes the rollout about once a window: a command that meets such a write looks again.
_ATTEMPTS: Final = 8
_MLFLOW_S: Final = 10


class RolloutCommands:
    """Commands on one project's rollouts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = signing_key(settings)
        self._store = ControlStore(settings, self._key)
        self._moves = Moves(settings, self._store, self._key)
        self._who = getpass.getuser()
        self._unpublished: list[str] = []

    def start(self, number: str | None, profile: str | None, why: str) -> Current:
        """Start a rollout of a version with a passing verdict against the champion of now.

        Raises
        ------
        ConflictError
            If there is no such verdict, a rollout runs, or the version is the champion.
        """
        from deployment.registry import Registry  # MLflow takes seconds to import; no other command needs it

        plan = self._store.plan()
        if plan is None:
            raise NotFoundError("there is no champion to compare with; `larder models promote` makes the first one")
        registry = Registry(self._settings, retries=0, timeout_s=_MLFLOW_S)
        version = registry.version(number)
        verdict = recorded_verdict(self._store, version.bundle_id, plan.stable.model_version)
        if verdict is None:
            raise ConflictError(
                f"version {version.version} was not judged against the champion, version {plan.stable.model_version}; "
                "the controller judges new versions, and `larder models gate` does now"
            )
        if not verdict.passed:
            raise ConflictError(f"the verdict on version {version.version} is not a pass: see its report in MLflow")
        registry.fetch_bundle(version)
        current = self._moves.start(
            Arm(version.bundle_id, version.version),
            load_profile(self._settings, profile or self._settings.rollout_profile),
            collected_from_here(self._settings),
            who=self._who,
            why=why,
            now=datetime.now(UTC),
            body={"gated_at": verdict.gated_at},
        )
        self._publish()
        return current

    def status(self) -> RolloutStatus:
        """Return the newest status: what the controller published, or what is in the store where that is not newer.

        Raises
        ------
        NotFoundError
            If no rollout was ever started.
        """
        current = self._moves.current()
        if current is None:
            raise NotFoundError("no rollout was ever started; `larder rollout start` starts one")
        plan = self._store.plan()
        stored = status_of(current.kept, plan.epoch if plan else 0, datetime.now(UTC))
        shown = self._published()
        same = shown is not None and (shown.rollout_id, shown.state, shown.step, shown.paused, shown.epoch) == (
            stored.rollout_id, stored.state, stored.step, stored.paused, stored.epoch,
        )  # fmt: skip
        return shown if shown is not None and same else stored

    def pause(self, why: str) -> str:
        """Pause; return the rollout's id."""
        return self._retried(
            lambda current: self._moves.pause(current, who=self._who, why=why, now=_now())
        ).row.rollout_id

    def resume(self, why: str) -> str:
        """Resume; return the rollout's id."""
        return self._retried(
            lambda current: self._moves.resume(current, who=self._who, why=why, now=_now())
        ).row.rollout_id

    def abort(self, why: str) -> str:
        """Abort; return the rollout's id."""
        done = self._retried(lambda current: self._moves.abort(current, who=self._who, why=why, now=_now()))
        self._publish()
        return done.row.rollout_id

    def force(self, why: str, *, promote: bool) -> Current:
        """Force; return the rollout after it."""
        began = self._moves.running().rollout.epoch

        def once(current: Current) -> Current:
            if current.rollout.epoch != began:
                raise _MovedError(
                    f"rollout {current.row.rollout_id} has moved by itself meanwhile: look, and decide again"
                )
            return self._moves.force(current, who=self._who, why=why, now=_now(), champion=promote)

        forced = self._retried(once)
        self._publish()
        return forced

    def report(self, rollout_id: str | None) -> Path:
        """Write the report as it stands; MLflow gets the final one from the controller."""
        current = self._moves.current(rollout_id)
        if current is None:
            raise NotFoundError(f"there is no rollout {rollout_id}" if rollout_id else "no rollout was ever started")
        return write_report(self._settings, current, self._store, None)

    def print_unpublished(self) -> None:
        """Say which copy of the plan could not be brought in line."""
        for what in self._unpublished:
            print(f"not published to {what}; the controller, or `larder models publish`, tries again")

    def _retried(self, act: Callable[[Current], Current]) -> Current:
        """Act on the running rollout; where the controller wrote at the same moment, look again."""
        for _ in range(_ATTEMPTS - 1):
            current = self._moves.running()
            try:
                return act(current)
            except _MovedError:
                raise
            except ConflictError:
                after = self._moves.current()
                if after is None or after.row.revision == current.row.revision:
                    raise
        return act(self._moves.running())

    def _publish(self) -> None:
        self._unpublished = publish_committed(self._settings, self._store, self._key)

    def _published(self) -> RolloutStatus | None:
        try:
            data = connect(self._settings, timeout_ms=500).get(rollout_status_key(self._settings.project))
            return decode_status(data) if isinstance(data, bytes) else None
        except (redis.RedisError, LarderError, OSError):
            return None


class _MovedError(ConflictError):
    """The rollout is no longer at the step the operator saw."""


def _now() -> datetime:
    return datetime.now(UTC)
