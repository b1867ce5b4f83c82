"""`/status`: whether users are served well now, for people on this machine. It reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Request, Response

from serving.live_page import HEADERS, live_page
from serving.loopback import require_loopback
from serving.plan import Plan
from serving.state import ServingState
from serving.status_page import STYLE, Facts, status_view
from serving.status_samples import merged
from serving.workers import Workers

#: What processes ask each other for.
TOPIC: Final = "status"
_PAGE: Final = live_page("Status", "/status/view", STYLE)
_BUCKETS: Final = 10_000


def status_routes(
    project: str,
    state: ServingState,
    workers: Workers,
    problems: Callable[[], list[str]],
    now_us: Callable[[], int],
) -> APIRouter:
    """Make the routes.

    Parameters
    ----------
    problems
        All that is not as it should be, in sentences.
    """
    router = APIRouter(tags=["admin"])

    @router.get("/status", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Show the page."""
        require_loopback(request)
        return Response(_PAGE, media_type="text/html", headers=HEADERS)

    @router.get("/status/view", include_in_schema=False)
    async def view(request: Request) -> Response:
        """Return what the page shows now."""
        require_loopback(request)
        said = await workers.ask(TOPIC)
        answered = [text for text in said.values() if text is not None]
        facts = _facts(project, state, problems(), now_us(), len(said), len(answered))
        # Beside the event loop: drawing takes as long as several lists do.
        html = await asyncio.to_thread(lambda: status_view(facts, merged(answered)))
        return Response(html, media_type="text/html", headers=HEADERS)

    return router


def _facts(
    project: str, state: ServingState, problems: list[str], now_us: int, processes: int, answering: int
) -> Facts:
    ingest, plan = state.ingest, None if state.release is None else state.release.plan
    return Facts(
        project=project,
        ready=state.ready,
        problems=problems,
        epoch=plan.epoch if plan else None,
        arms=_arms(plan) if plan else [],
        items=None if state.table is None else len(state.table),
        item_table_age_s=state.item_table_age_s,
        feature_age_s=state.feature_age_s(now_us),
        ingest_lag_s=ingest.lag_ms / 1e3,
        updated_s=max(now_us / 1e6 - ingest.updated_ms / 1e3, 0.0) if ingest.updated_ms else None,
        stream_entries=ingest.stream_entries,
        quarantine_waiting=ingest.quarantine_waiting,
        processes=processes,
        answering=answering,
    )


def _arms(plan: Plan) -> list[tuple[str, str, str, float]]:
    """Return name, version, bundle and percent of users of each arm; the baseline is the stable one's."""
    weight = 100.0 * plan.weight / _BUCKETS if plan.canary else 0.0
    arms = [("stable", plan.stable.model_version, plan.stable.bundle_id, 100.0 - weight)]
    if plan.canary:
        arms.append(("canary", plan.canary.model_version, plan.canary.bundle_id, weight))
    if plan.shadow:
        arms.append(("shadow", plan.shadow.model_version, plan.shadow.bundle_id, 0.0))
    return arms
