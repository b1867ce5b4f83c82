"""`larder train`: train, evaluate, save and register a two-stage model."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from training.evaluate import Evaluation
    from training.train import TrainResult

app = typer.Typer(rich_markup_mode=None)


class DiversityChoice(StrEnum):
    """Kinds of diversity (serving/cascade/rerank.py)."""

    off = "off"
    category_cap = "category_cap"
    mmr = "mmr"


@app.command()
def train(
    ctx: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="simulator, online_retail, complete_journey, movielens or rees46: imported first if the project has "
            "no data yet."
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, max=20, help="Rolling windows the ranker learns from (default 8).")
    ] = None,
    diversity: Annotated[
        DiversityChoice, typer.Option(help="How alike the items of a list may be; a request may ask for another kind.")
    ] = DiversityChoice.off,
    new_item_slot: Annotated[
        bool, typer.Option("--new-item-slot", help="Keep one place of a list of eight or more for a new item.")
    ] = False,
    ranker: Annotated[
        str,
        typer.Option(
            help="catboost (log loss), yetirank (CatBoost comparing items of one list) or lambdarank (LightGBM, kept "
            "small)."
        ),
    ] = "catboost",
    line_up: Annotated[
        str,
        typer.Option(
            help="default, contrastive (and a user-item model trained with JAX) or sequence (and last items)."
        ),
    ] = "default",
    vectors: Annotated[
        Path | None, typer.Option(help="Item vectors for the contrastive model, of `larder items encode`.")
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="YAML with settings of generators and ranker, as `larder search` writes it."),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="A small model of few users, windows and trees, in under a minute, to try things out."
        ),
    ] = False,
    purchase_score: Annotated[
        bool,
        typer.Option("--purchase-score", help="The bundle carries the winner of `larder compare classifiers`."),
    ] = False,
    register: Annotated[bool, typer.Option(help="Log to MLflow and register a new version.")] = True,
    slates: Annotated[
        Path | None, typer.Option(help="Write every model's lists of the test window there, for `larder evaluate`.")
    ] = None,
) -> None:
    """Train a two-stage model: temporal split, generators, ranker on rolling cuts, evaluation, bundle, registration.

    What it predicts, and whether people take an item again, is the data set's to say: purchases that repeat, but for
    MovieLens ratings that do not (docs/events.md).

    Needs MLflow to register (`larder services up`, or the one running); it is started for the time of the command if
    it is not.

    Examples
    --------
      larder train --dataset online_retail
      larder train --dataset online_retail --sample --no-register
      larder --project simulator train --windows 6
      larder train --dataset simulator --no-register --slates slates
      larder train --dataset simulator --purchase-score
      larder train --dataset simulator --diversity category_cap --new-item-slot
      larder train --dataset simulator --ranker lambdarank
      larder train --dataset online_retail --line-up contrastive
      larder -p online_retail train --settings .larder/online_retail/search/best.yaml
    """
    from feature_repo.backfill import backfill
    from feature_repo.event_log import read_report
    from larder.progress import progress
    from larder.services.stack import Stack
    from larder.story.data import ensure_data
    from larder.story.steps import PhaseProgress
    from serving.cascade.rerank import Diversity, NewItems
    from training.line_up import line_up_of
    from training.rankers.registry import ranker_params
    from training.sample import sample_of
    from training.save_purchase import purchase_dir
    from training.settings_file import configured, read_training_settings
    from training.train import TrainConfig
    from training.train import train as run

    settings = settings_of(ctx, dataset)
    # What is wrong in a name or a file is said before the work, not after.
    generators = line_up_of(line_up, None if vectors is None else str(vectors))
    chosen = read_training_settings(settings_file) if settings_file is not None else {}
    asked = configured(TrainConfig(ranker=ranker_params(ranker), line_up=generators), chosen)
    data_hash = ensure_data(settings, dataset or settings.project)
    data = read_report(settings)
    with progress("backfill"):
        backfill(settings)
    with Stack(settings, redis=False, mlflow=register) as stack:
        with PhaseProgress() as report:
            config = replace(
                asked,
                target=data.target,
                repeats=data.repeats,
                windows=windows or asked.windows,
                diversity=Diversity(diversity.value),
                new_items=NewItems(slots=int(new_item_slot)),
            )
            config = sample_of(config) if sample else config
            purchase = purchase_dir(settings) if purchase_score else None
            result = run(stack.settings, config, data_hash, report, purchase=purchase)
        print_result(result)
        if sample:
            print("A sample: its figures are of a smaller model on fewer users, not to be compared with others'.")
        if slates is not None:
            from training.rec_files import write_slates

            written = write_slates(slates, result.evaluation.slates)
            window = datetime.fromtimestamp(result.split.test.start_us / 1e6, UTC)
            print(f"{len(written)} files of lists in {slates}; larder evaluate --from {window.isoformat()} grades them")
        if register:
            from training.tracking import register_training

            stack.wait()
            registered = register_training(stack.settings, result)
            print(f"registered {settings.model_name} version {registered.version}: {registered.url(stack.settings)}")
            print("next: larder models promote")


def print_result(result: TrainResult) -> None:
    """Print what a training reached and where its time went."""
    print_evaluation(result.evaluation)
    print()
    for baseline in ("own_history", "history_x_popularity"):
        gain, low, high = result.evaluation.paired(baseline)
        print(f"paired gain over {baseline:<21} {gain:+.4f} nDCG@10 [{low:+.4f}, {high:+.4f}] (95 %, bootstrap)")
    auc, recall = result.evaluation.auc.mean(), result.evaluation.candidate_recall.mean()
    first = result.evaluation.recall_300.mean()
    print(
        f"AUC {auc:.3f} (mean per warm user against 100 random items); candidate recall {recall:.3f}, of the first 300 "
        f"{first:.3f}"
    )
    print(f"{result.fitted.best_iteration} trees; bundle {result.bundle.bundle_id}")
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items()))


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the table of models, best first within each segment."""
    titles = {"warm": "warm users", "new_items": "warm users, new items only", "cold": "cold users"}
    for segment, title in titles.items():
        rows = [row for row in evaluation.table() if row["segment"] == segment]
        if not rows:
            continue
        print(f"\n{title} ({rows[0]['users']})        nDCG@10 [95 %]          Recall@20  MAP@10")
        for row in sorted(rows, key=lambda one: -one["ndcg@10"]):
            interval = f"[{row['ndcg@10_low']:.3f}, {row['ndcg@10_high']:.3f}]"
            print(
                f"  {row['model']:<18} {row['ndcg@10']:>12.4f} {interval:<18} {row['recall@20']:>8.4f} "
                f"{row['map@10']:>8.4f}"
            )
