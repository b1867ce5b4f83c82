"""Makes a bundle answer before the first request does, and refuses one whose answers cannot be right."""

from __future__ import annotations

import numpy as np

from feature_repo.errors import BadInputError
from feature_repo.events import EventType
from feature_repo.rows import NO_RECENT_EVENTS, RecentEvents, UserRows, null_rows
from feature_repo.views import DAY_US, ITEM_STATS, USER_CATEGORY, USER_ITEM, USER_STATS
from serving.bundle import Bundle
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table


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
