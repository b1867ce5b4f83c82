"""`larder search`: settings of generators and ranker by Optuna, on rolling cuts before the test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from training.search_study import Found, Trial

app = typer.Typer(rich_markup_mode=None)


@app.command()
def search(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="simulator, online_retail, ...: imported first if the project has no data yet.")
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Budget: trials of the study in all, those of earlier runs among them.")
    ] = 30,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Budget of this run: it stops there, and the next one goes on.")
    ] = None,
    cuts: Annotated[int, typer.Option(min=1, max=10, help="Rolling cuts before the test a trial is judged at.")] = 3,
    windows: Annotated[int, typer.Option(min=1, max=20, help="Rolling windows a ranker learns from at each cut.")] = 4,
    users: Annotated[
        int | None, typer.Option(min=20, help="Users drawn of each window and cut; all if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Settings file of the best trial.")] = None,
    log: Annotated[bool, typer.Option(help="Log to MLflow: a run of the search, a nested run for every trial.")] = True,
) -> None:
    """Search settings of generators, fusion and ranker: highest mean nDCG@10 at rolling cuts before the test.

    The final cut is never looked at. The first trial has the defaults; a trial that is below the median of the others
    after a cut ends there. Ctrl-C, a kill or the end of the minutes lose nothing but the trial at work: the same
    command goes on. The best settings become a file for `larder train --settings`: what that trains is registered, and
    passes the gate as any model.

    Needs Optuna (the extra `search`). MLflow is started for the time of the command if it is not running.

    Examples
    --------
      larder search --dataset online_retail --trials 40 --minutes 120
      larder -p simulator search --trials 20 --users 300 --windows 2
      larder search --dataset simulator --trials 10 --no-log --out best.yaml
    """
    from feature_repo.backfill import backfill
    from feature_repo.event_log import read_report
    from larder.progress import progress
    from larder.services.stack import Stack
    from larder.story.data import ensure_data
    from training.search import Judge
    from training.search_plots import save_search_plot
    from training.search_space import SPACE
    from training.search_study import Budget, SearchStudy
    from training.search_tracking import SearchRuns
    from training.train import TrainConfig

    settings = settings_of(ctx, dataset)
    directory = settings.root / "search"
    data_hash = ensure_data(settings, dataset or settings.project)
    data = read_report(settings)
    protocol = {"cuts": cuts, "windows": windows, "users": users, "seed": settings.seed, "data_hash": data_hash}
    study = SearchStudy(directory, protocol, SPACE, settings.seed)  # before the work: it says where Optuna is missing
    with progress("backfill"):
        backfill(settings)
    config = TrainConfig(target=data.target, repeats=data.repeats, windows=windows, users=users)
    with Stack(settings, redis=False, mlflow=log) as stack:
        judge = Judge(settings, config, cuts)
        if log:
            stack.wait()
        runs = SearchRuns(stack.settings, study.name, protocol, study.note("mlflow_run")) if log else None
        if runs is not None:
            study.note("mlflow_run", runs.run_id)
        before = len(study.trials())
        limit = f", at most {minutes:g} minutes" if minutes else ""
        print(f"study {study.name}: {before} trials done, going on to {trials}{limit}; kept in {directory}")
        with progress("trials", trials) as bar:
            bar.advance(min(before, trials))

            def on_trial(trial: Trial) -> None:
                if runs is not None:
                    runs.log_trial(trial)
                bar.advance()

            study.run(judge, config, Budget(trials, minutes), on_trial, bar.note)
        found = study.found()
        path = out or directory / "best.yaml"
        _write(path, found, study.name)
        plot = save_search_plot(study.directory / "search.png", found)
        print_found(found, trials)
        if runs is not None:
            runs.log_result(found, [path, plot])
            print(f"logged: {runs.url}")
    print(f"written to {path} and {plot}\nnext: larder -p {settings.project} train --settings {path}")


def print_found(found: Found, wanted: int) -> None:
    """Print the best settings, and how far they may be believed."""
    pruned = sum(one.pruned for one in found.trials)
    print(f"\n{len(found.trials)} trials, {pruned} of them pruned; the best is number {found.best.number}:")
    for name, value in found.best.params.items():
        shown = f"{value:.4g}" if type(value) is float else str(value)
        share = f" {found.importance.get(name, 0.0):>5.0%} of the differences" if found.importance else ""
        print(f"  {name:<42} {shown:<12}{share}")
    cuts = ", ".join(f"{value:.4f}" for value in found.best.values)
    print(f"mean nDCG@10 {found.best.value:.4f} (cuts, the latest first: {cuts})")
    gain, low, high = found.gain
    print(f"paired gain over the defaults {gain:+.4f} [{low:+.4f}, {high:+.4f}] (95 %, bootstrap)")
    print("The best of many is partly luck on these cuts: `larder train` judges it on the final one, never seen here.")
    if len(found.trials) < wanted:
        print(f"The time was over at {len(found.trials)} of {wanted} trials: the same command goes on.")


def _write(path: Path, found: Found, study: str) -> None:
    from training.search_space import SPACE
    from training.settings_file import nested, settings_text

    gain, low, high = found.gain
    comment = (
        f"Trial {found.best.number} of {len(found.trials)} of the search {study}: nDCG@10 {found.best.value:.4f} on "
        f"{len(found.best.values)} cuts\nbefore the test, {gain:+.4f} [{low:+.4f}, {high:+.4f}] over the defaults.\n"
        "larder train --settings takes this file."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: found.best.params[name] for name in SPACE if name in found.best.params}
    path.write_text(settings_text(nested(ordered), comment), "utf-8")
