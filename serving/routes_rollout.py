"""`/admin/rollout`: the live page of the rollout, for people on this machine, and its status for programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response

from feature_repo.errors import NotFoundError
from serving.live_page import HEADERS, live_page
from serving.loopback import require_loopback
from serving.problems import documented
from serving.rollout_page import rollout_view
from serving.rollout_status import RolloutStatus, decode_status

_PAGE: Final = live_page("Rollout", "/admin/rollout/view")


def rollout_routes(read: Callable[[], Awaitable[bytes | None]]) -> APIRouter:
    """Make the routes.

    Parameters
    ----------
    read
        Reads the newest status as the controller published it; None where there is none.
    """
    router = APIRouter(tags=["admin"])

    async def status() -> RolloutStatus:
        data = await read()
        if data is None:
            raise NotFoundError("no rollout was ever started; `larder rollout start` starts one")
        return decode_status(data)

    @router.get("/admin/rollout", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Show the page."""
        require_loopback(request)
        return Response(_PAGE, media_type="text/html", headers=HEADERS)

    @router.get("/admin/rollout/view", include_in_schema=False)
    async def view(request: Request) -> Response:
        """Return what the page shows now."""
        require_loopback(request)
        html = rollout_view(await status(), datetime.now(UTC))
        return Response(html, media_type="text/html", headers=HEADERS)

    @router.get(
        "/admin/rollout/status.json",
        summary="State of the rollout",
        responses={200: {"description": "`RolloutStatus`, see serving/rollout_status.py"}, **documented(403, 404, 503)},
    )
    async def status_json(request: Request) -> Response:
        """Return the newest rollout's arms, weights, tests, decision and history, as the controller published them."""
        require_loopback(request)
        return Response(msgspec.json.encode(await status()), media_type="application/json", headers=HEADERS)

    return router
