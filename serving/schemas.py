"""What the API takes: strict models. Anything that is not exactly right is refused at the edge with a clear message."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from feature_repo.event_rules import normalise_id
from feature_repo.events import MAX_ID_BYTES, EventType, Repeats
from serving.cascade.rerank import DiversityKind
from serving.event_entry import is_bounded_id
from serving.item_entry import MAX_DESCRIPTION, MAX_IMAGE, MAX_TAGS, MAX_TITLE

MAX_BODY_BYTES = 1_000_000
MAX_K = 1000
MAX_BATCH = 1000


def checked_id(text: str) -> str:
    """Return an id in NFC.

    Raises
    ------
    ValueError
        If it is none by the rules of events.
    """
    if not is_bounded_id(text):
        raise ValueError(f"an id is 1 to {MAX_ID_BYTES} bytes of text, not blank and without control characters")
    return normalise_id(text)


#: For readers of the OpenAPI document, which cannot say that it is bytes that are counted.
ID_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$"

Id = Annotated[
    str,
    AfterValidator(checked_id),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES, "pattern": ID_PATTERN}),
]
K = Annotated[int, Field(ge=1, le=MAX_K, description="Length of the list; fewer come back if there are no more.")]


class _Body(BaseModel):
    """A JSON body: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Parameters(BaseModel):
    """Query parameters: text that is converted, no unknown names."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RecommendationRequest(_Body):
    """Recommendations for a user."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "u00042", "k": 10},
                {"user_id": "u00042", "k": 5, "exclude": ["i00007"], "repeats": "drop", "request_id": "page-1"},
                {"user_id": "u00042", "k": 10, "diversity": "category_cap"},
                {"user_id": "u00042", "k": 3, "explain": True},
            ]
        }
    )

    user_id: Annotated[Id, Field(description="The user; an unknown one is answered as well.")]
    k: K = 20
    exclude: Annotated[list[Id], Field(max_length=1000, description="Items that must not be shown.")] = []
    repeats: Annotated[
        Repeats | None,
        Field(description="Whether items the user dealt with recently may be shown; null: as the model was made for."),
    ] = None
    request_id: Annotated[Id | None, Field(description="Your id of this request; one is made up if null.")] = None
    diversity: Annotated[
        DiversityKind | None,
        Field(
            description="`off`: by score alone; `category_cap`: at most so many items of one category, as many as the "
            "model's policy says; `mmr`: each item as unlike those above as the policy weighs; null: the policy's kind."
        ),
    ] = None
    explain: Annotated[
        bool,
        Field(description="Say of each item what moved its score most, in words too. Takes up to a second: to look "
              "into lists, not to show them."),
    ] = False  # fmt: skip


class SimilarParameters(_Parameters):
    """Parameters of similar items."""

    k: K = 20


class PopularParameters(_Parameters):
    """Parameters of popular items."""

    k: K = 20
    category: Annotated[Id | None, Field(description="Only items of this category.")] = None
    window: Annotated[
        Literal["1d", "7d", "30d", "90d", "all"],
        Field(description="Half-life with which purchases count; `all` counts all alike."),
    ] = "7d"


class Pair(_Body):
    """A user and an item."""

    user_id: Id
    item_id: Id


