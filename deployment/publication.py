"""Publishes the committed plan to Redis and to disk, where serving looks for it."""

from __future__ import annotations

import redis

from deployment.store.control_store import ControlStore
from feature_repo.errors import BadInputError, LarderError
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from serving.plan import Plan, decode_plan, encode_plan, load_plan, plan_key, save_plan

#: Longest wait for Redis; the plan on disk is there meanwhile.
_TIMEOUT_MS = 2000


def publish_plan(settings: Settings, plan: Plan, key: bytes) -> list[str]:
    """Bring both copies in line with a plan. Cheap where they are, so that it may be called again and again.

    Returns
    -------
    list
        What could not be reached, in words.
    """
    failed = []
    try:
        if _on_disk(settings, key) != plan:
            save_plan(plan, settings.plan_path, key)
    except OSError as error:
        failed.append(f"{settings.plan_path} ({error}); serving reads the plan from Redis")
    try:
        connect(settings, timeout_ms=_TIMEOUT_MS).set(plan_key(settings.project), encode_plan(plan, key))
    except (redis.RedisError, LarderError, OSError) as error:
        failed.append(f"Redis ({error}); serving reads the plan from disk")
    return failed


def publish_committed(settings: Settings, store: ControlStore, key: bytes) -> list[str]:
    """Bring both copies in line with the plan that was committed last; like `publish_plan`."""
    plan, failed = store.plan(), list[str]()
    while plan is not None:
        failed = publish_plan(settings, plan, key)
        newest = store.plan()
        if newest == plan:
            break
        plan = newest  # somebody moved meanwhile: an older plan must not be what was written last
    return failed


def published_epoch(settings: Settings, key: bytes) -> int:
    """Return the largest epoch serving may have seen; 0 where no copy of a plan can be read."""
    plans = [_on_disk(settings, key), _in_redis(settings, key)]
    return max(plan.epoch if plan else 0 for plan in plans)


def _on_disk(settings: Settings, key: bytes) -> Plan | None:
    try:
        return load_plan(settings.plan_path, key)
    except (BadInputError, OSError):
        return None


def _in_redis(settings: Settings, key: bytes) -> Plan | None:
    try:
        data = connect(settings, timeout_ms=_TIMEOUT_MS).get(plan_key(settings.project))
        return decode_plan(data, key) if isinstance(data, bytes) else None
    except (redis.RedisError, LarderError, OSError):
        return None
