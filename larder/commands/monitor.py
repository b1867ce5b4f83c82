"""`larder monitor`: drift, skew, age and live quality, by hand or by a worker, and signals they leave."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of
from larder.watching.quality import quality

if TYPE_CHECKING:
    from larder.watching.drift_check import Judged
    from monitoring.signals import Signal

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Watch for drift, skew, age and quality.")
app.command()(quality)


class Kind(StrEnum):
    """Kinds of signals."""

    drift = "drift"
    skew = "skew"
    ctr_decay = "ctr_decay"
    freshness = "freshness"


@app.command()
def drift(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    report: Annotated[bool, typer.Option(help="Make Evidently's report of each window.")] = True,
) -> None:
    """Compare every complete window of served lists with the champion's reference.

    The first time it makes the reference, which takes about a minute. Exit code 1: a column is in alarm; 2: no window
    was complete yet.

    Examples
    --------
      larder monitor drift
      larder -p online_retail monitor drift --json --no-report
    """
    import time

    import msgspec

    from deployment.store.signals import SignalStore
    from larder.services.stack import attach
    from larder.story.steps import PhaseProgress
    from larder.watching.drift_check import DriftCheck
    from monitoring.drift.state import read_state

    settings = attach(settings_of(ctx))
    check = DriftCheck(settings, SignalStore(settings), reports=report)
    with PhaseProgress() as shown:
        judged = check.run(time.time_ns() // 1000, shown)
    state = read_state(settings)
    if as_json:
        print(msgspec.json.encode({"windows": len(judged), "last": state.last if state else None}).decode())
    else:
        for one in judged:
            _print_window(one)
        if not judged:
            print(
                f"no further window is complete: it takes {settings.drift_window_minutes:g} minutes and lists for "
                f"{settings.drift_sample} users; judged so far: {state.windows if state else 0}"
            )
        print(f"page: {settings.reports_dir / 'index.html'}")
    if state is None or state.last is None:
        raise typer.Exit(2)
    if any(one.alarm for one in state.last.findings):
        raise typer.Exit(1)


@app.command()
def skew(
    ctx: typer.Context,
    sample: Annotated[int, typer.Option(min=1, help="Answered requests to replay.")] = 300,
    hours: Annotated[float, typer.Option(min=0.01, help="Of the last so many hours.")] = 24.0,
) -> None:
    """Replay served features against the event log, as `larder features check --only served` does, and keep a signal.

    Exit code 1: something is wrong or missing; 2: there was nothing to compare.

    Examples
    --------
      larder monitor skew
      larder monitor skew --hours 1 --sample 1000
    """
    import time

    from deployment.store.signals import SignalStore
    from larder.services.stack import attach
    from larder.skew_result import print_report, write_report
    from larder.story.steps import PhaseProgress
    from larder.watching.worker import skew as check

    settings = attach(settings_of(ctx))
    with PhaseProgress() as shown:
        found, rows = check(settings, time.time_ns() // 1000 - round(hours * 3600e6), sample, shown)
    SignalStore(settings).add(rows)
    print_report(found)
    print(f"page: {write_report(settings, found)[1]}")
    if not found.passed:
        raise typer.Exit(2 if found.empty and not found.differs else 1)


@app.command()
def freshness(ctx: typer.Context) -> None:
    """Say how old features, event log, offline store and champion are. Exit code 1: something is too old.

    Examples
    --------
      larder monitor freshness
    """
    import time
    from datetime import UTC, datetime

    from deployment.store.signals import SignalStore
    from larder.services.stack import attach
    from larder.watching.worker import measured_ages
    from monitoring.freshness import freshness_signals

    settings = attach(settings_of(ctx))
    now_us = time.time_ns() // 1000
    rows = freshness_signals(datetime.fromtimestamp(now_us / 1e6, UTC), *measured_ages(settings, now_us))
    SignalStore(settings).add(rows)
    for row in rows:
        print(f"{row.subject:<14} {_age(row.value):>12}   limit {_age(row.threshold):>8}   {_word(row)}")
    if any(row.alarm for row in rows):
        raise typer.Exit(1)


@app.command()
def signals(
    ctx: typer.Context,
    kind: Annotated[Kind | None, typer.Option(help="Of one kind only.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The newest rows, instead of open alarms.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most, of --all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for programs.")] = False,
) -> None:
    """Print the signals table: the alarms that are open, or its newest rows.

    Examples
    --------
      larder monitor signals
      larder monitor signals --all --kind drift --json
    """
    import msgspec

    from deployment.store.signals import SignalStore

    store = SignalStore(settings_of(ctx))
    if everything:
        rows = store.newest(limit, kind.value if kind else None)
    else:
        rows = [row for row in store.open_alarms() if kind is None or row.kind == kind.value]
    for row in rows:
        if as_json:
            print(msgspec.json.encode(row).decode())
        else:
            p = "" if row.p_value is None else f"  p {row.p_value:.2g}"
            print(
                f"{row.at:%Y-%m-%d %H:%M:%S}  {row.kind:<10} {row.subject:<40} {row.value:>10.4g} "
                f"(threshold {row.threshold:.4g}){p}  {_word(row)}"
            )
    if not rows and not as_json:
        print("no rows" if everything else "no alarm is open")


@app.command()
def run(
    ctx: typer.Context,
    report: Annotated[bool, typer.Option(help="Make Evidently's report of each window of drift.")] = True,
) -> None:
    """Check drift, skew, age and live quality until Ctrl-C or SIGTERM, each when it is due.

    Metrics are on setting monitor_metrics_port.

    Examples
    --------
      larder monitor run
      larder -p online_retail monitor run --no-report
    """
    import signal
    import threading

    from larder.exposition import exposed
    from larder.services.stack import attach
    from larder.watching.worker import MonitorWorker
    from serving.logs import configure_logging

    settings = attach(settings_of(ctx))
    configure_logging(settings.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    worker = MonitorWorker(settings, reports=report)
    with exposed(settings, "monitor", worker.metrics.registry, settings.monitor_metrics_port) as port:
        print(f"monitor ready: project {settings.project}, metrics on port {port}", flush=True)
        worker.run(stop)
    print("monitor stopped")


@app.command()
def ui(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port, on 127.0.0.1.")] = 8094,
) -> None:
    """Show Evidently's own UI on the reports of all projects, until Ctrl-C. It sends no telemetry.

    Examples
    --------
      larder monitor ui
      larder monitor ui --port 8000
    """
    import os
    import sys

    from feature_repo.errors import NotFoundError

    workspace = settings_of(ctx).evidently_dir.resolve()
    if not workspace.is_dir():
        raise NotFoundError(f"there is no report in {workspace} yet; `larder monitor drift` makes them")
    arguments = ["--workspace", str(workspace), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"DO_NOT_TRACK": "1"}
    print(f"Evidently's UI: http://127.0.0.1:{port}", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", "evidently.cli", "ui", *arguments], environment)  # noqa: S606 - its own program


def _print_window(one: Judged) -> None:
    from datetime import UTC, datetime

    if (last := one.state.last) is None:
        return
    start, end = (datetime.fromtimestamp(us / 1e6, UTC) for us in (last.start_us, last.end_us))
    print(f"\nwindow {one.state.windows}: {start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC, {last.requests} requests")
    shown = [f for f in one.findings if f.hit or f.alarm]
    for f in shown:
        word = "ALARM" if f.alarm else "drifted"
        print(
            f"  {word:<8} {f.column.subject:<40} effect {f.effect:.3f} (floor {f.column.floor:.2f}), p {f.p_value:.2g}"
        )
    if not shown:
        print(f"  none of {len(one.findings)} columns differs")
    if last.precision is not None:
        print(f"  precision to expect: {last.precision[0]:.4f} ({last.precision[1]:.4f} to {last.precision[2]:.4f})")


def _word(row: Signal) -> str:
    return "ALARM" if row.alarm else "fine"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
