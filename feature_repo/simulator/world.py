"""The shop simulator: a world with known hidden tastes, its history, the truth about it, and answers to lists. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import WEEK, Dataset, make_dataset
from feature_repo.errors import BadInputError
from feature_repo.events import EVENT_SCHEMA, QUARANTINE_SCHEMA, TIMESTAMP, EventType
from feature_repo.simulator.behaviour import Actions, live
from feature_repo.simulator.catalogue import Floats, Ints, make_catalogue
from feature_repo.simulator.clicks import answer, click_probability
from feature_repo.simulator.params import BASE_END, SimulatorParams
from feature_repo.simulator.preferences import Preferences
from feature_repo.simulator.users import make_users

__all__ = ["Simulator", "SimulatorParams"]

MIN_EVENTS = 100
_DAY = timedelta(days=1)


class Simulator:
    """One world: everything in it follows from the parameters and the seed.

    Parameters
    ----------
    params
        Sizes and behaviour; frozen, see docs/simulator.md.
    seed
        Another seed is another world. Claims are made on seeds the parameters were not tuned on.
    shift_weeks
        By how many weeks this world's clock is ahead of `BASE_END`; a data set's report holds it. `dataset` sets it.
    """

    def __init__(self, params: SimulatorParams | None = None, *, seed: int, shift_weeks: int = 0) -> None:
        self.params = params or SimulatorParams()
        self.seed = seed
        self.shift_weeks = shift_weeks
        self.catalogue = make_catalogue(self.params, np.random.default_rng([seed, 1]))
        self.users = make_users(self.params, self.catalogue, np.random.default_rng([seed, 2]))
        self.truth = Preferences(self.params, self.catalogue, self.users)
        self._item_index = {item_id: i for i, item_id in enumerate(self.catalogue.ids)}

    def dataset(self, n_events: int = 250_000, end: datetime = BASE_END) -> Dataset:
        """Return the history of the world, moved by whole weeks to end at or before `end`.

        Parameters
        ----------
        n_events
            Exactly this many; more events mean more sessions of the same users in the same span.
        end
            Aware time. It moves the world's clock (`shift_weeks`), nothing else.
        """
        if n_events < MIN_EVENTS:
            raise BadInputError(f"simulator: n_events must be at least {MIN_EVENTS}, not {n_events}")
        if end.utcoffset() is None:
            raise BadInputError(f"end must have a time zone, got {end.isoformat()}")
        self.shift_weeks = (end - BASE_END) // WEEK
        actions = live(self.truth, n_events, np.random.default_rng([self.seed, 3]))
        return make_dataset(
            "simulator",
            self._events(actions),
            self.catalogue.table(self.params, self.shift_weeks),
            QUARANTINE_SCHEMA.empty_table(),
            shift_weeks=self.shift_weeks,
        )

    def true_probability(
        self, user_id: str, item_ids: Sequence[str], now: datetime, *, event_type: str = "view"
    ) -> Floats:
        """Return the hidden truth: P(click | seen) of each item, or P(purchase | seen).

        Parameters
        ----------
        user_id
            A user the world does not know has the taste of one it knows (always the same).
        item_ids
            Unknown items and items not on sale have probability 0.
        now
            Aware time on the world's moved clock.
        event_type
            `view` or `purchase`.

        Returns
        -------
        ndarray
            Shape (len(item_ids),).
        """
        if event_type not in ("view", "purchase"):
            raise BadInputError(f"the truth is known for 'view' and 'purchase', not {event_type!r}")
        user = self.users.index_of(user_id)
        index = np.array([self._item_index.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        lift = self.params.n_items * self.truth.next_view(user, self._day(now))
        probability = np.where(index >= 0, click_probability(self.params, lift[index]), 0.0)
        if event_type == "purchase":
            probability = probability * self._cart(user, index) * self.params.buy_given_cart
        return probability

    def respond(
        self, user_id: str, slate_item_ids: Sequence[str], now: datetime, rng: np.random.Generator, request_id: str
    ) -> list[dict[str, Any]]:
        """Return the user's answer to a recommendation list: clicks, carts and purchases as client events.

        Without memory: the answer depends on the user, the list and the time, not on earlier answers.
        """
        user = self.users.index_of(user_id)
        index = np.array([self._item_index.get(item_id, -1) for item_id in slate_item_ids], dtype=np.int64)
        return answer(
            self.params,
            self.true_probability(user_id, slate_item_ids, now),
            self._cart(user, index),
            user_id=user_id,
            item_ids=slate_item_ids,
            prices=self.catalogue.price[index].tolist(),
            now=now,
            request_id=request_id,
            rng=rng,
        )

    def _cart(self, user: int, index: Ints) -> Floats:
        return self.truth.cart_probability(np.full(len(index), user), index)

    def _start(self) -> datetime:
        return BASE_END - timedelta(days=self.params.span_days) + self.shift_weeks * WEEK

    def _day(self, now: datetime) -> float:
        if now.utcoffset() is None:
            raise BadInputError(f"now must have a time zone, got {now.isoformat()}")
        return max((now - self._start()) / _DAY, 0.0)

    def _events(self, actions: Actions) -> pa.Table:
        """Return the events as `EVENT_SCHEMA`; ids are numbered in order of time, so they are stable."""
        n = len(actions)
        c = self.catalogue
        start_us = (self._start() - BASE_END) // timedelta(microseconds=1) + round(BASE_END.timestamp()) * 1_000_000
        times = pa.array(start_us + np.round(actions.days * 86_400e6).astype(np.int64)).cast(TIMESTAMP)
        order = np.isin(actions.kind, (EventType.purchase, EventType.cancel))
        price = c.price[actions.item]
        views = actions.kind == EventType.view
        columns = {
            "event_id": _numbered(f"s{self.seed}-", np.arange(n), 9),
            "user_id": pa.array(self.users.ids).take(pa.array(actions.user)),
            "item_id": pa.array(c.ids).take(pa.array(actions.item)),
            "event_type": pa.array([kind.name for kind in EventType]).take(pa.array(actions.kind)),
            "value": pa.array(price * actions.quantity, mask=~order).cast(pa.float64()),
            "quantity": pa.array(actions.quantity, mask=views),
            "event_timestamp": times,
            "received_at": times,
            "session_id": _numbered(f"s{self.seed}-", actions.session, 7),
            "category": pa.array([name.lower() for name in c.category_names]).take(pa.array(c.category[actions.item])),
            "price": pa.array(price),
        }
        arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in EVENT_SCHEMA]
        return pa.table(arrays, schema=EVENT_SCHEMA)


def _numbered(prefix: str, numbers: Ints, width: int) -> Any:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, padding="0")
    return pc.binary_join_element_wise(prefix, digits, "")
