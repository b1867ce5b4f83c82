"""What the API takes and answers, as typed records. Fields the server adds later are ignored."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event to send. `event_id` makes it safe to send the same object again: it counts once."""

    user_id: str
    item_id: str
    event_type: str  #: impression, view, cart, purchase, cancel, like, dislike, rating, confirm or reject
    event_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    event_timestamp: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    value: float | None = None  #: money in minor units (price x quantity), or the rating
    price: int | None = None  #: of one, minor units; the catalogue's if None
    quantity: int | None = None
    session_id: str | None = None
    request_id: str | None = None  #: the recommendation it answers
    rank: int | None = None  #: and the place of the item in that list
    context: dict[str, Any] | None = None


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One catalogue entry to send: what it names is set, the rest stays; None clears a field. See `msgspec.UNSET`."""

    item_id: str
    change_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    title: str | UnsetType | None = UNSET
    category: str | UnsetType | None = UNSET
    price: int | UnsetType | None = UNSET  #: of one, minor units
    created_at: datetime | UnsetType | None = UNSET
    tags: list[str] | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    image: str | UnsetType | None = UNSET
    available: bool | UnsetType = UNSET
    blocked: bool | UnsetType = UNSET  #: kept out of every list by an operator


class EventResult(msgspec.Struct):
    """What became of one event."""

    event_id: str | None
    status: str  #: accepted, duplicate or rejected
    seq: int | None = None
    reason: str | None = None


class EventResults(msgspec.Struct):
    """What became of a batch of events; `results` are in the order sent."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[EventResult]
    retry_after_s: int | None = None  #: when to send again what was rejected as `rate_limited`


class Feedback(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A verdict on an item shown. `feedback_id` makes it safe to send the same object again: it counts once."""

    request_id: str  #: the recommendation the item was in
    user_id: str
    item_id: str
    verdict: str  #: confirm or reject
    feedback_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    event_timestamp: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))


class FeedbackResult(msgspec.Struct):
    """What became of one verdict."""

    feedback_id: str | None
    status: str  #: accepted, duplicate or rejected
    shown: bool | None = None  #: None: the process that took it does not know the request
    seq: int | None = None
    reason: str | None = None


class FeedbackResults(msgspec.Struct):
    """What became of a batch of verdicts; `results` are in the order sent."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[FeedbackResult]
    retry_after_s: int | None = None  #: when to send again what was rejected as `rate_limited`


class ItemResult(msgspec.Struct):
    """What became of one catalogue entry."""

    item_id: str | None
    change_id: str | None
    status: str  #: accepted, duplicate or rejected
    seq: int | None = None
    reason: str | None = None


class ItemResults(msgspec.Struct):
    """What became of a batch of entries; `results` are in the order sent."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[ItemResult]


class Contribution(msgspec.Struct):
    """What one feature did to a score; `text` says it in words."""

    feature: str
    value: float | None  #: None if unknown
    contribution: float  #: in units of the model's raw score
    text: str


class RankedItem(msgspec.Struct, omit_defaults=True):
    """One item of a list; `rank` counts from 1."""

    item_id: str
    rank: int
    score: float
    source: str
    slot: str | None = None  #: "new": in the place kept for a new item, not by its score
    summary: str | None = None  #: with `explain`: the score and what it is made of, or why no model scored it
    explanation: list[Contribution] | None = None  #: with `explain`: what moved the score most, the largest first


class Answer(msgspec.Struct, kw_only=True):
    """What every answer of a model says about how it was made."""

    request_id: str
    model_version: str | None
    bundle_id: str | None
    arm: str
    level: str  #: rung of the ladder: full, or a lower one (`reasons` say why)
    reasons: list[str]
    feature_age_s: float | None
    item_table_age_s: float | None = None


class Recommendations(Answer, kw_only=True):
    """A slate for a user."""

    user_id: str
    items: list[RankedItem]


class ItemList(Answer, kw_only=True):
    """Similar or popular items."""

    items: list[RankedItem]


class ScoredPair(msgspec.Struct):
    """Calibrated probability for one (user, item) pair."""

    user_id: str
    item_id: str
    probability: float
    reasons: list[str]


class Scores(Answer, kw_only=True):
    """Probabilities, in the order of the pairs asked for."""

    scores: list[ScoredPair]
    scored_by: str | None = None  #: purchase (the bundle's purchase model) or ranker
    horizon_days: float | None = None  #: a purchase counts within so many days; None if a ranker scored


class Readiness(msgspec.Struct):
    """Whether recommendations can be made, and what is not as it should be."""

    status: str  #: ready, degraded, not_ready or draining
    bundle_id: str | None = None
    model_version: str | None = None
    feature_age_s: float | None = None
    problems: list[str] = []


class ErrorBody(msgspec.Struct):
    """An error as the API describes it."""

    code: str
    message: str
    field: str | None = None
    hint: str | None = None


class ErrorAnswer(msgspec.Struct):
    """The body of every 4xx and 5xx answer."""

    error: ErrorBody
