"""`create_app`: puts the service together. Everything it needs comes in as settings; nothing happens at import."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncIterator, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from redis.asyncio import Redis
from threadpoolctl import threadpool_limits

from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.settings import Settings
from serving import problems
from serving.admission import Admission, Door
from serving.background import BackgroundWork
from serving.child_scorer.process import ENTRY, ChildLimits
from serving.cors import allowed_origins, install_cors
from serving.drain import Drain
from serving.event_intake import EventIntake
from serving.explainer import Explainer
from serving.exploration import exploration_of
from serving.feature_reads import FeatureReads
from serving.feedback_intake import FeedbackIntake
from serving.garbage import collection_by_the_clock, leave_alone_what_is_loaded
from serving.hidden_items import load_hidden, remember_hidden
from serving.hot_path import HotPath
from serving.http import MeasuredApp
from serving.impression_log import ImpressionLog
from serving.ingest_status import read_ingest
from serving.item_intake import ItemIntake
from serving.item_lists import ItemListService
from serving.item_table_source import ItemTableSource
from serving.metrics import Metrics
from serving.observed import observe
from serving.protocol import EDGE, Edge
from serving.recommend import RecommendationService
from serving.redis_client import BACKGROUND_TIMEOUT_S, RedisGuard, connect, connect_events, open_pipe
from serving.release_loader import ReleaseLoader
from serving.rollout_status import rollout_status_key
from serving.routes_admin import admin_routes
from serving.routes_docs import install_docs
from serving.routes_events import event_routes
from serving.routes_feedback import feedback_routes
from serving.routes_health import all_problems, health_routes
from serving.routes_items import item_routes
from serving.routes_recommendations import recommendation_routes
from serving.routes_reports import report_routes
from serving.routes_rollout import rollout_routes
from serving.routes_score import score_routes
from serving.routes_status import TOPIC, status_routes
from serving.score import ScoreService
from serving.shadow import Shadow
from serving.state import ServingState
from serving.status_history import StatusHistory
from serving.status_samples import EVERY_S
from serving.stream_entry import NewItems, StreamEntry
from serving.trace_export import TraceExporter, exporter_of
from serving.tracing import TracedApp
from serving.workers import Workers

_DESCRIPTION = """\
Recommendations, similar and popular items, scores, and the events that change them.

