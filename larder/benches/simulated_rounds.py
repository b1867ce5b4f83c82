"""A simulated shop that goes on after its history: features folded in memory, lists answered, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import WEEK, Dataset
from feature_repo.end_state import EndState
from feature_repo.events import EVENT_SCHEMA
from feature_repo.fold import encode_events, fold_events, recent_type
from feature_repo.rows import NO_RECENT_EVENTS, RecentEvents, Rows, UserRows, null_rows
from feature_repo.simulator.clicks import answer
from feature_repo.simulator.params import BASE_END
from feature_repo.simulator.preferences import Preferences
from feature_repo.simulator.world import Simulator, SimulatorParams
from feature_repo.views import FOLD_VIEWS, ITEM_STATS, RECENT_EVENTS, USER_CATEGORY, USER_ITEM, USER_STATS, View
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """A shop into which some items come at the end of its history.

    Attributes
    ----------
    history
        Data set of the events and items before `cut`.
    later
        What users do by themselves from `cut` on (`EVENT_SCHEMA`), by time.
    items
        The whole catalogue (`ITEM_SCHEMA`), in the order of the simulator.
    new
        Positions of the items that come at `cut`, shape (n,).
    appeal
        Mean P(click | seen) of each of them over all users at `cut`, shape (n,).
    """

    shop: Simulator
    history: Dataset
    later: pa.Table
    items: pa.Table
    cut: datetime
    new: I64
    appeal: F64

    def click_if_seen(self, user_id: str, now: datetime) -> F64:
        """Return the hidden truth: P(click | seen) of every item, shape (n_items,)."""
        return self.shop.true_probability(user_id, self.shop.catalogue.ids, now)

    def answers(
        self, user_id: str, item_ids: Sequence[str], click: F64, now: datetime, rng: np.random.Generator, name: str
    ) -> list[dict[str, Any]]:
        """Return a user's answer to a list, as `Simulator.respond` does, by probabilities that are known already."""
        at = np.array([int(item_id[1:]) for item_id in item_ids], np.int64)
        user = np.full(len(at), self.shop.users.index_of(user_id))
        return answer(
            self.shop.params,
            click[at],
            self.shop.truth.cart_probability(user, at),
            user_id=user_id,
            item_ids=item_ids,
            prices=self.shop.catalogue.price[at].tolist(),
            now=now,
            request_id=name,
            rng=rng,
        )

    def visitors(self, now: datetime, n: int, rng: np.random.Generator) -> list[str]:
        """Draw different users who are there at a time, the active ones more often."""
        users, day = self.shop.users, self._day(now)
        there = np.flatnonzero((users.arrival_day <= day) & (day < users.leaving_day))
        weight = users.activity[there] / users.activity[there].sum()
        return [users.ids[u] for u in rng.choice(there, min(n, len(there)), replace=False, p=weight)]

    def _day(self, now: datetime) -> float:
        return self.shop.params.span_days + (now - BASE_END - self.shop.shift_weeks * WEEK) / timedelta(days=1)


def make_world(params: SimulatorParams, seed: int, *, n_events: int, n_new: int, days: int, end: datetime) -> World:
    """Make a shop whose last `days` are yet to come, and let `n_new` items of any appeal come at their beginning."""
    shop = Simulator(params, seed=seed)
    rng = np.random.default_rng([seed, 4])
    # The first item of every category is there from the start, and stays so.
    new = np.sort(rng.choice(np.arange(params.n_categories, params.n_items), n_new, replace=False))
    created, retired = shop.catalogue.created_day.copy(), shop.catalogue.retired_day.copy()
    created[new], retired[new] = params.span_days - days, np.inf
    shop.catalogue = replace(shop.catalogue, created_day=created, retired_day=retired)
    shop.truth = Preferences(params, shop.catalogue, shop.users)
    made = shop.dataset(n_events, end)
    cut = BASE_END + shop.shift_weeks * WEEK - timedelta(days=days)
    before = pc.less(made.events["event_timestamp"], pa.scalar(cut, made.events["event_timestamp"].type))
    known = pc.less(made.items["created_at"], pa.scalar(cut, made.items["created_at"].type))
    ids = [shop.catalogue.ids[i] for i in new]
    appeal = np.mean([shop.true_probability(user, ids, cut) for user in shop.users.ids], axis=0)
    history = replace(made, events=made.events.filter(before), items=made.items.filter(known))
    return World(shop, history, made.events.filter(pc.invert(before)), made.items, cut, new, appeal)


