"""`larder monitor-demo`: a watched shop, a drift and an alert that are provoked, and where to look."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from larder.services.stack import Stack

app = typer.Typer(rich_markup_mode=None)


@app.command()
def monitor_demo(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="End and clean up instead of waiting for Ctrl-C.")] = False,
) -> None:
    """Watch the simulated shop, triple its prices until drift is noticed, kill the ingest worker until an alert fires.

    Uses the demo's data and champion, and makes them where there are none. Prices are put back, the worker is started
    again. Without Prometheus (`make prometheus` gets it) the alert is left out, which is said. Windows of drift are 18
    seconds long here, and compared with the shop's own first three; a real shop's last a day.

    Examples
    --------
      larder monitor-demo
      larder monitor-demo --once
    """
    from larder.commands.demo import wait_for_ctrl_c
    from larder.results import write_results
    from larder.services.stack import Stack
    from larder.story.prepare import Clock, chapter, prepare_champion, prepare_features
    from larder.story.rollout_teller import shoppers
    from larder.story.serve import serve
    from larder.story.watching import TARGETS, dead_ingest, drifting_prices, quiet_shop, start_monitor

    settings = settings_of(ctx, "simulator")
    clock = Clock()
    with Stack(settings) as stack:
        prometheus = _start_prometheus(stack)
        data_hash = prepare_features(stack.settings, "simulator", clock, {})
        prepare_champion(stack, data_hash, clock, windows=2, retrain=False, sample=True)
        base_url = serve(stack)
        start_monitor(stack)
        with shoppers(stack):
            chapter(5, "A quiet shop")
            figures = quiet_shop(stack.settings, prometheus)
            chapter(6, "Prices rise threefold")
            figures |= drifting_prices(stack.settings, base_url, prometheus)
            if prometheus is not None:
                chapter(7, "The ingest worker dies")
                figures |= dead_ingest(stack, prometheus)
        targets = {name: target for name, target in TARGETS.items() if name in figures}
        path, missed = write_results(stack.settings, "monitor_demo", figures, targets)
        chapter(8, "Where to look")
        _addresses(stack, base_url, prometheus)
        print(f"figures: {path}" + (f"; missed: {', '.join(missed)}" if missed else ""))
        if once or not sys.stdin.isatty():
            print("Ending and cleaning up (no terminal, or --once); the data stay for the next run.")
            return
        print("\nEverything keeps running. Ctrl-C ends it.", flush=True)
        wait_for_ctrl_c()


def _start_prometheus(stack: Stack) -> str | None:
    """Start Prometheus; None where there is none."""
    from feature_repo.errors import UnavailableError
    from larder.services.prometheus_server import prometheus_service

    try:
        running = stack.start(prometheus_service(stack.settings))
    except UnavailableError as error:
        print(f"No alerts in this run: {error}")
        return None
    return f"http://127.0.0.1:{running.port}"


def _addresses(stack: Stack, base_url: str, prometheus: str | None) -> None:
    settings = stack.settings
    print(f"status         {base_url}/status")
    print(f"drift reports  {settings.reports_dir / 'index.html'}")
    print("Evidently      larder monitor ui")
    print("signals        larder monitor signals --all")
    if prometheus is not None:
        print(f"alerts         {prometheus}/alerts")
    print("what to do     docs/runbooks.md; dashboards for Grafana: monitoring/grafana")
