"""Grades recommendations of anybody's model under the protocol, from events and (user, item, rank) alone. PURE.

The same rules as `evaluate.py`, which runs models: one list per user of the test window, unseen items stay in the
denominator, a user without a list scores 0, warm and cold users apart, warm users once more with new items only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.events import Repeats
from training.metrics import interval, resampled_means
from training.slate_metrics import KS, Jackknifed, exposure_of, list_metrics, user_metrics
from training.split import Window

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

DEPTH: Final = max(KS)
#: Where the curves of the plots have points.
CURVE: Final = (1, 2, 3, 5, 7, 10, 15, 20)
#: The metric whose gain is shown user by user.
MAIN: Final = "ndcg@10"


@dataclass(frozen=True)
class Events:
    """Columns of an event log: texts as `pa.string()`, times in µs; shape (n,) each."""

    user: pa.Array
    item: pa.Array
    event_type: pa.Array
    time_us: I64

    def where(self, keep: Mask) -> Events:
        """Return some of the events."""
        mask = pa.array(keep)
        return Events(self.user.filter(mask), self.item.filter(mask), self.event_type.filter(mask), self.time_us[keep])


def joined(history: Events, later: Events) -> Events:
    """Put two logs together."""
    return Events(
        pa.concat_arrays([history.user, later.user]),
        pa.concat_arrays([history.item, later.item]),
        pa.concat_arrays([history.event_type, later.event_type]),
        np.r_[history.time_us, later.time_us],
    )


@dataclass(frozen=True)
class Recs:
    """Recommendations of one model: users and items as text, ranks from 1 without gaps in each user's list."""

    user: pa.Array
    item: pa.Array
    rank: I64


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Segment:
    """Figures of one group of users.

    Attributes
    ----------
    figures, gains
        model -> metric -> value; gains are paired differences to the model compared against.
    curves
        model -> `ndcg@k` and `recall@k` for every k of `CURVE`.
    user_gains
        model -> gain in `MAIN` of every user, shape (users,).
    exposure
        model -> places each item of the catalogue holds in the first 10, shape (n_items,).
    """

    users: int
    answered: dict[str, int]
    figures: dict[str, dict[str, Figure]]
    gains: dict[str, dict[str, Figure]]
    curves: dict[str, dict[str, Figure]]
    user_gains: dict[str, F64]
    exposure: dict[str, I64]


