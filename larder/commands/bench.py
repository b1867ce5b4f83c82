"""`larder bench`: the exact figures, by one command, written to `.larder/results`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from feature_repo.errors import BadInputError
from larder.session import settings_of

app = typer.Typer(rich_markup_mode=None)

#: Name to what it measures; each is a module of `larder/benches` with `run(settings) -> (figures, targets)`.
BENCHES = {
    "offline_joins": "point-in-time joins beside Feast's DuckDB store, and memory while streaming to Parquet",
    "backfill": "time and memory of a backfill from 0.1 M to 10 M events",
    "ingest": "events a second of one ingest worker, and how soon an acknowledged event is in the features",
    "simulator": "how fast the simulator makes and the fold folds 1 M events",
    "feature_reads": "1 user + 300 items + 300 pairs by Feast's Redis store, by our store and as packed arrays",
    "item_table": "staleness of the item table with 20,000 items and 1,000 events a second, and what a refresh costs",
    "heavy_entity": "batches in a shop with a user and an item of 200,000 events, beside a shop without them",
    "feature_writes": "rows written per second, and their memory: Feast's stock path, our engine, the bulk writer",
    "skew": "the replay skew check: 10,000 requests against a log of 1 M events",
    "vector_index": "recall and time of retrieval from item factors: exact, by the index serving uses, by HNSW",
    "generators": "every candidate generator by itself, and new items, on Online Retail before the test window",
    "new_items": "how soon good new items of a simulated shop are found with and without the slot, and its cost",
    "contrastive": "what the contrastive model and last items add to the two-stage model, paired; and alone (2 hours)",
    "ranker_latency": "ranking 300 items and explaining 20 by one thread: CatBoost beside LightGBM LambdaRank",
    "serving": "the API under rising load: one worker, two, with a rollout; beside a bare server and Feast's SDK",
    "tracing": "processor time per request with traces off, of 1 % and of all requests, by turns",
    "canary": "false rollbacks and time to a true one of the rollout's statistics, beside two simpler rules",
    "exploration": "what drawing a place of the list costs in clicks, and the good new items found by it",
    "uplift": "an A/B test over HTTP: clicks of the two-stage model over 7-day popularity, and the power table",
    "ope": "off-policy estimates beside the truth: Open Bandit in both directions, and simulated logs",
    "drift": "alarms on shops where nothing changes, and how soon injected shifts are found",
    "quality_estimate": "precision estimated without labels beside what was taken, with and without shifts",
    "quality": "every model x data set x metric: Online Retail at four cuts, Complete Journey, MovieLens (40 min)",
}


@app.command()
def bench(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help=f"Which of: {', '.join(BENCHES)}; all if none.")] = None,
) -> None:
    """Run benches and write their figures, targets and misses as JSON.

    Each works in a directory of its own and leaves the project's data alone.

    Examples
    --------
      larder bench
      larder bench quality
    """
    from larder.results import write_results

    settings = settings_of(ctx)
    for name in names or list(BENCHES):
        if name not in BENCHES:
            raise BadInputError(f"no bench {name!r}; there are: {', '.join(BENCHES)}")
    for name in names or list(BENCHES):
        print(f"\nbench {name}: {BENCHES[name]}")
        figures, targets = import_module(f"larder.benches.{name}").run(settings)
        path, missed = write_results(settings, name, figures, targets)
        for key, value in figures.items():
            target = f"   target {targets[key][0]} {targets[key][1]:g}" if key in targets else ""
            print(f"  {key:<40} {value:>12.4f}{target}{'   MISSED' if key in missed else ''}")
        print(f"  written to {path}")
