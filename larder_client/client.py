"""The typed HTTP client of Larder's API: `LarderClient`, and `AsyncLarderClient` with the same methods to await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from larder_client import calls
from larder_client.answers import (
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
from larder_client.calls import ApiUnavailableError, Call, Diversity, Repeats, retry_after_s

T = TypeVar("T")
Traceparent = Callable[[], str | None]

_HEADERS = {"content-type": "application/json", "accept": "application/json"}


class LarderClient:
    """Synchronous client; keeps connections open, so use one for many requests and close it (or use `with`).

    Every method raises `larder_client.calls.ApiError` where the API refuses or fails, and its subclass
    `ApiUnavailableError` where no answer comes within `timeout_s`.

    Parameters
    ----------
    base_url
        For example "http://127.0.0.1:8099".
    timeout_s
        Longest wait for a connection, and for each part of an answer.
    patience_s
        How long events and items are sent again where the API asks for it (429 and 503 with Retry-After); 0: never.
    traceparent
        Returns the W3C `traceparent` of what the caller does now (None: nothing), which then goes with every request.
    """

    def __init__(
        self, base_url: str, timeout_s: float = 2.0, patience_s: float = 5.0, *, traceparent: Traceparent | None = None
    ) -> None:
        self._patience_s = patience_s
        self._traceparent = traceparent
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, headers=_HEADERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def recommend(
        self,
        user_id: str,
        k: int = 20,
        *,
        exclude: Sequence[str] = (),
        repeats: Repeats | None = None,
        request_id: str | None = None,
        diversity: Diversity | None = None,
        explain: bool = False,
    ) -> Recommendations:
        """Return `k` items for a user; an unknown user gets an answer too.

        Parameters
        ----------
        exclude
            Items that must not be shown.
        repeats
            Whether items the user dealt with recently may be shown; None: as the model was made for.
        request_id
            Your id of this request; one is made up if None.
        diversity
            `off`, `category_cap` or `mmr`; None: as the model's policy says.
        explain
            Whether each item says what moved its score most; takes up to a second.
        """
        wish = calls.recommend(user_id, k, exclude, repeats, request_id, diversity, explain=explain)
        return self._call(wish)

    def similar(self, item_id: str, k: int = 20) -> ItemList:
        """Return items that go with an item."""
        return self._call(calls.similar(item_id, k))

    def popular(self, k: int = 20, category: str | None = None, window: str | None = None) -> ItemList:
        """Return what is popular, in all categories or one; `window` ("1d" to "90d", "all") is the half-life."""
        return self._call(calls.popular(k, category, window))

    def score(self, pairs: Iterable[tuple[str, str]]) -> Scores:
        """Return the probability for each (user_id, item_id)."""
        return self._call(calls.score(pairs))

    def send(self, events: Iterable[Event]) -> EventResults:
        """Send events; after an `ApiUnavailableError` send the same objects again, each counts once."""
        return self._call(calls.send(events))

    def give_feedback(self, feedback: Iterable[Feedback]) -> FeedbackResults:
        """Confirm or reject items shown; after an `ApiUnavailableError` send the same objects again."""
        return self._call(calls.give_feedback(feedback))

    def upsert_items(self, items: Iterable[Item]) -> ItemResults:
        """Add items to the catalogue, or change what they name of known ones."""
        return self._call(calls.upsert_items(items))

    def set_availability(self, availability: Mapping[str, bool]) -> ItemResults:
        """Say of items whether they can be bought; those that cannot leave every list."""
        return self._call(calls.set_availability(availability))

    def block(self, item_ids: Iterable[str], *, blocked: bool = True) -> ItemResults:
        """Take items out of every list though the shop has them, or let them in again."""
        return self._call(calls.block(item_ids, blocked=blocked))

    def live(self) -> bool:
        """Whether the process answers."""
        try:
            return self._request("GET", "/livez").is_success
        except ApiUnavailableError:
            return False

    def readiness(self) -> Readiness:
        """Return whether it can recommend, and what is not as it should be."""
        return self._call(calls.readiness())

    def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return calls.read_text(self._request("GET", "/metrics"))

    def _call(self, call: Call[T]) -> T:
        content, deadline = call.content(), time.monotonic() + self._patience_s
        while True:
            response = self._request(call.method, call.path, params=call.params, content=content)
            pause = retry_after_s(response) if call.repeats else None
            if pause is None or time.monotonic() + pause > deadline:
                return call.read(response)
            time.sleep(pause)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, headers=_traced(self._traceparent), **options)
        except httpx.TransportError as error:
            raise ApiUnavailableError(_why(method, path, error)) from error


class AsyncLarderClient:
    """The same client for `await`; see `LarderClient`."""

    def __init__(
        self, base_url: str, timeout_s: float = 2.0, patience_s: float = 5.0, *, traceparent: Traceparent | None = None
    ) -> None:
        self._patience_s = patience_s
        self._traceparent = traceparent
        self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, headers=_HEADERS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def recommend(
        self,
        user_id: str,
        k: int = 20,
        *,
        exclude: Sequence[str] = (),
        repeats: Repeats | None = None,
        request_id: str | None = None,
        diversity: Diversity | None = None,
        explain: bool = False,
    ) -> Recommendations:
        """Return `k` items for a user; an unknown user gets an answer too.

        Parameters
        ----------
        exclude
            Items that must not be shown.
        repeats
            Whether items the user dealt with recently may be shown; None: as the model was made for.
        request_id
            Your id of this request; one is made up if None.
        diversity
            `off`, `category_cap` or `mmr`; None: as the model's policy says.
        explain
            Whether each item says what moved its score most; takes up to a second.
        """
        wish = calls.recommend(user_id, k, exclude, repeats, request_id, diversity, explain=explain)
        return await self._call(wish)

    async def similar(self, item_id: str, k: int = 20) -> ItemList:
        """Return items that go with an item."""
        return await self._call(calls.similar(item_id, k))

    async def popular(self, k: int = 20, category: str | None = None, window: str | None = None) -> ItemList:
        """Return what is popular, in all categories or one; `window` ("1d" to "90d", "all") is the half-life."""
        return await self._call(calls.popular(k, category, window))

    async def score(self, pairs: Iterable[tuple[str, str]]) -> Scores:
        """Return the probability for each (user_id, item_id)."""
        return await self._call(calls.score(pairs))

    async def send(self, events: Iterable[Event]) -> EventResults:
        """Send events; after an `ApiUnavailableError` send the same objects again, each counts once."""
        return await self._call(calls.send(events))

    async def give_feedback(self, feedback: Iterable[Feedback]) -> FeedbackResults:
        """Confirm or reject items shown; after an `ApiUnavailableError` send the same objects again."""
        return await self._call(calls.give_feedback(feedback))

    async def upsert_items(self, items: Iterable[Item]) -> ItemResults:
        """Add items to the catalogue, or change what they name of known ones."""
        return await self._call(calls.upsert_items(items))

    async def set_availability(self, availability: Mapping[str, bool]) -> ItemResults:
        """Say of items whether they can be bought; those that cannot leave every list."""
        return await self._call(calls.set_availability(availability))

    async def block(self, item_ids: Iterable[str], *, blocked: bool = True) -> ItemResults:
        """Take items out of every list though the shop has them, or let them in again."""
        return await self._call(calls.block(item_ids, blocked=blocked))

    async def live(self) -> bool:
        """Whether the process answers."""
        try:
            return (await self._request("GET", "/livez")).is_success
        except ApiUnavailableError:
            return False

    async def readiness(self) -> Readiness:
        """Return whether it can recommend, and what is not as it should be."""
        return await self._call(calls.readiness())

    async def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return calls.read_text(await self._request("GET", "/metrics"))

    async def _call(self, call: Call[T]) -> T:
        content, deadline = call.content(), time.monotonic() + self._patience_s
        while True:
            response = await self._request(call.method, call.path, params=call.params, content=content)
            pause = retry_after_s(response) if call.repeats else None
            if pause is None or time.monotonic() + pause > deadline:
                return call.read(response)
            await asyncio.sleep(pause)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, headers=_traced(self._traceparent), **options)
        except httpx.TransportError as error:
            raise ApiUnavailableError(_why(method, path, error)) from error


def _traced(traceparent: Traceparent | None) -> dict[str, str]:
    now = None if traceparent is None else traceparent()
    return {} if now is None else {"traceparent": now}


def _why(method: str, path: str, error: httpx.TransportError) -> str:
    return f"{method} {path}: {type(error).__name__} {error}".rstrip()
