"""Rows of the purchase score: pairs drawn at a cut, labelled by what was bought within the horizon after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.training_frame import training_frame
from serving.cascade.items import ItemTable
from training.candidate_rows import RankerRows
from training.split import Log, Window

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """How many pairs are drawn at a cut, at most.

    Attributes
    ----------
    positives
        Pairs that end in a purchase.
    hard
        Others the user did something with before, or whose item is popular.
    easy
        Others still: most of the population.
    popular
        How many of the most popular items (purchases, half-life 30 days) count as popular.
    """

    positives: int
    hard: int
    easy: int
    popular: int = 100


@dataclass(frozen=True)
class Pairs:
    """Pairs drawn from the population of one cut, sorted by user.

    The population is every user with an event before the cut times every item available at the cut.

    Attributes
    ----------
    users, items
        Ids, shape (n,).
    label
        1 where the user bought the item in the window, shape (n,).
    weight
        How many pairs of the population each stands for, shape (n,); it sums to `population`.
    group
        Number of the row's user, ascending, shape (n,).
    population
        Pairs in the population.
    bought
        Pairs of it that were bought.
    outside
        Pairs bought in the window that were not in it: a new user, or an item not on sale at the cut.
    """

    users: npt.NDArray[np.object_]
    items: npt.NDArray[np.object_]
    label: F32
    weight: F32
    group: I64
    population: int
    bought: int
    outside: int


def draw_pairs(log: Log, table: ItemTable, window: Window, target: str, draw: Draw, seed: list[int]) -> Pairs:
    """Draw the pairs of one cut; everything but the label is known at `window.start_us`.

    Parameters
    ----------
    log
        All events; those at or after the window's start serve the labels only.
    table
        The item table as of the window's start.
    target
        Event type that makes a positive.
    """
    rng = np.random.default_rng(seed)
    past = log.before(window.start_us)
    users = pd.Index(sorted(set(past.user)))
    on_sale = np.flatnonzero(table.available)
    items = pd.Index([table.ids[i] for i in on_sale])
    total = len(users) * len(items)

    def codes(log: Log, keep: npt.NDArray[np.bool_]) -> I64:
        """Distinct pairs as numbers, ascending; -1 stands for all outside the population."""
        pairs = pd.DataFrame({"user": log.user[keep], "item": log.item[keep]}).drop_duplicates()
        user, item = users.get_indexer(pd.Index(pairs["user"])), items.get_indexer(pd.Index(pairs["item"]))
        return np.where((user < 0) | (item < 0), -1, user * len(items) + item).astype(np.int64)

    inside = (log.time_us >= window.start_us) & (log.time_us < window.end_us)
    taken = codes(log, inside & (log.event_type == target))
    positive = np.unique(taken[taken >= 0])
    had = codes(past, past.event_type != "impression")
    popular_ids = [table.ids[i] for i in table.most_popular("30d") if table.available[i]][: draw.popular]
    popular = items.get_indexer(pd.Index(popular_ids, dtype=object))
    shown = (np.arange(len(users))[:, None] * len(items) + popular[None, :]).ravel()
    hard = np.setdiff1d(np.union1d(had[had >= 0], shown), positive)
    n_easy = total - len(hard) - len(positive)
    strata = [
        (_choose(positive, draw.positives, rng), len(positive)),
        (_choose(hard, draw.hard, rng), len(hard)),
        (_rest(np.union1d(hard, positive), total, min(draw.easy, n_easy), rng), n_easy),
    ]
    code = np.concatenate([drawn for drawn, _ in strata])
    weight = np.concatenate([np.full(len(drawn), size / max(len(drawn), 1)) for drawn, size in strata])
    label = np.repeat([1.0, 0.0, 0.0], [len(drawn) for drawn, _ in strata])
    order = np.argsort(code)
    user, item = np.divmod(code[order], max(len(items), 1))
    return Pairs(
        users.to_numpy(object)[user],
        items.to_numpy(object)[item],
        label[order].astype(np.float32),
        weight[order].astype(np.float32),
        np.unique(user, return_inverse=True)[1].astype(np.int64),
        total,
        len(positive),
        int(np.count_nonzero(taken < 0)),
    )


def join_features(settings: Settings, pairs: Pairs, service: str, now_us: int) -> RankerRows:
    """Join a service's features to drawn pairs, strictly as of `now_us`: the cut, for anything but a leak test."""
    frame = pd.DataFrame(
        {
            "user_id": pairs.users,
            "item_id": pairs.items,
            "event_timestamp": pd.Timestamp(now_us, unit="us", tz="UTC"),
        }
    )
    matrix = training_frame(frame, service, settings)[list(feature_list(service))].to_numpy(np.float32)
    return RankerRows(np.ascontiguousarray(matrix), pairs.label, pairs.weight, pairs.group)


def _choose(codes: I64, most: int, rng: np.random.Generator) -> I64:
    return rng.choice(codes, most, replace=False) if len(codes) > most else codes


def _rest(taken: I64, total: int, count: int, rng: np.random.Generator) -> I64:
    """Draw `count` numbers below `total` that are not taken (ascending), without listing all where they are many."""
    if total - len(taken) <= 8 * count:
        return _choose(np.setdiff1d(np.arange(total), taken), count, rng)
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        drawn = np.setdiff1d(np.union1d(drawn, rng.integers(0, total, 2 * count)), taken)
    return _choose(drawn, count, rng)
