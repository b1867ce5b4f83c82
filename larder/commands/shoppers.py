"""`larder shoppers`: simulated people who use a running API, for demonstrations and trials."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(rich_markup_mode=None)


@app.command()
def shoppers(
    ctx: typer.Context,
    rate: Annotated[float, typer.Option(min=0.1, max=2000.0, help="Visits a second.")] = 30.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Who comes when, and what luck they have.")] = 0,
    figures: Annotated[Path | None, typer.Option(help="Write what they met there, as JSON.")] = None,
) -> None:
    """Let the people of the simulated shop use the running API: they ask, look at the list, and click what they like.

    What they like is the simulator's hidden truth (docs/simulator.md), so better lists get more clicks. Visits come
    when they come, whether or not earlier ones were answered. Ctrl-C or SIGTERM ends it early.

    Examples
    --------
      larder shoppers
      larder -p simulator shoppers --rate 100 --seconds 300
    """
    from larder.services.stack import attach
    from larder.story.shoppers import Shoppers

    settings = attach(settings_of(ctx))
    people = Shoppers(settings, rate, seed=seed)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: told.append(got))
    base_url = f"http://127.0.0.1:{settings.api_port}"
    print(f"{rate:g} visits a second for {seconds:g} s at {base_url}", flush=True)
    met = people.run(base_url, seconds, lambda: bool(told)).figures()
    if figures is not None:
        figures.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(met, indent=1) + "\n", "utf-8")
    print(
        f"{met['visits']:.0f} visits at {met['rps']:.0f} a second, {met['failed']:.0f} without a good answer "
        f"({met['server_errors']:.0f} of them 5xx), {met['clicks']:.0f} clicks; p50 {met['p50_ms']:.1f} ms, "
        f"p95 {met['p95_ms']:.1f} ms, p99 {met['p99_ms']:.1f} ms"
    )
