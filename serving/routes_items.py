"""`GET /v1/items/popular` and `GET /v1/items/{item_id}/similar`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from serving.answers import ItemList
from serving.http import StrictRoute, answer
from serving.item_lists import ItemListService
from serving.problems import documented
from serving.schemas import Id, PopularParameters, SimilarParameters


def item_routes(service: ItemListService) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, tags=["items"])

    @router.get(
        "/v1/items/popular",
        summary="Popular items",
        responses={200: {"model": ItemList}, **documented(422, 503)},
    )
    async def popular(request: Request, query: Annotated[PopularParameters, Query()]) -> Response:
        """List the most bought items, all or of one category; the same for everybody."""
        return answer(request, service.popular(query.k, query.category, query.window))

    # `:path`, because an id may contain a slash.
    @router.get(
        "/v1/items/{item_id:path}/similar",
        summary="Items similar to an item",
        responses={200: {"model": ItemList}, **documented(422, 503)},
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
        return answer(request, service.similar(item_id, query.k))

    return router
