"""What the API answers: plain dataclasses, encoded by msgspec and documented by OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from serving.cascade.explanation import Contribution
from serving.cascade.recommender import RankedItem

#: Rungs of the ladder, best first.
Level = Literal["full", "item_side", "popularity", "popularity_file"]
LEVELS: tuple[Level, ...] = ("full", "item_side", "popularity", "popularity_file")

#: Why an answer is not what it could be at best. A closed set: clients and metrics may rely on it.
Reason = Literal[
    "unknown_user",
    "unknown_item",
    "unknown_category",
    "user_features_unavailable",
    "pair_features_unavailable",
    "repeats_not_known",
    "no_bundle",
    "no_item_table",
    "model_failed",
    "late",
    "no_neighbours",
    "explanation_unavailable",
]
REASONS: dict[Reason, str] = {
    "unknown_user": "Nothing is known of the user; the list is what suits anybody.",
    "unknown_item": "The catalogue does not know the item.",
    "unknown_category": "No item has this category.",
    "user_features_unavailable": "The user's features could not be read in time; items alone were ranked.",
    "pair_features_unavailable": "What the user did with the candidates could not be read in time.",
    "repeats_not_known": "Repeats were to be dropped, but the user's history could not be read.",
    "no_bundle": "No model is loaded; the list is popularity.",
    "no_item_table": "Items have not been loaded, or there are none; the list is the popularity file of the model.",
    "model_failed": "The model failed on this request; the list is popularity.",
    "late": "The request's time was over before a model could be asked; the list is popularity.",
    "no_neighbours": "The model knows no similar items; popular ones are shown.",
    "explanation_unavailable": "The list stands, but was not explained: too many were asked for, or the model failed.",
}


RequestId = Annotated[str, Field(description="Id of the answer; send it back with the events the answer caused.")]
BundleId = Annotated[str | None, Field(description="Content hash of the model that was used; null if none was.")]
ModelVersion = Annotated[str | None, Field(description="Version of the model in the registry.")]
ArmName = Annotated[
    Literal["stable", "baseline", "canary"],
    Field(description="Arm of the plan the user belongs to; lists that are the same for everybody are stable."),
]
LevelName = Annotated[Level, Field(description="Rung of the ladder the answer stands on.")]
Reasons = Annotated[list[Reason], Field(description="Why the answer is not what it could be at best; often empty.")]
FeatureAge = Annotated[
    float | None,
    Field(description="Events accepted longer ago than so many seconds are in the features; null if unknown."),
]
ItemTableAge = Annotated[
    float | None,
    Field(description="Seconds since the items (price, availability, popularity) were last compared; null if never."),
]


@dataclass(slots=True, kw_only=True)
class ExplainedItem(RankedItem):
    """One line of a list that was asked for with `explain`."""

    summary: Annotated[str, Field(description="The score and what it is made of, or why no model scored the item.")]
    explanation: Annotated[
        list[Contribution],
        Field(description="The features that moved the score most, the largest first; empty where no model scored it."),
    ]


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A ranked list for a user."""

    request_id: RequestId
    user_id: str
    model_version: ModelVersion
    bundle_id: BundleId
    arm: ArmName
    level: LevelName
    reasons: Reasons
    feature_age_s: FeatureAge
    item_table_age_s: ItemTableAge
    items: Annotated[
        Sequence[ExplainedItem | RankedItem],
        Field(description="The list, best first; lines have `summary` and `explanation` if `explain` was asked for."),
    ]


