"""`larder train`: train, evaluate, save and register a two-stage model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from training.evaluate import Evaluation
    from training.train import TrainResult

app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="simulator or online_retail: imported first if the project has no data yet.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, max=20, help="Rolling windows the ranker learns from.")] = 4,
    purchase_score: Annotated[
        bool,
        typer.Option("--purchase-score", help="The bundle carries the winner of `larder compare classifiers`."),
    ] = False,
    register: Annotated[bool, typer.Option(help="Log to MLflow and register a new version.")] = True,
) -> None:
    """Train a two-stage model: temporal split, generators, ranker on rolling cuts, evaluation, bundle, registration.

    Needs MLflow to register (`larder services up`, or the one running); it is started for the time of the command if
    it is not.

    Examples
    --------
      larder train --dataset online_retail
      larder --project simulator train --windows 6
      larder train --dataset simulator --no-register
      larder train --dataset simulator --purchase-score
    """
    from feature_repo.backfill import backfill
    from larder.progress import progress
    from larder.services.stack import Stack
    from larder.story.data import ensure_data
    from larder.story.steps import PhaseProgress
    from training.save_purchase import purchase_dir
    from training.train import TrainConfig
    from training.train import train as run

    settings = settings_of(ctx, dataset)
    data_hash = ensure_data(settings, dataset or settings.project)
    with progress("backfill"):
        backfill(settings)
    with Stack(settings, redis=False, mlflow=register) as stack:
        with PhaseProgress() as report:
            purchase = purchase_dir(settings) if purchase_score else None
            result = run(stack.settings, TrainConfig(windows=windows), data_hash, report, purchase=purchase)
        print_result(result)
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
    print(f"AUC {auc:.3f} (mean per warm user against 100 random items); candidate recall {recall:.3f}")
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