class ScoreRequest(_Body):
    """Pairs to score."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pairs": [{"user_id": "u00042", "item_id": "i00007"}]}]},
    )

    pairs: Annotated[list[Pair], Field(min_length=1, max_length=MAX_BATCH)]


class EventModel(_Body):
    """Something that happened. Documents an event; each is checked by itself, so that one bad one stops no other."""

    event_id: Annotated[
        Id | None, Field(description="Idempotency key: the same id within 7 days counts once. Made up if absent.")
    ] = None
    user_id: Id
    item_id: Id
    event_type: Annotated[
        Literal[tuple(EventType.__members__)],  # type: ignore[valid-type] # the names of the enum, at runtime
        Field(description="A click on a recommendation is a `view` with `request_id` and `rank`."),
    ]
    value: Annotated[
        float | None,
        Field(ge=0, description="Money in minor units (price x quantity), or the rating. Purchases and cancels get it "
              "from price and quantity if it is absent."),
    ] = None  # fmt: skip
    price: Annotated[int | None, Field(ge=0, description="Unit price, minor units; the catalogue's if absent.")] = None
    quantity: Annotated[int | None, Field(ge=1)] = None
    event_timestamp: Annotated[
        str | None,
        Field(
            json_schema_extra={"format": "date-time"},
            description="When it happened, ISO 8601 with time zone; now if absent. Older than 7 days is refused.",
        ),
    ] = None
    session_id: Id | None = None
    request_id: Annotated[Id | None, Field(description="The recommendation it answers.")] = None
    rank: Annotated[int | None, Field(ge=1, description="Where the item stood in it.")] = None
    context: Annotated[dict[str, Any] | None, Field(description="Anything else, at most 4,096 bytes of JSON.")] = None


_EVENT_EXAMPLE: dict[str, JsonValue] = {
    "event_id": "3f0c9b5e-1",
    "user_id": "u00042",
    "item_id": "i00007",
    "event_type": "view",
    "request_id": "page-1",
    "rank": 3,
}


class EventsRequest(_Body):
    """A batch of events."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [_EVENT_EXAMPLE]}]})

    events: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, max_length=MAX_BATCH),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": EventModel.model_json_schema(),
            }
        ),
    ]


class FeedbackModel(_Body):
    """A verdict on an item that was shown. Documents one; each is checked by itself."""

    feedback_id: Annotated[
        Id | None, Field(description="Idempotency key, 7 days. If absent: made of all the other fields.")
    ] = None
    request_id: Annotated[Id, Field(description="The recommendation the item was in.")]
    user_id: Id
    item_id: Id
    verdict: Literal["confirm", "reject"]
    event_timestamp: Annotated[
        str | None,
        Field(
            json_schema_extra={"format": "date-time"},
            description="When it was given, ISO 8601 with time zone; now if absent. Older than 7 days is refused.",
        ),
    ] = None


_FEEDBACK_EXAMPLE: dict[str, JsonValue] = {
    "feedback_id": "3f0c9b5e-2",
    "request_id": "page-1",
    "user_id": "u00042",
    "item_id": "i00007",
    "verdict": "reject",
}


class FeedbackRequest(_Body):
    """A batch of verdicts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"feedback": [_FEEDBACK_EXAMPLE]}]})

    feedback: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, max_length=MAX_BATCH),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": FeedbackModel.model_json_schema(),
            }
        ),
    ]


class ItemModel(_Body):
    """A catalogue entry. Documents one; each is checked by itself, so that one bad one stops no other."""

    change_id: Annotated[
        Id | None, Field(description="Idempotency key: the same id within 7 days counts once. Made up if absent.")
    ] = None
    item_id: Id
    title: Annotated[str | None, Field(max_length=MAX_TITLE)] = None
    category: Id | None = None
    price: Annotated[int | None, Field(ge=0, description="Unit price, minor units.")] = None
    created_at: Annotated[
        str | None,
        Field(
            json_schema_extra={"format": "date-time"},
            description="When the item came into the shop, ISO 8601 with time zone; of a new item: now if absent.",
        ),
    ] = None
    tags: Annotated[list[Id] | None, Field(max_length=MAX_TAGS)] = None
    description: Annotated[str | None, Field(max_length=MAX_DESCRIPTION)] = None
    image: Annotated[str | None, Field(max_length=MAX_IMAGE, description="URL.")] = None
    available: Annotated[bool, Field(description="Whether it can be bought; only then it is recommended.")] = True
    blocked: Annotated[bool, Field(description="An operator keeps it out of every list.")] = False


_ITEM_EXAMPLES: list[JsonValue] = [
    {"items": [{"item_id": "i90001", "title": "Blue mug", "category": "cups", "price": 1250, "tags": ["blue"]}]},
    {"items": [{"item_id": "i00007", "price": 990}, {"item_id": "i00008", "available": False}]},
    {"items": [{"change_id": "recall-17", "item_id": "i00009", "blocked": True}]},
]


class ItemsRequest(_Body):
    """A batch of catalogue entries: what an entry names is set, what it does not name stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": _ITEM_EXAMPLES})

    items: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, max_length=MAX_BATCH),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": ItemModel.model_json_schema(),
            }
        ),
    ]
