"""The online side as serving sees it: real reads from Redis, the live item table, users to ask for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from feature_repo.errors import LarderError
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.rows import FeatureReader
from feature_repo.settings import Settings
from serving.cascade.items import ItemTable, build_item_table, catalog_entry

#: How many of the held-out users are asked for.
LIVE_USERS = 300


@dataclass(frozen=True, slots=True)
class Live:
    """What a request needs."""

    reader: FeatureReader
    table: ItemTable
    users: tuple[str, ...]


def read_live(settings: Settings, users: tuple[str, ...]) -> Live:
    """Read the online store the way serving does.

    Raises
    ------
    LarderError
        If it holds no items.
    """
    # The gate may wait longer than a request: it measures time itself.
    reader = OnlineReader(connect(settings, timeout_ms=5000), settings.project)
    changes = reader.changes(0)
    if not changes.item_ids:
        raise LarderError("the online store holds no items; run `larder features materialize` first")
    stats, catalog = reader.read_items(changes.item_ids)
    entries = [catalog_entry(item_id, item) for item_id, item in zip(changes.item_ids, catalog, strict=True)]
    return Live(reader, build_item_table(entries, stats, time.time_ns() // 1000), users[:LIVE_USERS])
