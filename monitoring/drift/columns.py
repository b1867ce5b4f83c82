"""What is watched for drift: one row per answered request, as columns of numbers, categories and shares. PURE."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from feature_repo.request_features import inputs_of
from feature_repo.services import feature_list

F64 = npt.NDArray[np.float64]
Values = F64 | npt.NDArray[np.object_]
Group = Literal["features", "predictions", "outcomes", "quality", "recommendations"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)
Scale = Literal["number", "category", "share"]

#: Columns that say whose rows they are; they are not compared.
USER, ITEM, EVENT_USER, EVENT_ITEM = "_user", "_item", "_event_user", "_event_item"
#: All of them.
CLUSTERS: Final = (USER, ITEM, EVENT_USER, EVENT_ITEM)
#: So many places of a list are looked at, however long the list: shorter and longer ones are then alike.
DEPTH: Final = 5
#: A list is popular by how many of its items are among so many of the bundle's popular ones.
POPULAR: Final = 50

#: How large a difference must be to matter, by scale: a share of rows.
FLOORS: Final[dict[Scale, float]] = {"number": 0.15, "category": 0.15, "share": 0.05}
#: Seconds and days since the world, a user or an item began grow by themselves, as the clock does: they are shown, and
#: raise no alarm.
_BIRTHS: Final = {"user_first_time", "item_created_at"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes
    ----------
    expected
        Moves with the clock alone: a difference is no news.
    baseline
        Exists only where people were served: the champion's own first windows are its reference, as no replay has it.
    cluster
        Column of what rows have in common: those of one item, or one user, are no independent rows.
    """

    name: str
    group: Group
    scale: Scale = "number"
    expected: bool = False
    baseline: bool = False
    cluster: str = USER

    @property
    def subject(self) -> str:
        """Name in the signals table."""
        return f"{self.group}/{self.name}"

    @property
    def floor(self) -> float:
        """Smallest effect that matters."""
        return FLOORS[self.scale]


#: Beside the features: closed, so that they may be labels.
OTHERS: Final = (
    Column("score", "predictions"),
    Column("top_score", "predictions"),
    Column("score_spread", "predictions"),
    Column("source", "predictions", "category"),
    Column("clicked", "outcomes", "share", baseline=True),
    Column("purchased", "outcomes", "share", baseline=True),
    Column("level", "quality", "category", baseline=True),
    Column("missing_share", "quality"),
    Column("item_category", "quality", "category", cluster=ITEM),
    Column("event_type", "quality", "category", cluster=EVENT_USER),
    Column("event_price", "quality", cluster=EVENT_ITEM),
    Column("event_price_change", "quality", cluster=EVENT_USER),
    Column("event_category", "quality", "category", cluster=EVENT_ITEM),
    Column("event_new_category", "quality", "share", cluster=EVENT_USER),
    Column("list_categories", "recommendations"),
    Column("list_popular_share", "recommendations"),
    Column("list_known_share", "recommendations"),
)


def moves_by_itself(feature: str) -> bool:
    """Whether a feature is a function of the clock and of when somebody or something began.

    >>> from feature_repo.request_features import FEATURES
    >>> [name for name in FEATURES if moves_by_itself(name)]
    ['f_user_days_known', 'f_item_age_days', 'f_hour_of_day', 'f_day_of_week']
    """
    return set(inputs_of((feature,))) <= _BIRTHS


def watched(service: str) -> tuple[Column, ...]:
    """Return all columns of a model of a feature service."""
    features = (
        Column(name, "features", expected=moves_by_itself(name), cluster=ITEM if name.startswith("f_item_") else USER)
        for name in feature_list(service)
    )
    return (*features, *OTHERS)


def draw(*parts: str) -> int:
    """Return 64 bits that are the same for the same texts, everywhere: samples need no state."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answered request adds: plain values, so that thousands of requests need little memory.

    Attributes
    ----------
    features
        The row of one of the list's first places, drawn by the request's id, in the order of the service.
    scores
        Calibrated probabilities of the first places.
    """

    request_id: str
    user_id: str
    item_id: str
    features: F64
    missing_share: float
    scores: F64
    score: float
    source: str
    category: str
    categories: int
    popular_share: float
    known_share: float
    level: str
    clicked: bool = False
    purchased: bool = False


def columns_of(answers: Sequence[Answer], service: str) -> dict[str, Values]:
    """Return the columns that answers have, those of outcomes and of `level` included."""
    found: dict[str, Values] = {}
    if not answers:
        return found
    matrix = np.stack([answer.features for answer in answers])
    found |= {name: matrix[:, place] for place, name in enumerate(feature_list(service))}
    found |= {
        USER: _labels(f"{draw(answer.user_id):016x}" for answer in answers),
        ITEM: _labels(answer.item_id for answer in answers),
        "score": _numbers(a.score for a in answers),
        "top_score": _numbers(a.scores.max() for a in answers),
        "score_spread": _numbers(a.scores.max() - a.scores.min() for a in answers),
        "source": _labels(a.source for a in answers),
        "clicked": _numbers(a.clicked for a in answers),
        "purchased": _numbers(a.purchased for a in answers),
        "missing_share": _numbers(a.missing_share for a in answers),
        "item_category": _labels(a.category for a in answers),
        "list_categories": _numbers(a.categories for a in answers),
        "list_popular_share": _numbers(a.popular_share for a in answers),
        "list_known_share": _numbers(a.known_share for a in answers),
    }
    return found


def _numbers(values: Iterable[float]) -> F64:
    return np.array([float(value) for value in values], np.float64)


def _labels(values: Iterable[str]) -> npt.NDArray[np.object_]:
    return np.array(list(values), object)
