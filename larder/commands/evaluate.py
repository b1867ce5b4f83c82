"""`larder evaluate`: grade files of recommendations, of whatever model, under the protocol."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.settings import Settings
    from training.grading import Events
    from training.split import Window

app = typer.Typer(rich_markup_mode=None)


class Repeats(StrEnum):
    """What counts of items a user already had."""

    keep = "keep"
    drop = "drop"


@app.command()
def evaluate(
    ctx: typer.Context,
    recs: Annotated[
        list[str],
        typer.Option(help="NAME=FILE or FILE with user_id, item_id, rank (Parquet, CSV, JSON lines); may be repeated."),
    ],
    events: Annotated[
        Path | None,
        typer.Option(
            help="File with user_id, item_id, event_type, event_timestamp; the project's own log if left out."
        ),
    ] = None,
    train_events: Annotated[
        Path | None, typer.Option(help="The history, where it is a file of its own: all of --events is then the test.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="File with item_id: what can be recommended (coverage, Gini).")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Events of this type are what a list should foretell; as the data set says, else purchase."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Start of the test window, ISO 8601; UTC if it names no zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="End of the test window (exclusive); that of the events.")] = None,
    test_share: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Without --from: the window is the last part of the events.")
    ] = 0.1,
    repeats: Annotated[
        Repeats | None,
        typer.Option(
            help="drop: items a user already had are no targets and are taken out of lists; as the data set says, "
            "else keep."
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="NAME the others are compared with; the first.")] = None,
    k: Annotated[int, typer.Option(help="Length of list shown on the terminal: 5, 10 or 20; files have all.")] = 10,
    rounds: Annotated[int, typer.Option(min=100, max=100_000, help="Bootstrap rounds.")] = 2000,
    name: Annotated[str | None, typer.Option(help="Name of the results; those of --recs.")] = None,
    mlflow: Annotated[
        bool | None, typer.Option(help="Log to MLflow; if not said: where mlflow_tracking_uri is set.")
    ] = None,
) -> None:
    """Grade recommendations of any model: one time window, whole lists, warm and cold users apart, intervals.

    Several models are graded on the same users and compared by paired bootstrap. Writes figures (JSON) and one HTML
    page with plots to .larder/results. Protocol, metrics and the format of the files: docs/evaluation.md.

    Examples
    --------
      larder evaluate --events events.parquet --recs mine.csv --from 2011-11-20
      larder evaluate --events test.csv --train-events train.csv --recs als=als.csv --recs knn=knn.csv
      larder --project online_retail evaluate --recs mine.parquet --repeats drop --mlflow
    """
    from threadpoolctl import threadpool_limits

    from feature_repo.errors import BadInputError
    from larder.evaluation_result import figures, print_grading, write_files
    from larder.progress import progress
    from larder.services.stack import Stack
    from training.grading import grade
    from training.rec_files import read_catalogue, read_recs
    from training.slate_metrics import KS

    if k not in KS:
        raise BadInputError(f"--k must be one of {', '.join(map(str, KS))}, not {k}")
    settings = settings_of(ctx)
    files = _named_files(recs)
    usual = _usual(settings) if events is None else ("purchase", Repeats.keep)
    target, repeats = target or usual[0], repeats or usual[1]
    against = against or next(iter(files))
    if against not in files:
        raise BadInputError(f"--against must be one of {', '.join(files)}, not {against!r}")
    name = name or "-".join(files)
    _check_name("--name", name)
    # Several threads of BLAS wait for each other in busy loops: on a machine with other work they take twice the time.
    with progress("evaluate") as shown, threadpool_limits(1, "blas"):
        shown.note("events")
        log, window = _window(ctx, events, train_events, start, until, test_share)
        found = {}
        for model, path in files.items():
            shown.note(path.name)
            found[model] = read_recs(path)
        grading = grade(
            log,
            found,
            window,
            target=target,
            catalogue=read_catalogue(catalogue) if catalogue else None,
            repeats=repeats.value,
            against=against,
            seed=settings.seed,
            rounds=rounds,
            on_step=shown.note,
        )
    made_of = {
        "target": target,
        "test window": f"{_text(window.start_us)} to {_text(window.end_us)}",
        "events": str(events or f"log of project {settings.project}"),
        "history": str(train_events or "events before the window"),
        "catalogue": str(catalogue or "items of the history and of the lists"),
        "repeats": repeats.value,
        "compared with": against,
        "bootstrap": f"{rounds} rounds, seed {settings.seed}",
    } | {f"lists of {model}": str(path) for model, path in files.items()}
    print(f"{made_of['test window']}, target {target}, repeats {repeats.value}")
    print_grading(grading, k)
    path, page = write_files(settings, name, grading, made_of)
    print(f"figures: {path}\npage: {page}")
    if settings.mlflow_tracking_uri if mlflow is None else mlflow:
        from training.tracking import log_evaluation, run_url

        with Stack(settings, redis=False) as stack:
            stack.wait()
            logged = log_evaluation(stack.settings, f"evaluate-{name}", figures(grading), made_of, [path, page])
            print(f"MLflow: {run_url(stack.settings, *logged)}")


def _usual(settings: Settings) -> tuple[str, Repeats]:
    """Return what the project's data set says is predicted, and whether it repeats; there may be live events only."""
    from feature_repo.errors import NotFoundError
    from feature_repo.event_log import read_report

    try:
        report = read_report(settings)
    except NotFoundError:
        return "purchase", Repeats.keep
    return report.target, Repeats(report.repeats)


