"""Makes a list again: the production cascade over the offline features as they were known at its request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError
from feature_repo.rows import UserRows
from feature_repo.settings import Settings
from serving.bundle import Bundle
from serving.cascade.features import ask
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender
from serving.impressions import ImpressionRecord
from training.offline_table import offline_item_table

#: Candidates that are named although they are not in the list, the best ones.
_NEARLY: Final = 5


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A generator's list: its length, how many of it may not be shown and why, and how many it alone brought first."""

    generator: str
    listed: int
    unavailable: int
    seen: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Place:
    """An item's places: by score among the candidates (None: not scored), in the replayed list, in the one served."""

    item_id: str
    by_score: int | None
    replayed: int | None
    served: int | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """The list made again.

    Attributes
    ----------
    same
        Whether it has the items of the list served, in the same order.
    same_user_row
        Whether the user's row is the one that was used.
    shared
        Items in both lists.
    places
        Of all items of both lists, then of the best candidates that are in neither.
    """

    same: bool
    same_user_row: bool
    shared: int
    as_of_us: int
    catalogue: int
    unavailable: int
    candidates: int
    retrieved: list[Retrieved]
    places: list[Place]


def replay_list(
    settings: Settings, record: ImpressionRecord, bundle: Bundle | None, report: Callable[[int, int], None]
) -> Replayed:
    """Bring the offline store up to the log, and make the list again.

    What the request itself asked for beyond `k` (excluded items, repeats, diversity) is not in the log: the bundle's
    policy stands in for it. Online rows lag the log by a moment, so rows may differ by the events of that moment.

    Raises
    ------
    BadInputError
        If no model made the list, or its bundle is gone.
    """
    if bundle is None:
        raise BadInputError("there is no model to replay this list with: none made it, or its bundle is gone")
    backfill(settings, on_progress=report)
    age_us = 0 if record.feature_age_s is None else round(record.feature_age_s * 1e6)
    as_of_us = record.time_us - age_us
    reader = AsOfReader(settings, as_of_us)
    table, user = offline_item_table(reader, as_of_us), reader.user(record.user_id, record.time_us)
    recommender = bundle.recommender
    draft = recommender.draft(user, table, record.time_us, k=record.k)
    slate = recommender.finish(draft, reader.pairs(record.user_id, draft.item_ids, record.time_us))
    served = {item.item_id: item.rank for item in record.items}
    again = {item.item_id: item.rank for item in slate.items}
    found = draft.candidates
    scores = recommender.ranker.score(slate.matrix) if len(found) else np.empty(0)
    order = np.lexsort((found.items, -scores))
    by_score = {table.ids[found.items[i]]: rank for rank, i in enumerate(order, start=1)}
    others = [item_id for item_id in by_score if item_id not in served and item_id not in again][:_NEARLY]
    row_seq = int(user.stats.seq[0]) if user.stats.present[0] else 0
    return Replayed(
        same=list(served) == list(again),
        same_user_row=row_seq == record.user_seq,
        shared=len(served.keys() & again.keys()),
        as_of_us=as_of_us,
        catalogue=len(table),
        unavailable=int(np.sum(~table.available)),
        candidates=len(found),
        retrieved=_retrieved(recommender, user, table, record.time_us, found.source),
        places=[
            Place(item_id, by_score.get(item_id), again.get(item_id), served.get(item_id))
            for item_id in dict.fromkeys([*served, *again, *others])
        ],
    )


def _retrieved(
    recommender: Recommender,
    user: UserRows,
    table: ItemTable,
    now_us: int,
    source: np.ndarray[tuple[int], np.dtype[np.int8]],
) -> list[Retrieved]:
    if not user.known:
        return []
    asked = ask(recommender.generators, recommender.policy.quotas, user, table, now_us)
    dropped = np.zeros(len(table), np.bool_)
    if recommender.policy.repeats == "drop":
        indices = table.lookup(user.recent.item_ids)
        dropped[indices[indices >= 0]] = True
    found, start = [], 0
    for g, (generator, end) in enumerate(zip(recommender.generators, asked.ends.tolist(), strict=True)):
        listed = asked.lists[start:end]
        away = ~table.available[listed]
        seen = dropped[listed] & ~away
        found.append(Retrieved(generator.name, len(listed), int(away.sum()), int(seen.sum()), int(np.sum(source == g))))
        start = end
    return found