@dataclass(frozen=True)
class Grading:
    """Everything measured.

    Attributes
    ----------
    interactions
        Target events of each item of the catalogue before the window, shape (n_items,).
    strangers
        model -> users with a list who have no target in the window: they are not graded.
    """

    window: Window
    target: str
    repeats: Repeats
    against: str
    segments: dict[str, Segment]
    interactions: F64
    strangers: dict[str, int]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order given."""
        return tuple(self.strangers)


@dataclass(frozen=True)
class _Truth:
    """The test window in numbers; a pair (user, item) is user * n_items + item."""

    users: pa.Array
    items: pa.Array  # the catalogue first
    targets: I64  # pairs, in the order of users
    taken: I64  # pairs of before the window, sorted
    warm: Mask
    interactions: F64


def grade(
    events: Events,
    recs: Mapping[str, Recs],
    window: Window,
    *,
    target: str = "purchase",
    catalogue: pa.Array | None = None,
    repeats: Repeats = "keep",
    against: str | None = None,
    seed: int = 0,
    rounds: int = 2000,
    on_step: Callable[[str], None] = lambda what: None,
) -> Grading:
    """Grade the lists of one or several models on the same users.

    Parameters
    ----------
    events
        History and test window, any order; what lies after the window is left out.
    recs
        Model name to its lists; may be longer than 20.
    catalogue
        Items that can be recommended; if None, those of the history and those any model recommends.
    repeats
        `keep`: everything a user takes counts, and new items are reported apart. `drop`: items the user had before the
        window are no targets and are removed from the lists.
    against
        The model others are compared with; the first if None.

    Raises
    ------
    BadInputError
        If nobody has a target in the window, or a model recommends what is not in the catalogue.
    """
    on_step("targets")
    truth = _truth(events, recs, window, target, catalogue)
    base = against or next(iter(recs))
    lists: dict[str, tuple[I64, I64]] = {}
    strangers: dict[str, int] = {}
    for model, one in recs.items():
        on_step(f"lists of {model}")
        user, pair = _pairs(one.user, one.item, truth.users, truth.items)
        order = np.lexsort((one.rank, user))
        order = order[user[order] >= 0]
        lists[model] = user[order], pair[order]
        strangers[model] = pc.count_distinct(one.user.filter(pa.array(user < 0))).as_py()
    segments = {}
    for name, rows, fresh in _segments(truth, repeats):
        on_step(name)
        segments[name] = _segment(truth, lists, rows, base, fresh=fresh, seed=seed, rounds=rounds)
    return Grading(window, target, repeats, base, segments, truth.interactions, strangers)


def _truth(events: Events, recs: Mapping[str, Recs], window: Window, target: str, catalogue: pa.Array | None) -> _Truth:
    is_target = pc.equal(events.event_type, target).to_numpy(zero_copy_only=False)
    before = events.time_us < window.start_us
    inside = ~before & (events.time_us < window.end_us)
    wanted = events.where(inside & is_target)
    if not len(wanted.user):
        kinds = pc.value_counts(events.event_type.filter(pa.array(inside))).to_pylist()
        there = ", ".join(f"{one['values']} {one['counts']:,}" for one in kinds) or "no events at all"
        raise BadInputError(f"the test window has no {target!r} events, but {there}; choose another target or window")
    history = events.where(before)
    listed = [one.item for one in recs.values()]
    if catalogue is None:
        catalogue = pc.unique(pa.concat_arrays([history.item, *listed]))
    else:
        catalogue = pc.unique(catalogue)
        for model, one in recs.items():
            strange = np.flatnonzero(_codes(one.item, catalogue) < 0)
            if len(strange):
                raise BadInputError(
                    f"{model} recommends item {one.item[strange[0]].as_py()!r} to user "
                    f"{one.user[strange[0]].as_py()!r}, and {len(strange) - 1:,} more, that the catalogue does not "
                    "have; complete the catalogue, or leave it out"
                )
    users = pc.unique(wanted.user)
    # Targets and history outside the catalogue stay: an unseen item is in the denominator.
    items = pc.unique(pa.concat_arrays([catalogue, wanted.item, history.item]))
    user, pair = _pairs(history.user, history.item, users, items)
    acted = ~pc.equal(history.event_type, "impression").to_numpy(zero_copy_only=False)
    taken = np.unique(pair[(user >= 0) & acted])
    warm = np.zeros(len(users), np.bool_)
    warm[user[user >= 0]] = True
    bought = _codes(history.item.filter(pc.equal(history.event_type, target)), catalogue)
    interactions = np.bincount(bought[bought >= 0], minlength=len(catalogue)).astype(np.float64)
    targets = np.unique(_pairs(wanted.user, wanted.item, users, items)[1])
    return _Truth(users, items, targets, taken, warm, interactions)


def _segments(truth: _Truth, repeats: Repeats) -> Iterator[tuple[str, Mask, bool]]:
    """Yield name, users, and whether only new items count; no segment without users."""
    user = truth.targets // len(truth.items)
    has_new = np.zeros(len(truth.users), np.bool_)
    has_new[user[~_within(truth.targets, truth.taken)]] = True
    drop = repeats == "drop"
    counted = has_new if drop else np.ones(len(truth.users), np.bool_)
    if (truth.warm & counted).any():
        yield "warm", truth.warm & counted, drop
    if not drop and (truth.warm & has_new).any():
        yield "new_items", truth.warm & has_new, True
    if (~truth.warm & counted).any():
        yield "cold", ~truth.warm & counted, drop


def _segment(
    truth: _Truth,
    lists: Mapping[str, tuple[I64, I64]],
    rows: Mask,
    base: str,
    *,
    fresh: bool,
    seed: int,
    rounds: int,
) -> Segment:
    n_items, n = len(truth.items), int(rows.sum())
    position = np.where(rows, np.cumsum(rows) - 1, -1)  # of a user in the segment
    targets = truth.targets[~_within(truth.targets, truth.taken)] if fresh else truth.targets
    n_targets = np.bincount(targets // n_items, minlength=len(rows))[rows]
    users: dict[str, dict[str, F64]] = {}
    shown: dict[str, dict[str, Jackknifed]] = {}
    exposure, answered = {}, {}
    for model, (user, pair) in lists.items():
        keep = rows[user] & ~_within(pair, truth.taken) if fresh else rows[user]
        slates, hits = _matrix(position[user[keep]], pair[keep], targets, n, n_items)
        users[model] = user_metrics(hits, n_targets, sorted({*KS, *CURVE}))
        shown[model] = list_metrics(slates, truth.interactions)
        exposure[model] = exposure_of(slates[:, :10], len(truth.interactions))
        answered[model] = int((slates[:, 0] >= 0).sum())
    names = [name for name in users[base] if _graded(name) or name.startswith(("ndcg@", "recall@"))]
    values = np.column_stack([users[model][name] for model in users for name in names])
    means = resampled_means(values, seed=seed, rounds=rounds).reshape(rounds, len(users), len(names))
    mean = {model: np.array([one[name].mean() for name in names]) for model, one in users.items()}
    found: dict[str, dict[str, Figure]] = {}
    gains: dict[str, dict[str, Figure]] = {}
    at = list(users).index(base)
    for i, model in enumerate(users):
        found[model] = _figures(names, mean[model], means[:, i]) | {
            name: Figure(one.value, *one.interval()) for name, one in shown[model].items()
        }
        if model != base:
            both = [name for name in shown[model] if name in shown[base]]
            differences = {name: shown[model][name] - shown[base][name] for name in both}
            gains[model] = _figures(names, mean[model] - mean[base], means[:, i] - means[:, at]) | {
                name: Figure(one.value, *one.interval()) for name, one in differences.items()
            }
    return Segment(
        users=n,
        answered=answered,
        figures={model: {m: f for m, f in one.items() if _graded(m)} for model, one in found.items()},
        gains={model: {m: f for m, f in one.items() if _graded(m)} for model, one in gains.items()},
        curves={
            model: {f"{name}@{k}": one[f"{name}@{k}"] for name in ("ndcg", "recall") for k in CURVE}
            for model, one in found.items()
        },
        user_gains={model: users[model][MAIN] - users[base][MAIN] for model in gains},
        exposure=exposure,
    )


def _matrix(position: I64, pair: I64, targets: I64, n: int, n_items: int) -> tuple[I32, Mask]:
    """Lay sorted rows out as one list per user: item numbers (-1: ended) and hits, each shape (n, DEPTH)."""
    slates = np.full((n, DEPTH), -1, np.int32)
    hits = np.zeros((n, DEPTH), np.bool_)
    if len(position):
        start = np.flatnonzero(np.r_[True, position[1:] != position[:-1]])
        place = np.arange(len(position)) - np.repeat(start, np.diff(np.r_[start, len(position)]))
        top = place < DEPTH
        slates[position[top], place[top]] = pair[top] % n_items
        hits[position[top], place[top]] = _within(pair[top], targets)
    return slates, hits


def _figures(names: list[str], mean: F64, means: F64) -> dict[str, Figure]:
    low, high = interval(means)
    return {name: Figure(*map(float, one)) for name, one in zip(names, zip(mean, low, high, strict=True), strict=True)}


def _graded(name: str) -> bool:
    """Whether a metric is reported; the other lengths are points of the curves only."""
    return int(name.partition("@")[2]) in KS


def _pairs(user: pa.Array, item: pa.Array, users: pa.Array, items: pa.Array) -> tuple[I64, I64]:
    """Return the users of rows (-1: has no targets) and their pairs."""
    code = _codes(user, users)
    return code, code * len(items) + _codes(item, items)


def _codes(values: pa.Array, vocabulary: pa.Array) -> I64:
    """Positions in a vocabulary, -1 for what it has not."""
    found = pc.index_in(values, value_set=vocabulary)
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def _within(values: I64, ordered: I64) -> Mask:
    """Whether each value is one of the sorted ones."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)