class FoldedFeatures:
    """A `rows.FeatureReader` over state in memory: events are folded in as they come, by the fold of production."""

    def __init__(self) -> None:
        self._end = EndState()
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._pairs: dict[tuple[str, str], int] = {}
        self._affinities: dict[str, dict[str, int]] = {}
        self._recent: dict[str, list[tuple[str, int, int, int]]] = {}
        self._seq = 0

    def add(self, events: pa.Table) -> None:
        """Fold events (`EVENT_SCHEMA`, by time)."""
        if not events.num_rows:
            return
        log = events.add_column(0, "seq", pa.array(np.arange(self._seq + 1, self._seq + 1 + events.num_rows)))
        self._seq += events.num_rows
        arrays = encode_events(log)
        rows = self._end.rows(log, arrays.etype)
        fold_events(arrays, self._end.states, rows)
        users, items, categories = (log[name].to_pylist() for name in ("user_id", "item_id", "category"))
        for e, (user, item, category) in enumerate(zip(users, items, categories, strict=True)):
            self._users[user], self._items[item] = int(rows[0][e]), int(rows[1][e])
            self._pairs[user, item] = int(rows[2][e])
            if rows[3][e] >= 0:
                self._affinities.setdefault(user, {})[category] = int(rows[3][e])
            if recent_type(int(arrays.etype[e])):
                seen = self._recent.setdefault(user, [])
                seen.append((item, int(arrays.etype[e]), int(arrays.time[e]), int(arrays.seq[e])))
                del seen[:-RECENT_EVENTS]

    def user(self, user_id: str, now_us: int) -> UserRows:
        """Return the user's row, affinities and recent events."""
        mine = dict(sorted(self._affinities.get(user_id, {}).items()))
        recent = NO_RECENT_EVENTS
        if seen := self._recent.get(user_id):
            ids, types, times, seqs = zip(*seen, strict=True)
            recent = RecentEvents(list(ids), np.array(types, np.int8), np.array(times, np.int64), seqs[-1])
        stats = self._rows(USER_STATS, [self._users.get(user_id, -1)])
        return UserRows(user_id, stats, list(mine), self._rows(USER_CATEGORY, list(mine.values())), recent)

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Return the rows of USER_ITEM for one user and some items."""
        return self._rows(USER_ITEM, [self._pairs.get((user_id, item), -1) for item in item_ids])

    def table(self, world: World, now: datetime) -> ItemTable:
        """Return the item table of a moment; what is not on sale is not available."""
        at = pa.scalar(now, world.items["created_at"].type)
        retired = world.shop.catalogue.retired_day > world._day(now)
        here = pc.less_equal(world.items["created_at"], at).to_numpy() & retired
        entries = [
            CatalogEntry(
                row["item_id"], row["title"], row["category"], row["price"], _us(row["created_at"]), bool(there)
            )
            for row, there in zip(world.items.to_pylist(), here, strict=True)
        ]
        stats = self._rows(ITEM_STATS, [self._items.get(entry.item_id, -1) for entry in entries])
        return build_item_table(entries, stats, _us(now))

    def _rows(self, view: View, which: list[int]) -> Rows:
        out, state = null_rows(view, len(which)), self._end.states[FOLD_VIEWS.index(view)]
        rows = np.array(which, np.int64)
        there = rows >= 0
        out.ints[there], out.floats[there], out.present[there] = (
            state.ints[rows[there]],
            state.floats[rows[there]],
            True,
        )
        return out


def client_events(answers: list[dict[str, Any]], items: pa.Table) -> pa.Table:
    """Turn what users answered to lists into `EVENT_SCHEMA`, enriched as the API would, unsorted."""
    about = {row["item_id"]: row for row in items.select(["item_id", "category", "price"]).to_pylist()}
    rows = [
        answer
        | {"received_at": answer["event_timestamp"], "category": about[answer["item_id"]]["category"]}
        | {"price": about[answer["item_id"]]["price"]}
        for answer in answers
    ]
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


def _us(time: datetime) -> int:
    return round(time.timestamp() * 1e6)