Every list says how it was made: `model_version`, `bundle_id`, `arm`, `level` of the ladder, `reasons`, `feature_age_s`,
`item_table_age_s`.
Errors have one format: `{"error": {"code", "message", "field", "hint"}}`.
"""


#: How long a thread may keep the interpreter from the event loop.
SWITCH_INTERVAL_S: Final = 0.0005


def now_us() -> int:
    """Wall clock in µs since the epoch, UTC."""
    return time.time_ns() // 1000


def _one_request_at_a_time() -> None:
    """Set the process up for an event loop that must never wait for a thread."""
    # A request's products are too small to share: waking other threads for them takes longer than they do.
    threadpool_limits(1, "blas")
    # A thread that writes records or derives a table keeps the interpreter for 5 ms at a time by default, whenever the
    # event loop lets go of it, several times a request: at 50 requests a second 5 % took over 47 ms instead of 21.
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def create_app(
    settings: Settings,
    *,
    redis: Redis | None = None,
    child_limits: ChildLimits | None = None,
    child_entry: str = ENTRY,
    workers_dir: Path | None = None,
) -> FastAPI:
    """Make the service of one project.

    Parameters
    ----------
    settings
        Where Redis, bundles and plan are, and how long to wait.
    redis
        Client to use instead of one made from the settings; closed by whoever made it.
    child_limits, child_entry
        Of candidates' processes, see `ReleaseLoader`.
    workers_dir
        Where several processes of one parent meet (serving/workers.py); None: this is the only one.
    """
    _one_request_at_a_time()
    client, pipe = connect(settings) if redis is None else redis, open_pipe(settings)
    metrics, workers, drain = Metrics(), Workers(workers_dir), Drain(settings.drain_ms / 1000)
    workers.answer("metrics", lambda: metrics.exposition(workers.number))
    # One breaker for reads, one for writes: a Redis that is full, read-only or slow to write can still be read.
    guard, write_guard = (RedisGuard(settings.redis_timeout_ms / 1000) for _ in range(2))
    reader = AsyncOnlineReader(client, settings.project)
    state = ServingState(ItemTableSource(reader, now_us), hidden=load_hidden(settings.hidden_items_path))
    loader = ReleaseLoader(settings, client, state, metrics, limits=child_limits, entry=child_entry)
    impressions = ImpressionLog(
        settings.impressions_dir, metrics.impressions_dropped.inc, keep_days=settings.impression_days
    )
    # Of a connection of its own: a request must not wait behind the item table's thousand rows.
    asking = AsyncOnlineReader(pipe if redis is None else redis, settings.project)
    reads, explainer, traces = FeatureReads(asking, guard, metrics), Explainer(), exporter_of(settings, metrics)
    shadow = Shadow(settings, state, reads, metrics)
    recommendations = RecommendationService(
        state,
        reads,
        impressions,
        explainer,
        metrics,
        now_us,
        all_candidates_share=settings.impression_all_candidates_share,
        canary_timeout_s=settings.canary_timeout_ms / 1000,
        budget_s=settings.request_budget_ms / 1000 if settings.request_budget_ms else math.inf,
        shadow=shadow,
        traced=traces is not None,
        exploration=exploration_of(settings),
    )
    edge, new_items, stream = _edge(settings, metrics), NewItems(settings.max_items), connect_events(settings, client)
    entry = StreamEntry(settings, stream, write_guard, metrics)
    events = EventIntake(settings, entry, new_items, state, metrics, now_us)
    items = ItemIntake(settings, entry, new_items, state, metrics, now_us)
    history = StatusHistory(metrics, state, (guard, write_guard))
    workers.answer(TOPIC, history.encoded)
    observe(
        metrics,
        state,
        now_us,
        {
            "impressions": lambda: impressions.waiting,
            "shadow": lambda: shadow.waiting,
            "explanations": lambda: explainer.waiting,
            **({} if traces is None else {"traces": lambda: traces.waiting}),
        },
        {"read": guard, "write": write_guard},
    )

    async def refresh() -> None:
        async with asyncio.timeout(BACKGROUND_TIMEOUT_S):
            if await state.items.refresh():
                await remember_hidden(state, settings.hidden_items_path)
            state.ingest = await read_ingest(client, settings.project, reader)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        impressions.start()
        shadow.start()
        await workers.start()
        works = [
            BackgroundWork("item table", settings.item_refresh_ms / 1000, refresh, state.problems),
            BackgroundWork("plan", settings.plan_poll_ms / 1000, loader.poll, state.problems),
            BackgroundWork("status", EVERY_S / 4, lambda: history.take(now_us()), state.problems),
        ]
        await asyncio.gather(*(work.run_once() for work in works))
        leave_alone_what_is_loaded()
        works.append(collection_by_the_clock(state))
        for work in works:
            work.start()
        try:
            with drain.on_sigterm(), traces.running() if traces else contextlib.nullcontext():
                yield {EDGE: edge}  # uvicorn hands it to `EdgeProtocol`
        finally:
            await asyncio.gather(*(work.stop() for work in works), shadow.stop(), workers.stop())
            await loader.stop()
            await asyncio.to_thread(impressions.stop)
            await asyncio.to_thread(explainer.stop)
            await pipe.aclose()
            for own in {stream, client} - {redis}:
                await own.aclose()

    app = FastAPI(
        title="Larder",
        version=version("larder"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # The framework's own, which asks the environment at every request; ours are in tracing.py and metrics.py.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.serving = state
    app.state.metrics = metrics
    _install(
        app,
        (
            recommendation_routes(recommendations, metrics),
            item_routes(ItemListService(state, now_us), items),
            score_routes(ScoreService(state, reads, now_us)),
            event_routes(events),
            feedback_routes(FeedbackIntake(events, impressions.lists)),
            admin_routes(state, reads, now_us),
            report_routes(settings.reports_dir),
            rollout_routes(lambda: guard.call(lambda: client.get(rollout_status_key(settings.project)))),
            status_routes(settings.project, state, workers, lambda: all_problems(state, guard, write_guard), now_us),
            health_routes(state, guard, write_guard, workers, drain, now_us),
        ),
        recommendations,
        metrics,
        edge,
        drain,
        settings,
        traces,
    )
    return app


def _edge(settings: Settings, metrics: Metrics) -> Edge:
    # A refusal by the protocol has no headers for browsers: where pages are to read it, the middleware refuses.
    early = not allowed_origins(settings.cors_origins)
    return Edge(Door(settings.max_under_way, metrics), metrics, settings.receive_timeout_s, refuse_early=early)


def _install(
    app: FastAPI,
    routers: Iterable[APIRouter],
    recommendations: RecommendationService,
    metrics: Metrics,
    edge: Edge,
    drain: Drain,
    settings: Settings,
    traces: TraceExporter | None,
) -> None:
    """Add pages, routes and what is around them, the outermost last."""
    app.state.edge = edge
    install_docs(app)
    problems.install(app)
    for router in routers:
        app.include_router(router)
    app.add_middleware(HotPath, service=recommendations, metrics=metrics)
    app.add_middleware(Admission, door=edge.door)
    install_cors(app, allowed_origins(settings.cors_origins))
    if traces is not None:
        app.add_middleware(TracedApp, take=traces.take, share=traces.share)
    app.add_middleware(MeasuredApp, metrics=metrics, drain=drain)
