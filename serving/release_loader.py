"""Follows the plan: loads, checks and warms up the bundle it names, then swaps it in; a bad one changes nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import time

import numpy as np
from redis.asyncio import Redis
from redis.exceptions import RedisError

from feature_repo.errors import BadInputError, LarderError
from feature_repo.events import EventType
from feature_repo.rows import NO_RECENT_EVENTS, RecentEvents, UserRows, null_rows
from feature_repo.settings import Settings
from feature_repo.views import DAY_US, ITEM_STATS, USER_CATEGORY, USER_ITEM, USER_STATS
from serving.bundle import Bundle, load_bundle
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.metrics import Metrics
from serving.plan import Plan, decode_plan, load_plan, plan_key, save_plan
from serving.redis_client import BACKGROUND_TIMEOUT_S
from serving.signature import signing_key
from serving.state import Release, ServingState

_LOG = logging.getLogger(__name__)
#: A bundle that could not be loaded is tried again after this time: it may still be on its way to the disk.
RETRY_S = 10.0


class ReleaseLoader:
    """Brings `state.release` up to the newest plan; `poll` is called every `plan_poll_ms`."""

    def __init__(self, settings: Settings, client: Redis, state: ServingState, metrics: Metrics) -> None:
        self._settings = settings
        self._client = client
        self._state = state
        self._metrics = metrics
        self._key = signing_key(settings)
        self._refused: set[tuple[int, str]] = set()
        self._failed: tuple[Plan, float] | None = None

    async def poll(self) -> bool:
        """Look for a plan and obey it.

        Returns
        -------
        bool
            Whether another release is served now.
        """
        plan = await self._newest_plan()
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

    async def _newest_plan(self) -> Plan | None:
        """Read the plan in Redis; the one on disk where Redis is away, or holds none that can be read."""
        try:
            async with asyncio.timeout(BACKGROUND_TIMEOUT_S):
                data = await self._client.get(plan_key(self._settings.project))
            if data is not None:
                plan = decode_plan(data, self._key)
                self._state.problems.pop("plan", None)
                return plan
        except (RedisError, OSError, TimeoutError):
            _LOG.debug("Redis is away; the plan on disk counts")
        except BadInputError as error:
            self._state.problems["plan"] = f"the plan in Redis was refused: {error}"
        try:
            return await asyncio.to_thread(load_plan, self._settings.plan_path, self._key)
        except (BadInputError, OSError) as error:
            self._state.problems["plan"] = f"the plan on disk was refused: {error}"
            return None

    def _refuse(self, plan: Plan, current: Plan) -> None:
        """Say once that a plan is not obeyed."""
        key = (plan.epoch, plan.stable.bundle_id)
        if key in self._refused:
            return
        self._refused.add(key)
        reason = "older_epoch" if plan.epoch < current.epoch else "conflicting_epoch"
        self._metrics.plans_refused.labels(reason).inc()
        _LOG.warning("plan of epoch %d refused (%s): epoch %d is served", plan.epoch, reason, current.epoch)

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
        self._state.release = Release(plan, bundle)
        self._metrics.set_model(bundle.bundle_id, plan.stable.model_version)
        # What was loaded lives long: the collector need not walk over it again in the middle of requests.
        gc.freeze()
        _LOG.info("serving bundle %s, version %s, epoch %d", bundle.bundle_id, plan.stable.model_version, plan.epoch)
        await asyncio.to_thread(self._keep, plan)
        return True

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


def warm_up(bundle: Bundle, table: ItemTable | None) -> None:
    """Answer for an unknown user and for one with a history, so that no request is the first one.

    Parameters
    ----------
    table
        The table in use; popular items of the bundle stand in for one that is not there or empty.

    Raises
    ------
    BadInputError
        If the bundle answers with scores that are no numbers, or an item twice.
    """
    if table is None or not len(table):
        known = dict.fromkeys(bundle.popular) or {"item": None}
        table = build_item_table([CatalogEntry(item) for item in known], null_rows(ITEM_STATS, len(known)), DAY_US)
    items = list(table.ids[:3])
    views = np.full(len(items), EventType.view, np.int8)
    times = np.full(len(items), table.as_of_us - DAY_US, np.int64)
    for recent in (NO_RECENT_EVENTS, RecentEvents(items, views, times)):
        user = UserRows("", null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), recent)
        draft = bundle.recommender.draft(user, table, table.as_of_us, k=10)
        slate = bundle.recommender.finish(draft, null_rows(USER_ITEM, len(draft.candidates)))
        if not all(np.isfinite(item.score) for item in slate.items):
            raise BadInputError("it answers with scores that are not numbers")
        if len({item.item_id for item in slate.items}) != len(slate.items):
            raise BadInputError("it answers with an item twice")
        if bundle.purchase is not None:
            some = np.arange(len(items), dtype=np.int32)
            pairs = null_rows(USER_ITEM, len(items))
            if not np.isfinite(bundle.purchase.probability(user, table, some, pairs, table.as_of_us)).all():
                raise BadInputError("its purchase model answers with scores that are not numbers")
