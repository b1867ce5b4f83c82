"""`POST /v1/items`, `GET /v1/items/popular` and `GET /v1/items/{item_id}/similar`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from feature_repo.errors import BadInputError
from serving.answers import ItemList, ItemResults
from serving.cacheable import cacheable
from serving.http import StrictRoute, answer
from serving.item_intake import ItemIntake
from serving.item_lists import ItemListService
from serving.problems import documented, problem
from serving.schemas import Id, ItemsRequest, PopularParameters, SimilarParameters

_NOT_CHANGED = {"description": "The caller has this list: its `If-None-Match` names the list's `ETag`"}


def item_routes(service: ItemListService, intake: ItemIntake) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, tags=["items"])

    @router.post(
        "/v1/items",
        summary="Send catalogue entries",
        status_code=202,
        responses={202: {"model": ItemResults}, **documented(413, 422, 503)},
    )
    async def items(request: Request, body: ItemsRequest) -> Response:
        """Add items and change some; within a second lists, features and the enrichment of events follow.

        An entry sets what it names and leaves the rest as it is; null clears a field. An unknown item is added,
        available unless the entry says otherwise. `available: false` and `blocked: true` take an item out of every
        list. Each entry is checked by itself, and appended to the stream of events: the later one of two wins. A
        `change_id` counts once within 7 days, so after a 503 or a lost answer send the same batch again.
        """
        results = await intake.take(body.items)
        if results.rejected == len(results.results):
            first = results.results[0].reason
            return problem(
                422, BadInputError.code, f"none of the {results.rejected} entries can be used; the first: {first}",
                field="body.items.0", hint="docs/events.md lists the rules",
            )  # fmt: skip
        return answer(request, results, 202)

    @router.get(
        "/v1/items/popular",
        summary="Popular items",
        responses={200: {"model": ItemList}, 304: _NOT_CHANGED, **documented(422, 503)},
    )
    async def popular(request: Request, query: Annotated[PopularParameters, Query()]) -> Response:
        """List the most bought items, all or of one category; the same for everybody."""
        return cacheable(request, service.popular(query.k, query.category, query.window))

    # `:path`, because an id may contain a slash.
    @router.get(
        "/v1/items/{item_id:path}/similar",
        summary="Items similar to an item",
        responses={200: {"model": ItemList}, 304: _NOT_CHANGED, **documented(404, 422, 503)},
    )
    async def similar(
        request: Request,
        item_id: Annotated[Id, Path(description="The item; an unknown one is answered as well.")],
        query: Annotated[SimilarParameters, Query()],
    ) -> Response:
        """List the items nearest to an item.

        Where the model knows none, popular items of its category are listed (`reasons`: `no_neighbours`), and popular
        items of all categories for an unknown item (`unknown_item`).
        """
        return cacheable(request, service.similar(item_id, query.k))

    return router
