"""Small moves on a control plane's store, and a way past it, for tests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine, text

from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.settings import Settings
from serving.plan import Arm, Plan

KEY = b"k" * 32
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def arm(version: int) -> Arm:
    return Arm(f"{version:032x}", str(version))


def champion(version: int) -> Callable[[Plan | None], Plan]:
    return lambda old: Plan(0, arm(version), NOW)


def entry(version: int, **fields: Any) -> NewEntry:
    return NewEntry("me", "promote", "better", arm(version).bundle_id, str(version), **fields)


def commit(store: ControlStore, version: int, epoch: int, **fields: Any) -> Plan:
    return store.commit(champion(version), expected_epoch=epoch, entry=entry(version), now=NOW, **fields)


def sql(place: Settings, statement: str, **values: Any) -> Any:
    """Run a statement behind the store's back."""
    url = place.platform_url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{place.platform_uri}"
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            found = connection.execute(text(statement), {"project": place.project, **values})
            return found.all() if found.returns_rows else None
    finally:
        engine.dispose()
