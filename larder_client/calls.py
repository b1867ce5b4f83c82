"""The endpoints, each described once for the synchronous and the asynchronous client; and how answers are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from larder_client.answers import (
    ErrorAnswer,
    Event,
    EventResults,
    Feedback,
    FeedbackResults,
    Item,
    ItemList,
    ItemResults,
    Readiness,
    Recommendations,
    Scores,
)

T = TypeVar("T")
Repeats = Literal["keep", "drop"]
Diversity = Literal["off", "category_cap", "mmr"]


class ApiError(Exception):
    """The API refused a request or failed.

    Attributes
    ----------
    status
        HTTP status; 0 if no answer came (see `ApiUnavailableError`).
    code, message, field, hint
        As the API says them.
    retry_after_s
        After how many seconds to try again (429 and 503); None if the API does not say.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{message} [{status} {code}]" + (f"; {hint}" if hint else ""))
        self.status, self.code, self.message, self.field, self.hint = status, code, message, field, hint
        self.retry_after_s = retry_after_s


class ApiUnavailableError(ApiError):
    """No answer: refused connection, or nothing within the time limit."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "unavailable", message)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the type of its answer."""

    method: str
    path: str
    answer: type[T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    also: tuple[int, ...] = ()  #: statuses besides 2xx that carry the answer
    repeats: bool = False  #: whether it may be sent again as it is: nothing in it counts twice

    def content(self) -> bytes | None:
        """Return the body as JSON."""
        return None if self.body is None else msgspec.json.encode(self.body)

    def read(self, response: httpx.Response) -> T:
        """Return the answer.

        Raises
        ------
        ApiError
            For a status of 400 or more, or an answer that is not what the API promises.
        """
        if response.is_success or response.status_code in self.also:
            try:
                return msgspec.json.decode(response.content, type=self.answer)
            except msgspec.DecodeError as error:
                raise ApiError(response.status_code, "bad_answer", f"{self.path}: {error}") from None
        raise error_of(response)


def error_of(response: httpx.Response) -> ApiError:
    """Return the error an answer stands for."""
    try:
        said = msgspec.json.decode(response.content, type=ErrorAnswer).error
    except msgspec.DecodeError:  # a proxy's error page
        phrase = f"{response.url.path}: {response.reason_phrase}"
        return ApiError(response.status_code, "http", phrase, retry_after_s=retry_after_s(response))
    return ApiError(response.status_code, said.code, said.message, said.field, said.hint, retry_after_s(response))


def retry_after_s(response: httpx.Response) -> float | None:
    """Return after how many seconds the API wants to be asked again (429 and 503); None if it does not say."""
    said = response.headers.get("retry-after", "")
    return float(said) if response.status_code in (429, 503) and said.isdigit() else None


def read_text(response: httpx.Response) -> str:
    """Return an answer that is plain text.

    Raises
    ------
    ApiError
        For a status of 400 or more.
    """
    if not response.is_success:
        raise error_of(response)
    return response.text


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def recommend(
    user_id: str,
    k: int,
    exclude: Sequence[str],
    repeats: Repeats | None,
    request_id: str | None,
    diversity: Diversity | None,
    *,
    explain: bool,
) -> Call[Recommendations]:
    """`POST /v1/recommendations`."""
    given = {"exclude": list(exclude) or None, "repeats": repeats, "request_id": request_id, "diversity": diversity}
    body = _given(user_id=user_id, k=k, **given, explain=explain or None)
    return Call("POST", "/v1/recommendations", Recommendations, body=body)


def similar(item_id: str, k: int) -> Call[ItemList]:
    """`GET /v1/items/{item_id}/similar`."""
    return Call("GET", f"/v1/items/{quote(item_id, safe='')}/similar", ItemList, params={"k": k})


def popular(k: int, category: str | None, window: str | None) -> Call[ItemList]:
    """`GET /v1/items/popular`."""
    return Call("GET", "/v1/items/popular", ItemList, params=_given(k=k, category=category, window=window))


def score(pairs: Iterable[tuple[str, str]]) -> Call[Scores]:
    """`POST /v1/score`."""
    body = {"pairs": [{"user_id": user_id, "item_id": item_id} for user_id, item_id in pairs]}
    return Call("POST", "/v1/score", Scores, body=body)


def send(events: Iterable[Event]) -> Call[EventResults]:
    """`POST /v1/events`."""
    return Call("POST", "/v1/events", EventResults, body={"events": list(events)}, repeats=True)


def give_feedback(feedback: Iterable[Feedback]) -> Call[FeedbackResults]:
    """`POST /v1/feedback`."""
    return Call("POST", "/v1/feedback", FeedbackResults, body={"feedback": list(feedback)}, repeats=True)


def upsert_items(items: Iterable[Item]) -> Call[ItemResults]:
    """`POST /v1/items`."""
    return Call("POST", "/v1/items", ItemResults, body={"items": list(items)}, repeats=True)


def set_availability(availability: Mapping[str, bool]) -> Call[ItemResults]:
    """`POST /v1/items`, availability only."""
    return upsert_items(Item(item_id=item_id, available=available) for item_id, available in availability.items())


def block(item_ids: Iterable[str], *, blocked: bool) -> Call[ItemResults]:
    """`POST /v1/items`, blocks only."""
    return upsert_items(Item(item_id=item_id, blocked=blocked) for item_id in item_ids)


def readiness() -> Call[Readiness]:
    """`GET /readyz`: 503 says why it is not ready."""
    return Call("GET", "/readyz", Readiness, also=(503,))
