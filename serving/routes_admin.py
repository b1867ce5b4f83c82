"""`/admin/...`: for people on this machine only, until there are accounts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from feature_repo.errors import UnavailableError
from feature_repo.events import EventType
from feature_repo.rows import Rows
from feature_repo.views import NULL_INT
from serving.answers import KnownCategory, KnownEvent, UserFeatures
from serving.feature_reads import FeatureReads
from serving.http import StrictRoute, answer
from serving.loopback import require_loopback
from serving.problems import documented
from serving.schemas import Id
from serving.state import ServingState


def admin_routes(state: ServingState, reads: FeatureReads, now_us: Callable[[], int]) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, tags=["admin"])

    @router.get(
        "/admin/users/{user_id:path}/features",
        summary="What is known of a user now",
        responses={200: {"model": UserFeatures}, **documented(403, 404, 422, 503)},
    )
    async def user_features(request: Request, user_id: Annotated[Id, Path()]) -> Response:
        """Show the state the user's next answer is made from; docs/features.md says what the columns mean."""
        require_loopback(request)
        moment = now_us()
        user = await reads.user(user_id, moment)
        if user is None:
            raise UnavailableError("Redis did not answer in time, so the user's features cannot be shown; try again")
        recent = zip(user.recent.item_ids, user.recent.types.tolist(), user.recent.times.tolist(), strict=True)
        content = UserFeatures(
            user_id=user_id,
            known=user.known,
            user_stats=_columns(user.stats, 0) if user.stats.present[0] else None,
            categories=[
                KnownCategory(name, _columns(user.affinities, row))
                for row, name in enumerate(user.categories)
                if user.affinities.present[row]
            ],
            recent=[KnownEvent(item_id, EventType(code).name, time_us) for item_id, code, time_us in recent],
            feature_age_s=state.feature_age_s(moment),
        )
        return answer(request, content)

    return router


def _columns(rows: Rows, row: int) -> dict[str, int | float | None]:
    """Return one row by column name, None for null."""
    ints = zip(rows.view.ints, rows.ints[row].tolist(), strict=True)
    floats = zip(rows.view.floats, rows.floats[row].tolist(), strict=True)
    return {name: None if value == NULL_INT else value for name, value in ints} | {
        name: None if math.isnan(value) else value for name, value in floats
    }
