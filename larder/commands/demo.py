"""`larder demo`: the whole story, from events to a served answer."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.settings import Settings
    from larder.services.stack import Stack
    from larder.story.tell import Story

app = typer.Typer(rich_markup_mode=None)


@app.command()
def demo(
    ctx: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(help="simulator or online_retail; with others the story ends at the gate (docs/events.md)."),
    ] = "simulator",
    once: Annotated[bool, typer.Option("--once", help="End and clean up instead of waiting for Ctrl-C.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train a new version even if there is a champion.")
    ] = False,
    windows: Annotated[
        int | None,
        typer.Option(min=1, max=20, help="Rolling windows the ranker learns from; 4 on the simulator, else 8."),
    ] = None,
    events: Annotated[int | None, typer.Option(min=1000, help="How many events the simulator makes.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Train a small model, as `larder train --sample` does, to try things out.")
    ] = False,
    rollout: Annotated[
        bool, typer.Option(help="Roll out a better model and a bad one; on the simulator, whose people click.")
    ] = True,
) -> None:
    """Start everything, train, gate, serve, and show what an application and a user see.

    Starts a real redis-server, an MLflow server, the ingest worker, the API and the rollout controller under the home
    directory (.larder), and leaves them running until Ctrl-C. On the simulator the first champion is a small model; the
    whole one is registered while people use the shop and becomes the champion by itself, a bad one goes back. A second
    run reuses data, features and champion.

    Examples
    --------
      larder demo
      larder demo --once
      larder demo --dataset online_retail --once
      larder demo --events 80000 --sample --no-rollout --once
    """
    from larder.results import write_results
    from larder.services.stack import Stack
    from larder.story.prepare import Clock, chapter, prepare_champion, prepare_features
    from larder.story.roll_out import ROLLOUT_TARGETS, roll_out
    from larder.story.serve import serve

    settings = settings_of(ctx, dataset)
    rollout = rollout and dataset == "simulator"
    windows = windows or (4 if dataset == "simulator" else 8)
    clock = Clock()
    options = {"n_events": events} if events and dataset == "simulator" else {}
    with Stack(settings) as stack:
        data_hash = prepare_features(stack.settings, dataset, clock, options)
        first = prepare_champion(
            stack, data_hash, clock, windows=windows, retrain=retrain and not rollout, sample=sample or rollout
        )
        with clock.part("start API and ingest"):
            base_url = serve(stack)
        story = _tell(stack.settings, base_url)
        quality = first or {}
        fared: dict[str, float] = {}
        if rollout and (retrain or first is not None):
            chapter(10, "A better model goes to users by itself; a bad one goes back")
            quality, fared = roll_out(stack, data_hash, clock, windows=windows, sample=sample)
        figures = {**story.figures(), **quality, **fared}
        figures |= {f"seconds.{name}": s for name, s in clock.seconds.items()}
        targets = _targets(quality) | (ROLLOUT_TARGETS if fared else {})
        path, missed = write_results(stack.settings, f"demo-{stack.settings.project}", figures, targets)
        chapter(11, "Where to look")
        _addresses(stack, base_url)
        print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in clock.seconds.items()))
        print(f"figures: {path}" + (f"; missed: {', '.join(missed)}" if missed else ""))
        if once or not sys.stdin.isatty():
            print("Ending and cleaning up (no terminal, or --once); the data stay for the next run.")
            return
        print("\nEverything keeps running. Ctrl-C ends it.", flush=True)
        wait_for_ctrl_c()


def _tell(settings: Settings, base_url: str) -> Story:
    from larder.story.prepare import chapter
    from larder.story.tell import Story, Teller
    from larder_client.client import LarderClient

    with LarderClient(base_url, timeout_s=5.0) as client:
        teller = Teller(settings, client)
        chapter(5, "What everybody gets, and what two people get")
        overlap = teller.people()
        chapter(6, "Clicks change the features, and the next list")
        items, features, waited = teller.clicks()
        chapter(7, "A new user, after one click")
        newcomer = teller.newcomer()
        chapter(8, "How fast")
        p50, p95 = teller.latency()
        chapter(9, "The same numbers everywhere, while events stream in")
        skew = teller.sameness(settings, base_url)
    return Story(overlap, items, features, waited, newcomer, p50, p95, *skew)


def _targets(quality: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Return what the demo promises."""
    targets: dict[str, tuple[str, float]] = {
        "items_changed_by_clicks": (">=", 1),
        "new_user_items_changed": (">=", 1),
        "visible_after_s": ("<", 1.0),
        "p95_ms": ("<", 50.0),
        "skew_values": (">", 0),
        "skew_wrong": ("==", 0),
        "skew_missing": ("==", 0),
    }
    if quality:
        targets |= {"gain_over_own_history_low": (">", 0.0), "auc": (">", 0.85)}
    return targets


def _addresses(stack: Stack, base_url: str) -> None:
    print(f"API            {base_url}/docs")
    print(f"status         {base_url}/status")
    print(f"metrics        {base_url}/metrics")
    print(f"rollout        {base_url}/admin/rollout")
    print(f"MLflow         {stack.settings.tracking_uri}")
    print(f"data and logs  {stack.settings.root}, {stack.settings.home / 'logs'}")
    print(
        f"try            curl -s {base_url}/v1/recommendations -H 'content-type: application/json' "
        """-d '{"user_id": "u1", "k": 5}'"""
    )


def wait_for_ctrl_c() -> None:
    """Keep everything running until Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
        print("\nStopping the services.")
