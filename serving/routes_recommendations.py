"""`POST /v1/recommendations`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from serving.answers import Recommendations
from serving.http import StrictRoute, answer
from serving.metrics import Metrics
from serving.problems import documented
from serving.recommend import RecommendationService, Wish
from serving.schemas import RecommendationRequest


def recommendation_routes(service: RecommendationService, metrics: Metrics) -> APIRouter:
    """Make the route."""
    router = APIRouter(route_class=StrictRoute, tags=["recommendations"])
    encode = metrics.stage["encode"]

    @router.post(
        "/v1/recommendations",
        summary="Recommend items to a user",
        responses={200: {"model": Recommendations}, **documented(413, 422, 503)},
    )
    async def recommendations(request: Request, body: RecommendationRequest) -> Response:
        """Rank items for a user.

        Unknown users, empty histories, a `k` over the catalogue and missing features are answered, on a lower rung of
        the ladder where need be: `level` says which, `reasons` why. Send `request_id` and `rank` back with the events
        the list causes. With `explain`, every item says which features raised or lowered its score most.
        """
        wish = Wish(body.user_id, body.k, body.exclude, body.repeats, body.request_id, body.diversity, body.explain)
        recommended = await service.recommend(wish)
        start = time.perf_counter()
        response = answer(request, recommended)
        encode.observe(time.perf_counter() - start)
        return response

    return router