@dataclass(frozen=True, slots=True)
class ItemList:
    """A ranked list that is the same for everybody."""

    request_id: RequestId
    model_version: ModelVersion
    bundle_id: BundleId
    arm: ArmName
    level: LevelName
    reasons: Reasons
    feature_age_s: FeatureAge
    item_table_age_s: ItemTableAge
    items: list[RankedItem]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """The score of one pair."""

    user_id: str
    item_id: str
    probability: Annotated[float, Field(description="Calibrated probability, 0 to 1.")]
    reasons: Reasons


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order of the pairs asked for."""

    request_id: RequestId
    model_version: ModelVersion
    bundle_id: BundleId
    arm: ArmName
    level: LevelName
    reasons: Reasons
    feature_age_s: FeatureAge
    item_table_age_s: ItemTableAge
    scores: list[ScoredPair]
    scored_by: Annotated[
        Literal["purchase", "ranker"],
        Field(description="Which model of the bundle scored: the purchase model where it has one, else its ranker."),
    ] = "ranker"
    horizon_days: Annotated[
        float | None,
        Field(description="The purchase model's probability is of a purchase within so many days; null for a ranker."),
    ] = None


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one event."""

    event_id: Annotated[
        str | None,
        Field(description="Its idempotency key: as sent, made up, or, for an impression with a request id, derived."),
    ]
    status: Literal["accepted", "duplicate", "rejected"]
    seq: Annotated[int | None, Field(description="Its place in the order of events; a duplicate has the first one's.")]
    reason: Annotated[str | None, Field(description="Why it was rejected: `<slug>: <detail>`.")]


@dataclass(frozen=True, slots=True)
class EventResults:
    """What became of a batch, in its order. Accepted events are durable and never lost."""

    accepted: int
    duplicates: int
    rejected: int
    retry_after_s: Annotated[int | None, Field(description="When to send again what is `rate_limited`; else null.")]
    results: list[EventResult]


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """What became of one verdict."""

    feedback_id: Annotated[str | None, Field(description="Its idempotency key: as sent, or derived from what it says.")]
    status: Literal["accepted", "duplicate", "rejected"]
    shown: Annotated[
        bool | None, Field(description="Whether the item was shown in that request; null: not known to this process.")
    ]
    seq: Annotated[int | None, Field(description="Its place in the order of events; a duplicate has the first one's.")]
    reason: Annotated[str | None, Field(description="Why it was rejected: `<slug>: <detail>`.")]


@dataclass(frozen=True, slots=True)
class FeedbackResults:
    """What became of a batch of verdicts, in its order. Accepted ones are durable and never lost."""

    accepted: int
    duplicates: int
    rejected: int
    retry_after_s: Annotated[int | None, Field(description="When to send again what is `rate_limited`; else null.")]
    results: list[FeedbackResult]


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one catalogue entry."""

    item_id: str | None
    change_id: Annotated[str | None, Field(description="Its idempotency key: as sent, or made up.")]
    status: Literal["accepted", "duplicate", "rejected"]
    seq: Annotated[int | None, Field(description="Its place in the one order of events and entries.")]
    reason: Annotated[str | None, Field(description="Why it was rejected: `<slug>: <detail>`.")]


@dataclass(frozen=True, slots=True)
class ItemResults:
    """What became of a batch, in its order. Accepted entries are durable and never lost."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[ItemResult]


@dataclass(frozen=True, slots=True)
class Live:
    """The process answers."""

    status: Literal["live"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether recommendations can be made, and what is not as it should be."""

    status: Literal["ready", "degraded", "not_ready", "draining"]
    epoch: Annotated[int | None, Field(description="Epoch of the plan obeyed.")]
    bundle_id: BundleId
    model_version: ModelVersion
    items: Annotated[int | None, Field(description="Items in the item table.")]
    item_table_age_s: ItemTableAge
    feature_age_s: FeatureAge
    problems: Annotated[list[str], Field(description="What is not as it should be, for a person.")]


@dataclass(frozen=True, slots=True)
class KnownCategory:
    """What a user did in one category: the columns of `user_category_affinity`."""

    category: str
    columns: dict[str, int | float | None]


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """One of the user's last events."""

    item_id: str
    event_type: str
    time_us: int


@dataclass(frozen=True, slots=True)
class UserFeatures:
    """What is known of a user now: the state the next answer is made from (docs/features.md)."""

    user_id: str
    known: bool
    user_stats: Annotated[dict[str, Any] | None, Field(description="Columns of `user_stats`; null if there is no row.")]
    categories: list[KnownCategory]
    recent: Annotated[list[KnownEvent], Field(description="Up to 200 events other than impressions, oldest first.")]
    feature_age_s: FeatureAge
