"""`/livez`, `/readyz` and `/metrics`: for machines that watch the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter, Request, Response

from serving.answers import Live, Readiness
from serving.drain import Drain
from serving.http import answer
from serving.metrics import CONTENT_TYPE
from serving.redis_client import RedisGuard
from serving.state import ServingState
from serving.workers import Workers, merged_expositions


def all_problems(state: ServingState, guard: RedisGuard, write_guard: RedisGuard) -> list[str]:
    """Return everything that is not as it should be, as sentences."""
    problems = state.all_problems()
    if guard.failing:
        problems.append("Redis does not answer; users' features are not read")
    if write_guard.failing:
        problems.append("Redis takes no events (gone, full or read-only): they are refused with 503")
    return problems


def health_routes(
    state: ServingState,
    guard: RedisGuard,
    write_guard: RedisGuard,
    workers: Workers,
    drain: Drain,
    now_us: Callable[[], int],
) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", summary="Whether the process answers", responses={200: {"model": Live}})
    async def livez(request: Request) -> Response:
        """Answer; nothing is looked at."""
        return answer(request, Live("live"))

    @router.get(
        "/readyz",
        summary="Whether recommendations can be made",
        responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Not ready"}},
    )
    async def readyz(request: Request) -> Response:
        """Ready means that a model bundle and an item table are loaded; `problems` says what is degraded.

        A process that is about to stop is not ready: balancers send it nothing more, though it still answers.
        """
        problems = all_problems(state, guard, write_guard)
        release, table = state.release, state.table
        status: Literal["ready", "degraded", "not_ready", "draining"] = "degraded" if problems else "ready"
        if not state.ready:
            status = "not_ready"
        if drain.draining:
            status = "draining"
        content = Readiness(
            status=status,
            epoch=release.plan.epoch if release else None,
            bundle_id=release.bundle.bundle_id if release else None,
            model_version=release.model_version if release else None,
            items=None if table is None else len(table),
            item_table_age_s=state.item_table_age_s,
            feature_age_s=state.feature_age_s(now_us()),
            problems=problems,
        )
        return answer(request, content, 200 if state.ready and not drain.draining else 503)

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def exposition() -> Response:
        """All metrics, in Prometheus' text format; of several processes, those of all, by `worker`."""
        said = await workers.ask("metrics")
        text = said["0"] if workers.number is None else merged_expositions(said)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    return router
