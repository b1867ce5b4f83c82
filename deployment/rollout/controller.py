"""The rollout controller: watches a candidate's traffic and moves it on, or back. One is active, others wait.

Everything it must not forget is in the store, written in one transaction with plan and ledger; whatever else it holds
can be made again. So it may be killed anywhere. Serving obeys the plan that was committed last, with or without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec
import redis

from deployment.publication import publish_committed
from deployment.rollout import states
from deployment.rollout.collected import Collected
from deployment.rollout.collector import Collector, collected_from_here
from deployment.rollout.kept import status_of
from deployment.rollout.leadership import TTL_S, Leadership
from deployment.rollout.moves import CrashPoint, Current, Moves, nowhere
from deployment.store.control_store import ControlStore
from deployment.store.records import Lease
from feature_repo.errors import ConflictError, LarderError
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from serving.rollout_status import RolloutStatus, encode_status, rollout_status_key
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)
TICK_S: Final = 1.0
#: Who the ledger says it was.
WHO: Final = "controller"
_REDIS_TIMEOUT_MS: Final = 500


class Intake(Protocol):
    """What brings in new candidates: see `intake.py`."""

    def next(self, moves: Moves, collected: Callable[[], Collected], now: datetime, lease: Lease) -> Current | None:
        """Start the next rollout; None if there is nothing new."""


class Beside(Protocol):
    """Slow work beside the ticks (MLflow): see `beside.py`."""

    def ended(self, current: Current) -> bool:
        """Take up the report of a rollout that ended; return whether it is done."""


class Controller:
    """Controller of one project.

    Parameters
    ----------
    settings
        The project.
    store
        Its store; one of its own if None.
    beside
        Writes reports; None: nobody does.
    intake
        Brings in what the gate judged; None: rollouts are only started by hand.
    now, clock
        Wall clock, aware; monotonic seconds. Only the latter decides anything.
    ttl_s, holder
        Of the lease.
    crash_point
        Called at named places; tests kill the process there.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: ControlStore | None = None,
        beside: Beside | None = None,
        intake: Intake | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        ttl_s: float = TTL_S,
        holder: str | None = None,
        crash_point: CrashPoint = nowhere,
    ) -> None:
        self._settings = settings
        self._key = signing_key(settings)
        self._store = store or ControlStore(settings, self._key)
        self.moves = Moves(settings, self._store, self._key, crash_point)
        self.leadership = Leadership(self._store, now, clock, ttl_s=ttl_s, holder=holder)
        self._beside = beside
        self._intake = intake
        self._now = now
        self._clock = clock
        self._crash_point = crash_point
        self._redis = connect(settings, timeout_ms=_REDIS_TIMEOUT_MS)
        self._current: Current | None = None
        self._collector: Collector | None = None
        self._last_tick: float | None = None
        self.problem = ""
        #: What was published last; None without a rollout.
        self.status: RolloutStatus | None = None

    def run(self, stop: threading.Event, every_s: float = TICK_S, on_tick: Callable[[str], None] | None = None) -> None:
        """Tick until told to stop; a dependency that is away changes nothing, and the next tick tries again."""
        try:
            while not stop.is_set():
                began = self._clock()
                said = self.tick_safely()
                if on_tick is not None:
                    on_tick(said)
                if self._collector is None or not self._collector.behind:
                    stop.wait(max(0.0, every_s - (self._clock() - began)))
        finally:
            try:
                self.leadership.release()
            except LarderError as error:
                _LOG.warning("the lease could not be given back: %s", error)

    def tick_safely(self) -> str:
        """Tick; return what is going on in a word, or what the problem is. Never raises for what is away."""
        try:
            said = self.tick()
            self.problem = ""
        except ConflictError as error:
            # Somebody else moved: look again with the next tick.
            self._forget()
            self.leadership.lost() if "lease" in str(error) else None
            said = self._noted(f"looks again: {error}")
        except (LarderError, OSError, redis.RedisError) as error:
            said = self._noted(f"waits: {error}")
        return said

    def tick(self) -> str:
        """Do everything that is due once.

        Returns
        -------
        str
            "standby", "idle", or the state of the rollout.

        Raises
        ------
        ConflictError
            If what this process knew is no longer so.
        UnavailableError
            If the database cannot be used.
        """
        self._crash_point("tick")
        lease = self.leadership.hold()
        passed_s = self._passed()
        if lease is None:
            self._forget()
            return "standby"
        self._crash_point("lease_held")
        self._publish_plan()
        self._look_at_store()
        if self._current is not None and self._current.rollout.active:
            self._watch(self._current, passed_s, lease)
        else:
            self._take_in(lease)
        self._finish(lease)
        self._publish_status()
        return self._current.rollout.state if self._current is not None else "idle"

    def _look_at_store(self) -> None:
        """Follow what people's commands did to the rollout."""
        known, found = self._current, self.moves.current()
        if found is None:
            self._forget()
            return
        if known is not None and known.row.rollout_id == found.row.rollout_id:
            if known.row.revision == found.row.revision:
                return
            if known.rollout.epoch == found.rollout.epoch and self._collector is not None and found.rollout.active:
                # Paused or resumed. Time watched since the last window is lost: a pause must not make it longer.
                self._current = found
                self._collector.follow(found.rollout, found.kept.collected)
                return
        self._current, self._collector = found, None

    def _watch(self, current: Current, passed_s: float, lease: Lease) -> None:
        plan = self._store.plan()
        if plan is None or plan.release != current.row.rollout_id:
            version = f"version {plan.stable.model_version}" if plan else "nothing"
            why = f"the champion was moved by hand, to {version}: the rollout ended with it"
            self._current = self.moves.abort(current, who=WHO, why=why, now=self._now(), lease=lease)
            return
        if self._collector is None:
            self._collector = Collector(self._settings, current.rollout, current.kept.collected)
        due = self._collector.look(passed_s)
        self._crash_point("evidence_read")
        rollout = states.passed(current.rollout, passed_s)
        self._current = current = Current(current.row, msgspec.structs.replace(current.kept, rollout=rollout))
        if due:
            self._judge(current, self._collector, lease)

    def _judge(self, current: Current, collector: Collector, lease: Lease) -> None:
        """Close the window, decide, and carry it out."""
        collected = collector.close_window(self._now())
        self._crash_point("window_closed")
        evidence = collector.evidence()
        tests = [*evidence.guardrails.values(), *evidence.clicks.values()]
        tests += [evidence.ratio] if evidence.ratio else []
        kept = msgspec.structs.replace(current.kept, collected=collected, arms=collector.arms(), tests=tests)
        decision = states.decide(kept.rollout, evidence)
        self._crash_point(f"decided_{decision.kind}")
        current = self.moves.carry_out(Current(current.row, kept), decision, who=WHO, now=self._now(), lease=lease)
        self._current = current
        if decision.kind == "hold" or current.rollout.active:
            collector.follow(current.rollout, current.kept.collected)
        if decision.kind != "hold":
            _LOG.info("rollout %s: %s, %s", current.row.rollout_id, current.rollout.state, decision.reason)
            self._crash_point("before_publish")
            self._publish_plan()
            self._crash_point("after_publish")

    def _take_in(self, lease: Lease) -> None:
        """Take in what the gate judged, and start the next candidate's rollout."""
        if self._intake is None:
            return
        started = self._intake.next(self.moves, lambda: collected_from_here(self._settings), self._now(), lease)
        if started is not None:
            self._current, self._collector = started, None
            self._publish_plan()

    def _finish(self, lease: Lease) -> None:
        """See to the report of a rollout that ended."""
        current = self._current
        if current is None or current.rollout.active or current.kept.reported or self._beside is None:
            return
        if self._beside.ended(current):
            self._crash_point("before_reported")
            kept = msgspec.structs.replace(current.kept, reported=True)
            self._current = self.moves.save(current, kept, lease=lease)

    def _publish_plan(self) -> None:
        self._crash_point("before_publish_plan")
        for problem in publish_committed(self._settings, self._store, self._key):
            self._noted(f"not published to {problem}")

    def _publish_status(self) -> None:
        if self._current is None:
            self.status = None
            return
        plan = self._store.plan()
        self.status = status = status_of(self._current.kept, plan.epoch if plan else 0, self._now())
        self._crash_point("before_status")
        try:
            self._redis.set(rollout_status_key(self._settings.project), encode_status(status))
        except (redis.RedisError, OSError) as error:
            self._noted(f"the status was not published to Redis: {error}")

    def _passed(self) -> float:
        """Return the seconds since the last tick by a clock that cannot be set; 0 for the first one."""
        now, last = self._clock(), self._last_tick
        self._last_tick = now
        return 0.0 if last is None else now - last

    def _forget(self) -> None:
        self._current, self._collector = None, None

    def _noted(self, problem: str) -> str:
        """Log a problem once, not at every tick."""
        if problem != self.problem:
            _LOG.warning("controller %s", problem)
        self.problem = problem
        return problem