def _named_files(recs: list[str]) -> dict[str, Path]:
    from feature_repo.errors import BadInputError

    files: dict[str, Path] = {}
    for text in recs:
        model, equals, file = text.partition("=")
        if not equals:
            model, file = Path(text).stem, text
        _check_name("a model's name in --recs NAME=FILE", model)
        if model in files:
            raise BadInputError(f"--recs names {model!r} twice; tell them apart by NAME=FILE")
        files[model] = Path(file)
    return files


def _check_name(what: str, name: str) -> None:
    """Names become names of files and of MLflow's metrics."""
    import re

    from feature_repo.errors import BadInputError

    if not re.fullmatch(r"[\w-][\w.-]{0,99}", name, re.ASCII):
        raise BadInputError(f"{what} must be up to 100 letters, digits and '_', '-', '.', not {name!r}")


def _window(
    ctx: typer.Context,
    events: Path | None,
    train_events: Path | None,
    start: str | None,
    until: str | None,
    test_share: float,
) -> tuple[Events, Window]:
    """Read history and test, and decide on the window."""
    import numpy as np

    from feature_repo.errors import BadInputError
    from training.grading import joined
    from training.rec_files import project_events, read_event_file
    from training.split import Window, last_share

    log = read_event_file(events) if events else project_events(settings_of(ctx))
    if not len(log.time_us):
        raise BadInputError(f"{events.name if events else 'the log'} has no events")
    if start is not None:
        first = _time_us("--from", start)
    elif train_events is not None:
        first = int(log.time_us.min())
    else:
        first = last_share(log.time_us, test_share).start_us
    end = int(log.time_us.max()) + 1 if until is None else _time_us("--until", until)
    if first >= end:
        raise BadInputError(f"the test window from {_text(first)} to {_text(end)} is empty")
    if train_events is not None:
        history = read_event_file(train_events)
        late = int(np.count_nonzero(history.time_us >= first))
        if late:
            raise BadInputError(
                f"{train_events.name} has {late:,} events at or after the start of the test window ({_text(first)}): "
                "no model may have learned from them; cut the file, or name the window with --from"
            )
        log = joined(history, log)
    return log, Window(first, end)


def _time_us(option: str, text: str) -> int:
    from datetime import UTC, datetime

    from feature_repo.asof import microseconds
    from feature_repo.errors import BadInputError

    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise BadInputError(f"{option} must be a date or time (ISO 8601), not {text!r}") from None
    return microseconds(when if when.tzinfo else when.replace(tzinfo=UTC))


def _text(time_us: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"
