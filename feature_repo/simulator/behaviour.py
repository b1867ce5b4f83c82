"""What simulated users do by themselves: sessions, views, carts, orders, refills and cancels, in whole arrays. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.events import EventType
from feature_repo.simulator.catalogue import Floats, Ints, Mask
from feature_repo.simulator.preferences import Preferences

_DAY_S = 86_400.0
#: Relative activity by weekday, Monday first, and by hour.
_WEEKDAY = np.array([0.95, 0.95, 1.0, 1.0, 1.1, 1.25, 1.15])
_HOUR = np.array([3, 2, 1, 1, 1, 2, 4, 6, 8, 9, 10, 10, 11, 10, 9, 9, 9, 10, 12, 14, 15, 13, 9, 5.0])
#: Users get more active over the span by this factor: the shop's trend.
_GROWTH = 1.3
_CELLS = 4_000_000
_MAX_VIEWS = 40
_MAX_REFILLS = 12


@dataclass(frozen=True)
class Actions:
    """Events as arrays of equal length; `days` from the start of the span, `session` numbers sessions."""

    kind: Ints
    user: Ints
    item: Ints
    days: Floats
    session: Ints
    quantity: Ints

    def __len__(self) -> int:
        return len(self.kind)

    def pick(self, index: Mask | Ints) -> Actions:
        """Return the events at `index` (a mask or positions)."""
        return Actions(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def join(parts: list[Actions]) -> Actions:
        """Return all events of the parts, one part after the other."""
        return Actions(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Actions.__dataclass_fields__)
        )


def live(truth: Preferences, n_events: int, rng: np.random.Generator) -> Actions:
    """Return exactly `n_events` events of the whole span, in order of time."""
    p = truth.params
    per_session = p.views_per_session * 1.25
    n_sessions = int(np.ceil(n_events / per_session)) + 1
    while True:
        actions, spare = _simulate(truth, n_sessions, rng)
        excess = len(actions) - n_events
        if 0 <= excess <= spare.sum():
            break
        n_sessions = int(n_sessions * (1.1 * n_events / max(len(actions), 1) if excess < 0 else 0.9)) + 1
    dropped = rng.choice(np.flatnonzero(spare), excess, replace=False)
    keep = np.ones(len(actions), dtype=bool)
    keep[dropped] = False
    actions = actions.pick(keep)
    return actions.pick(np.lexsort((actions.item, actions.user, actions.kind, actions.days)))


def _simulate(truth: Preferences, n_sessions: int, rng: np.random.Generator) -> tuple[Actions, Mask]:
    """Return the events of a number of sessions, and which are views that led to nothing."""
    p, catalogue = truth.params, truth.catalogue
    user, start = _sessions(truth, n_sessions, rng)
    length = np.minimum(rng.geometric(1 / p.views_per_session, size=len(user)), _MAX_VIEWS)
    session = np.repeat(np.arange(len(user)), length)
    gap = 3.0 + rng.exponential(40.0, size=len(session))
    elapsed = np.cumsum(gap)
    elapsed -= (elapsed - gap)[np.cumsum(length) - length][session]
    days = start[session] + elapsed / _DAY_S
    viewer = user[session]
    item = _items(truth, viewer, days, _categories(truth, user, start, session, rng), rng)
    carted = rng.random(len(item)) < truth.cart_probability(viewer, item)
    bought = carted & (rng.random(len(item)) < p.buy_given_cart)
    bought[bought] = _wanted_again(truth, viewer[bought], item[bought], days[bought], rng)
    quantity = np.where(catalogue.consumable[catalogue.category[item]], 1 + rng.poisson(0.6, size=len(item)), 1)
    views = Actions(np.full(len(item), EventType.view), viewer, item, days, session, quantity)
    carts = views.pick(carted)
    carts = Actions(np.full(len(carts), EventType.cart), carts.user, carts.item, carts.days + gap[carted] / 2 / _DAY_S,
                    carts.session, carts.quantity)  # fmt: skip
    # one order per session, after its last view: the lines of an order share their time
    order_day = days[np.cumsum(length) - 1] + (30.0 + rng.exponential(90.0, size=len(length))) / _DAY_S
    lines = views.pick(bought)
    orders = Actions(np.full(len(lines), EventType.purchase), lines.user, lines.item, order_day[lines.session],
                     lines.session, lines.quantity)  # fmt: skip
    refill_views, refills = _refills(truth, orders, len(user), rng)
    orders = Actions.join([orders, refills])
    actions = Actions.join([views, carts, refill_views, orders, _cancels(truth, orders, rng)])
    spare = np.zeros(len(actions), dtype=bool)
    spare[: len(views)] = ~carted
    inside = actions.days < p.span_days
    return actions.pick(inside), spare[inside]


def _sessions(truth: Preferences, n_sessions: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Return user and start of every session: by activity and time in the shop, by week, hour and trend."""
    p, users = truth.params, truth.users
    hours = np.arange(24 * p.span_days)
    weekday = (hours // 24 - p.span_days) % 7  # the span ends on a Sunday
    rate = _WEEKDAY[weekday] * _HOUR[hours % 24] * np.linspace(1.0, _GROWTH, len(hours))
    clock, edges = np.r_[0.0, np.cumsum(rate)], np.arange(len(hours) + 1) / 24
    first = np.interp(users.arrival_day, edges, clock)
    last = np.interp(np.minimum(users.leaving_day, p.span_days), edges, clock)
    weight = users.activity * np.maximum(last - first, 1e-9)
    user = np.repeat(np.arange(len(weight)), rng.multinomial(n_sessions, weight / weight.sum()))
    return user, np.interp(first[user] + rng.random(len(user)) * (last - first)[user], clock, edges)


def _categories(truth: Preferences, user: Ints, start: Floats, session: Ints, rng: np.random.Generator) -> Ints:
    """Return the category of every view: the session's, or with some chance another one of the user's taste."""
    share = np.cumsum(truth.taste_at(user, start), axis=1)

    def draw(rows: Ints) -> Ints:
        picked = np.empty(len(rows), dtype=np.int64)
        for begin in range(0, len(rows), 50_000):
            chunk = share[rows[begin : begin + 50_000]]
            picked[begin : begin + 50_000] = (chunk < rng.random((len(chunk), 1)) * chunk[:, -1:]).sum(axis=1)
        return picked

    category = draw(np.arange(len(user)))[session]
    strays = rng.random(len(session)) >= truth.params.stay_in_category
    category[strays] = draw(session[strays])
    return category


def _items(truth: Preferences, user: Ints, days: Floats, category: Ints, rng: np.random.Generator) -> Ints:
    """Draw the item of every view by the softmax of the utilities within its category."""
    item = np.empty(len(user), dtype=np.int64)
    order = np.argsort(category, kind="stable")
    bounds = np.searchsorted(category[order], np.arange(truth.params.n_categories + 1))
    for c in range(truth.params.n_categories):
        items = np.flatnonzero(truth.catalogue.category == c)
        item_side = truth.item_side(items).T.astype(np.float32)
        rows_of_category = order[bounds[c] : bounds[c + 1]]
        step = max(1, _CELLS // len(items))
        for begin in range(0, len(rows_of_category), step):
            rows = rows_of_category[begin : begin + step]
            utility = truth.user_side(user[rows], days[rows]).astype(np.float32) @ item_side
            utility[~truth.on_sale(items, days[rows])] = -np.inf
            weight = np.exp(utility, out=utility)
            total = np.cumsum(weight, axis=1, out=weight)
            point = rng.random((len(rows), 1), dtype=np.float32) * total[:, -1:]
            item[rows] = items[np.minimum((total <= point).sum(axis=1), len(items) - 1)]
    return item


def _wanted_again(truth: Preferences, user: Ints, item: Ints, days: Floats, rng: np.random.Generator) -> Mask:
    """Return which purchases happen: of a durable item somebody bought before, only some."""
    order = np.lexsort((days, item, user))
    same = np.r_[False, (np.diff(user[order]) == 0) & (np.diff(item[order]) == 0)]
    again = np.empty(len(user), dtype=bool)
    again[order] = same
    durable = ~truth.catalogue.consumable[truth.catalogue.category[item]]
    return ~(again & durable) | (rng.random(len(user)) < truth.params.durable_again)


def _refills(
    truth: Preferences, orders: Actions, first_session: int, rng: np.random.Generator
) -> tuple[Actions, Actions]:
    """Return view and purchase of every refill: consumables bought again about every `refill_days`."""
    p, catalogue = truth.params, truth.catalogue
    last = orders.pick(catalogue.consumable[catalogue.category[orders.item]])
    parts = []
    for _ in range(_MAX_REFILLS):
        last = last.pick(rng.random(len(last)) < p.refill_share)
        wait = np.maximum(np.round(p.refill_days * rng.gamma(8.0, 1 / 8.0, size=len(last))), 1.0)
        days = last.days + wait + rng.normal(0.0, 0.06, size=len(last))  # at about the same hour
        last = Actions(last.kind, last.user, last.item, days, last.session, last.quantity)
        stays = (days < p.span_days) & (days < truth.users.leaving_day[last.user])
        last = last.pick(stays & (days < catalogue.retired_day[last.item]))
        parts.append(last)
    joined = Actions.join(parts)
    session = first_session + np.arange(len(joined))
    refills = Actions(joined.kind, joined.user, joined.item, joined.days, session, joined.quantity)
    before = joined.days - (20.0 + rng.exponential(60.0, size=len(joined))) / _DAY_S
    return Actions(
        np.full(len(joined), EventType.view), joined.user, joined.item, before, session, joined.quantity
    ), refills


def _cancels(truth: Preferences, orders: Actions, rng: np.random.Generator) -> Actions:
    back = orders.pick(rng.random(len(orders)) < truth.params.cancel_share)
    later = back.days + truth.params.cancel_days * rng.lognormal(0.0, 0.6, size=len(back))
    return Actions(np.full(len(back), EventType.cancel), back.user, back.item, later, back.session, back.quantity)
