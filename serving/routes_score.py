"""`POST /v1/score`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serving.answers import Scores
from serving.http import StrictRoute, answer
from serving.problems import documented
from serving.schemas import ScoreRequest
from serving.score import ScoreService


def score_routes(service: ScoreService) -> APIRouter:
    """Make the route."""
    router = APIRouter(route_class=StrictRoute, tags=["recommendations"])

    @router.post(
        "/v1/score",
        summary="Probability for given pairs",
        responses={200: {"model": Scores}, **documented(413, 422, 503)},
    )
    async def score(request: Request, body: ScoreRequest) -> Response:
        """Score user-item pairs: the probability of a purchase, by the purchase model or, without one, by the ranker.

        Unknown users and items are scored by what is known, and marked. Pairs of one user are cheaper than as many
        users. 503 if no model is loaded.
        """
        return answer(request, await service.score([(pair.user_id, pair.item_id) for pair in body.pairs]))

    return router
