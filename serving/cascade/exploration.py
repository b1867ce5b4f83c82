"""Exploration: declared places of a list whose item is drawn by chance, with the probability of every draw known. PURE.

The draw follows from the request id, so the same request gets the same list, from any process and any arm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError

F64 = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

ExplorationKind = Literal["none", "epsilon", "thompson"]
EXPLORATIONS: Final[tuple[ExplorationKind, ...]] = ("none", "epsilon", "thompson")
Pool = Literal["below", "new"]
POOLS: Final[tuple[Pool, ...]] = ("below", "new")
#: What a draw may give: the item that stands there without exploration, or one of the pool.
DRAWN: Final = ("same", "other")
#: Draws from the posteriors by which `thompson` finds how often each item is the best; the same for all requests.
DRAWS: Final = 1000
_SEED: Final = 20_251_127


@dataclass(frozen=True, slots=True)
class Exploration:
    """Which places of a list are drawn, from what, and how.

    Attributes
    ----------
    kind
        `epsilon`: the item that stands there with probability 1 - epsilon, else one of the pool, each as likely.
        `thompson`: each item as often as it is the best of draws from their posteriors (Thompson 1933; Chapelle and Li
        2011), mixed with a share epsilon of all alike, so that every item has a chance.
    ranks
        The places, 1-based; shorter lists have none.
    epsilon
        Share of draws that are uniform, in (0, 1).
    pool
        `below`: the best candidates below the list; `new`: of those the new ones (`rerank.NewItems`).
    pool_size
        Items of the pool at most. It is dealt out to the places like cards, so that draws are independent and no item
        comes twice.
    prior
        Observations that the model's probability is worth (`thompson`): the posterior of an item is Beta with the
        model's mean and the weight of `prior` + its own events.

    Raises
    ------
    BadInputError
        For an unknown kind or pool, or values out of range.
    """

    kind: ExplorationKind = "none"
    ranks: tuple[int, ...] = (5,)
    epsilon: float = 0.1
    pool: Pool = "below"
    pool_size: int = 20
    prior: float = 50.0

    def __post_init__(self) -> None:
        if self.kind not in EXPLORATIONS:
            raise BadInputError(f"no exploration {self.kind!r}; there are: {', '.join(EXPLORATIONS)}")
        if self.pool not in POOLS:
            raise BadInputError(f"no pool {self.pool!r} to explore; there are: {', '.join(POOLS)}")
        if not self.ranks or min(self.ranks) < 1 or list(self.ranks) != sorted(set(self.ranks)):
            raise BadInputError(f"ranks to explore are different, rising and at least 1, not {self.ranks}")
        if not 0.0 < self.epsilon < 1.0:
            raise BadInputError(f"epsilon of exploration must be between 0 and 1, not {self.epsilon}")
        if not 1 <= self.pool_size <= 500 or not self.prior > 0 or not math.isfinite(self.prior):
            raise BadInputError(f"pool_size of exploration must be 1 to 500, its prior positive: {self}")


@dataclass(frozen=True, slots=True)
class Exploring:
    """A request that may be explored: by what rule, and the id its draws come from."""

    rule: Exploration
    request_id: str


@dataclass(frozen=True, slots=True)
class ExploredSlot:
    """What could have stood at one place of a list, how likely each was, and what was drawn.

    Attributes
    ----------
    rank
        The place, 1-based.
    item_ids
        Items that could be drawn; the first stands there without exploration.
    propensities
        Probability of each; they sum to 1.
    scores
        The model's calibrated probability of each.
    taken
        Position of the item that was drawn.
    """

    rank: int
    item_ids: list[str]
    propensities: list[float]
    scores: list[float]
    taken: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """`ExploredSlot` by positions of candidates."""

    rank: int
    arms: Positions
    propensities: F64
    scores: F64
    taken: int


def explore(
    shown: Positions,
    ranked: Positions,
    eligible: Mask | None,
    probability: F64,
    evidence: F64,
    exploring: Exploring,
) -> tuple[Positions, list[Drawn]]:
    """Draw the items of the declared places; all others stay where they are.

    Parameters
    ----------
    shown
        Positions of the list, best first, shape (k,).
    ranked
        Positions of all candidates, best first, shape (c,).
    eligible
        Which candidates may be drawn, shape (c,); None: all.
    probability, evidence
        The model's probability of each candidate, and events that are known of it, shape (c,).

    Returns
    -------
    tuple
        The list, and each place that was drawn; a place for which the pool has no item is not.
    """
    rule = exploring.rule
    waiting = np.ones(len(probability), np.bool_) if eligible is None else eligible.copy()
    waiting[shown] = False
    pool = ranked[waiting[ranked]][: rule.pool_size]
    ranks = [rank for rank in rule.ranks if rank <= len(shown)]
    out, drawn = shown.copy(), list[Drawn]()
    for number, rank in enumerate(ranks):
        mine = pool[number :: len(ranks)]
        if not len(mine):
            continue
        arms = np.concatenate([shown[rank - 1 : rank], mine])
        scores = probability[arms]
        chances = (
            epsilon_propensities(len(arms), rule.epsilon)
            if rule.kind == "epsilon"
            else thompson_propensities(scores, evidence[arms], rule.prior, rule.epsilon)
        )
        taken = pick(chances, uniform(exploring.request_id, rank))
        out[rank - 1] = arms[taken]
        drawn.append(Drawn(rank, arms, chances, scores, taken))
    return out, drawn


def epsilon_propensities(n: int, epsilon: float) -> F64:
    """Return the chance of each of n items, of which the first stands there already and the others are the pool.

    Examples
    --------
    >>> epsilon_propensities(5, 0.2).tolist()
    [0.8, 0.05, 0.05, 0.05, 0.05]
    """
    out = np.full(n, epsilon / (n - 1))
    out[0] = 1.0 - epsilon
    return out


def thompson_propensities(mean: F64, evidence: F64, prior: float, epsilon: float) -> F64:
    """Return how often each item is the best of draws from the items' posteriors, mixed with a uniform share.

    The posterior of an item is a normal distribution with mean and variance of Beta(m w, (1 - m) w), where w is `prior`
    + `evidence`. Its `DRAWS` draws are the same for every request: the chances are estimates of those of exact Thompson
    sampling (standard error .016 at most), but they are exactly the chances that items are drawn with.

    Examples
    --------
    >>> known, unknown = thompson_propensities(np.array([0.03, 0.03]), np.array([1e6, 0.0]), 50.0, 0.1)
    >>> bool(0.45 < unknown < 0.55), bool(abs(known + unknown - 1.0) < 1e-12)
    (True, True)
    """
    spread = np.sqrt(mean * (1.0 - mean) / (prior + evidence + 1.0))
    best = np.argmax(mean + spread * _normals(len(mean)), axis=1)
    wins = np.bincount(best, minlength=len(mean)) / DRAWS
    return np.asarray((1.0 - epsilon) * wins + epsilon / len(mean))


def uniform(request_id: str, rank: int) -> float:
    """Return the number in [0, 1) that decides a place of a request's list.

    Examples
    --------
    >>> 0.0 <= uniform("r", 5) < 1.0 and uniform("r", 5) == uniform("r", 5) != uniform("r", 6)
    True
    """
    digest = hashlib.blake2b(f"{request_id}|explore|{rank}".encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") >> 3) / 2**53  # as many bits as a float holds: 1 is never reached


def pick(propensities: F64, at: float) -> int:
    """Return the position whose part of [0, 1) holds `at`.

    Examples
    --------
    >>> [pick(np.array([0.5, 0.25, 0.25]), at) for at in (0.0, 0.49, 0.5, 0.99)]
    [0, 0, 1, 2]
    """
    ends = np.cumsum(propensities)
    return min(int(np.searchsorted(ends, at * ends[-1], side="right")), len(propensities) - 1)


def propensities_of(n: int, slots: Sequence[ExploredSlot]) -> list[float]:
    """Return the propensity of each (item, rank) of a list of n: 1 where nothing was drawn."""
    out = [1.0] * n
    for slot in slots:
        out[slot.rank - 1] = slot.propensities[slot.taken]
    return out


def require_sound(slots: Sequence[ExploredSlot], shown: Sequence[str]) -> None:
    """Check what a candidate's process says it drew.

    Raises
    ------
    ValueError
        If it does not fit the list, or probabilities are none.
    """
    for slot in slots:
        n = len(slot.item_ids)
        fits = len(slot.propensities) == len(slot.scores) == n and 0 <= slot.taken < n and 1 <= slot.rank <= len(shown)
        if not fits or shown[slot.rank - 1] != slot.item_ids[slot.taken]:
            raise ValueError(f"what was drawn for rank {slot.rank} does not fit the list")
        # A NaN fails the comparisons.
        if not (min(slot.propensities) > 0.0 and abs(math.fsum(slot.propensities) - 1.0) < 1e-6):
            raise ValueError(f"the propensities of rank {slot.rank} are none")


@cache
def _normals(n: int) -> F64:
    return np.random.default_rng(_SEED).standard_normal((DRAWS, n))
