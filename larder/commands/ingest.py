"""`larder ingest`: the worker that folds live events into the features, and what it is doing."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import NotFoundError
from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.ingest import IngestStatus

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fold live events into the features.")

#: Ingest is no request: it waits longer for Redis than the API does.
_TIMEOUT_MS = 5_000


@app.command()
def run(ctx: typer.Context) -> None:
    """Fold accepted events until stopped (Ctrl-C or SIGTERM); a project has exactly one such worker.

    Example:
      larder --project simulator ingest run
    """
    import signal
    import threading

    from prometheus_client import CollectorRegistry

    from feature_repo.ingest import IngestWorker
    from feature_repo.ingest_metrics import IngestMetrics
    from feature_repo.redis_scripts import both_connected
    from larder.exposition import exposed
    from serving.logs import configure_logging

    settings = settings_of(ctx)
    configure_logging(settings.log_format, "WARNING")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def ready(status: IngestStatus) -> None:
        print(f"ingest ready: project {settings.project}, watermark {status.watermark}", flush=True)

    with both_connected(settings, timeout_ms=_TIMEOUT_MS) as (client, events):
        worker = IngestWorker(settings, client, events=events)
        registry = CollectorRegistry()
        registry.register(IngestMetrics(lambda: worker.status, settings.home))
        with exposed(settings, "ingest", registry, settings.ingest_metrics_port):
            worker.run(stop, ready)
    status = worker.status
    print(f"ingest stopped: {status.events} events in {status.batches} batches, watermark {status.watermark}")


@app.command()
def status(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False
) -> None:
    """Say what the worker last reported: lag, rate, the stream, the log, quarantine, expired rows.

    Examples
    --------
      larder ingest status
      larder ingest status --json
    """
    import time
    from dataclasses import asdict

    import msgspec

    from feature_repo.ingest import read_status
    from feature_repo.redis_scripts import connect

    settings = settings_of(ctx)
    with closing(connect(settings, timeout_ms=_TIMEOUT_MS)) as client:
        found = read_status(client, settings.project)
    if found is None:
        raise NotFoundError(f"no ingest worker of project {settings.project!r} ever ran; start `larder ingest run`")
    now_ms = time.time_ns() // 1_000_000
    said = asdict(found) | {
        "reported_s_ago": round((now_ms - found.updated_ms) / 1000, 1),
        "age_s": round(max(now_ms - found.current_ms, 0) / 1000, 1) if found.current_ms else None,
        "stream_full": found.stream_entries >= settings.stream_max_entries,
    }
    if as_json:
        print(msgspec.json.encode(said).decode())
        return
    for name, value in said.items():
        print(f"{name:<20} {value}")
