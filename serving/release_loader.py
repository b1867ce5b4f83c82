"""Follows the plan: loads, checks and warms up the stable bundle, then swaps it in; a bad one changes nothing.

A canary and a shadow are loaded by processes of their own (`child_scorer`), which outlive changes of the weight.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from datetime import UTC, datetime

from redis.asyncio import Redis

from feature_repo.errors import BadInputError, LarderError
from feature_repo.settings import Settings
from serving.bundle import Bundle, load_bundle
from serving.child_scorer.child import ChildScorer, Restart
from serving.child_scorer.process import ENTRY, ChildLimits
from serving.metrics import Metrics
from serving.plan import Arm, Plan, decode_plan, load_plan, plan_key, require_bundle_id, save_plan
from serving.redis_client import AWAY, BACKGROUND_TIMEOUT_S
from serving.signature import signing_key
from serving.state import Release, ServingState
from serving.warm_up import warm_up

_LOG = logging.getLogger(__name__)
#: A bundle that could not be loaded is tried again after this time: it may still be on its way to the disk.
RETRY_S = 10.0
#: Model version of a bundle that the process was told to serve.
PINNED = "pinned"


class ReleaseLoader:
    """Brings `state.release` up to the newest plan; `poll` is called every `plan_poll_ms`.

    Parameters
    ----------
    limits, entry
        Of candidates' processes (`ChildScorer`); the settings' memory and the usual entry if None.
    """

    def __init__(
        self,
        settings: Settings,
        client: Redis,
        state: ServingState,
        metrics: Metrics,
        *,
        limits: ChildLimits | None = None,
        entry: str = ENTRY,
    ) -> None:
        self._settings = settings
        self._client = client
        self._state = state
        self._metrics = metrics
        self._key = signing_key(settings)
        self._refused: set[tuple[int, str]] = set()
        self._failed: tuple[Plan, float] | None = None
        self._limits = limits or ChildLimits(memory_mb=settings.child_memory_mb)
        self._entry = entry
        self._children: dict[str, ChildScorer] = {}
        # Nobody's plan: not written to disk, and without candidates.
        pinned = settings.pinned_bundle
        self._pinned = Plan(0, Arm(require_bundle_id(pinned), PINNED), datetime.now(UTC)) if pinned else None

    async def poll(self) -> bool:
        """Look for a plan and obey it.

        Returns
        -------
        bool
            Whether another release is served now.
        """
        self._note_candidates()
        plan = self._pinned or await self._newest_plan()
        current = self._state.release
        if plan is None or (current is not None and plan == current.plan):
            if plan is not None:
                self._state.problems.pop("bundle", None)
            return False
        if current is not None and plan.epoch <= current.plan.epoch:
            self._refuse(plan, current.plan)
            return False
        if self._failed is not None and self._failed[0] == plan and time.monotonic() < self._failed[1]:
            return False
        return await self._swap(plan)

    async def stop(self) -> None:
        """End the candidates' processes."""
        await asyncio.gather(*(child.stop() for child in self._children.values()))

    def _note_candidates(self) -> None:
        """Say which candidates are not up."""
        found = [child.problem for child in self._children.values() if child.problem is not None]
        if found:
            self._state.problems["candidates"] = "; ".join(found)
        else:
            self._state.problems.pop("candidates", None)

    async def _newest_plan(self) -> Plan | None:
        """Read the plan in Redis; the one on disk where Redis is away, or holds none that can be read.

        At the start the newer of the two: a Redis that came back with old data must not undo a promotion.
        """
        plan = await self._plan_in_redis()
        if plan is not None and self._state.release is not None:
            return plan
        try:
            kept = await asyncio.to_thread(load_plan, self._settings.plan_path, self._key)
        except (BadInputError, OSError) as error:
            self._state.problems["plan"] = f"the plan on disk was refused: {error}"
            return plan
        if plan is None or kept is None or kept.epoch <= plan.epoch:
            return plan or kept
        self._refuse(plan, kept)
        return kept

    async def _plan_in_redis(self) -> Plan | None:
        try:
            async with asyncio.timeout(BACKGROUND_TIMEOUT_S):
                data = await self._client.get(plan_key(self._settings.project))
            if data is not None:
                plan = decode_plan(data, self._key)
                self._state.problems.pop("plan", None)
                return plan
        except AWAY:
            _LOG.debug("Redis is away; the plan on disk counts")
        except BadInputError as error:
            self._state.problems["plan"] = f"the plan in Redis was refused: {error}"
        return None

    def _refuse(self, plan: Plan, current: Plan) -> None:
        """Say once that a plan is not obeyed."""
        key = (plan.epoch, plan.stable.bundle_id)
        if key in self._refused:
            return
        self._refused.add(key)
        reason = "older_epoch" if plan.epoch < current.epoch else "conflicting_epoch"
        self._metrics.plans_refused.labels(reason).inc()
        _LOG.warning("plan of epoch %d refused (%s): epoch %d counts", plan.epoch, reason, current.epoch)

    async def _swap(self, plan: Plan) -> bool:
        """Load the plan's bundle in a thread; requests are answered by the old one meanwhile."""
        try:
            bundle = await asyncio.to_thread(self._load, plan)
        except Exception as error:  # whatever a damaged bundle does, the old one keeps serving
            self._failed = (plan, time.monotonic() + RETRY_S)
            self._metrics.bundle_load_failures.inc()
            kind = "" if isinstance(error, LarderError) else f"{type(error).__name__}: "
            message = f"bundle {plan.stable.bundle_id} of epoch {plan.epoch} was refused: {kind}{error}"
            self._state.problems["bundle"] = message
            _LOG.exception("%s", message) if kind else _LOG.error("%s", message)
            return False
        self._failed = None
        self._state.problems.pop("bundle", None)
        known = self._state.release
        gone = self._take_over(plan, bundle)
        if known is None or known.bundle is not bundle:
            # What was loaded lives long: the collector need not walk over it again in the middle of requests.
            gc.freeze()
        _LOG.info("serving bundle %s, version %s, epoch %d", bundle.bundle_id, plan.stable.model_version, plan.epoch)
        await asyncio.to_thread(self._keep, plan)
        await asyncio.gather(*(child.stop() for child in gone))
        return True

    def _take_over(self, plan: Plan, bundle: Bundle) -> list[ChildScorer]:
        """Serve a plan; return the processes it has no use for. One that is up goes on, whatever its new role."""
        canary, shadow = self._child(plan.canary), self._child(plan.shadow)
        self._state.release = Release(plan, bundle, canary, shadow)
        arms = {"stable": plan.stable, "canary": plan.canary, "shadow": plan.shadow}
        self._metrics.set_models({name: arm for name, arm in arms.items() if arm is not None})
        used = {arm.bundle_id for arm in (plan.canary, plan.shadow) if arm is not None}
        return [self._children.pop(bundle_id) for bundle_id in set(self._children) - used]

    def _child(self, arm: Arm | None) -> ChildScorer | None:
        """Return the process of a candidate; a new one where it was left alone after it had died too often."""
        if arm is None:
            return None
        child = self._children.get(arm.bundle_id)
        if child is None:
            child = ChildScorer(
                arm, self._settings.bundles_dir, self._state.items, self._count_restart, self._limits, self._entry
            )
            child.start()
            self._children[arm.bundle_id] = child
        child.arm = arm
        child.try_again()
        return child

    def _count_restart(self, reason: Restart) -> None:
        self._metrics.child_restarts.labels(reason).inc()

    def _load(self, plan: Plan) -> Bundle:
        current = self._state.release
        if current is not None and current.bundle.bundle_id == plan.stable.bundle_id:
            return current.bundle
        bundle = load_bundle(self._settings.bundles_dir / plan.stable.bundle_id)
        if bundle.bundle_id != plan.stable.bundle_id:
            raise BadInputError(f"its content is that of bundle {bundle.bundle_id}: the manifest was changed")
        warm_up(bundle, self._state.table)
        return bundle

    def _keep(self, plan: Plan) -> None:
        """Write the plan to disk, for a start without Redis."""
        if plan is self._pinned:
            return
        path = self._settings.plan_path
        try:
            known = load_plan(path, self._key)
        except BadInputError:
            known = None
        try:
            if known is None or known.epoch < plan.epoch:
                save_plan(plan, path, self._key)
        except OSError as error:
            _LOG.warning("the plan could not be written to %s: %s", path, error)
