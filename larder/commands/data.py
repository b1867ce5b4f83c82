"""`larder data`: import a data set as a project's history, and say what a project has."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import BadInputError, NotFoundError, UnavailableError
from larder.progress import progress
from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.datasets import ImportReport
    from feature_repo.settings import Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import a data set; say what a project has.")


@app.command("import")
def import_(
    ctx: typer.Context,
    dataset: Annotated[
        str, typer.Option(help="simulator, online_retail, movielens, rees46 or complete_journey.")
    ] = "simulator",
    end: Annotated[
        str | None,
        typer.Option(help="Move all times by whole weeks, up to this ISO date or 'now'; default: times as published."),
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="How many events the simulator makes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulator (default: setting seed).")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A file of events (Parquet, CSV, JSON lines) instead of a data set; replaces the history."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="A YAML mapping: which columns of your CSV or Parquet files are which fields."),
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Of the file only what happened before this ISO time (or 'now').")
    ] = None,
) -> None:
    """Import a data set as the history of a project (its name is the project's unless --project names one).

    Your own files: with --mapping, whatever their columns are called (docs/own-data.md); with --file, if they are those
    of docs/events.md already. A file of events replaces the project's history; its catalogue stays. What happened later
    than --before can be loaded live (larder events load): nothing may be in both.

    Examples
    --------
      larder data import --dataset simulator --events 200000 --end now
      larder data import --dataset online_retail
      larder data import --mapping shop.yaml
      larder --project shop data import --file events.parquet --before 2026-01-31
    """
    from feature_repo.datasets import load_dataset, shift_to, write_dataset

    if file is not None and mapping is not None:
        raise BadInputError("name --file or --mapping, not both: a mapping names its files itself")
    if file is not None:
        _import_file(settings_of(ctx), file, None if before is None else parse_end(before))
        return
    until = None if end is None else parse_end(end)
    options = {key: value for key, value in {"n_events": events, "seed": seed}.items() if value is not None}
    if mapping is not None:
        from feature_repo.adapters.mapped_files import load

        with progress(f"load {mapping.name}"):
            loaded = load(mapping, settings_of(ctx).data_dir)
        settings = settings_of(ctx, loaded.name)
    else:
        settings = settings_of(ctx, dataset)
        with progress(f"load {dataset}"):
            loaded = load_dataset(dataset, settings, **options)
    if until is not None:
        loaded = shift_to(loaded, until)
    with progress(f"write {settings.root}"):
        report = write_dataset(loaded, settings)
    _show(report, settings.project)


@app.command()
def status(ctx: typer.Context) -> None:
    """Say what was imported into the project: rows read, accepted and quarantined with their reasons.

    Examples
    --------
      larder data status
      larder --project online_retail data status
    """
    from feature_repo.event_log import read_report

    settings = settings_of(ctx)
    try:
        _show(read_report(settings), settings.project)
    except NotFoundError:
        if not settings.events_dir.is_dir():  # nor live events
            raise
    _show_refused(settings)


@app.command()
def describe(
    ctx: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(help="A data set (as of import) to describe: imported first if its project has no data yet."),
    ] = None,
) -> None:
    """Describe a project's data: a short table here, and one page with pictures that needs nothing else.

    Counts, spans, activity by hour and weekday, the funnel from view to purchase, categories, prices, lengths of
    histories, the share of new users and items, and the quarantine: .larder/results/data-<project>.html.

    Examples
    --------
      larder data describe
      larder data describe --dataset online_retail
      larder --project shop data describe
    """
    from larder.describing.figures import describe as figures_of
    from larder.describing.page import data_page, summary
    from larder.describing.pictures import pictures
    from larder.story.data import ensure_data

    settings = settings_of(ctx, dataset)
    if dataset is not None:
        ensure_data(settings, dataset)
    with progress("count"):
        found = figures_of(settings)
    with progress("draw"):
        page = data_page(found, pictures(found))
    path = settings.results_dir / f"data-{settings.project}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")
    print(f"project {settings.project}: data set {found.data_set}")
    for name, text in summary(found):
        print(f"  {name:<11} {text}")
    print(f"  page        {path}")


def _import_file(settings: Settings, file: Path, before: datetime | None) -> None:
    from feature_repo.adapters.event_file import load
    from feature_repo.datasets import read_items, write_dataset
    from feature_repo.events import ITEM_SCHEMA

    try:
        items = read_items(settings)
    except NotFoundError:
        items = ITEM_SCHEMA.empty_table()
    with progress(f"load {file.name}"):
        loaded = load(file, items, before=before)
    with progress(f"write {settings.root}"):
        report = write_dataset(loaded, settings)
    _show(report, settings.project)


def _show_refused(settings: Settings) -> None:
    """Say what the API refused, and what waits in quarantine files."""
    import pyarrow.parquet as pq

    from feature_repo.quarantine import refused_counts
    from feature_repo.redis_scripts import connect_events

    try:
        with closing(connect_events(settings, timeout_ms=2_000)) as client:
            counts = refused_counts(client, settings.project)
    except UnavailableError as error:
        print(f"  what the API refused is not known: {error}")
    else:
        print(f"  {sum(counts.values()):>9,} live rows refused by the API")
        for reason, count in counts.items():
            print(f"  {count:>11,} {reason}")
    for path in sorted(settings.quarantine_dir.glob("*.parquet")):
        print(f"  {pq.read_metadata(path).num_rows:>9,} rows in {path}")


def parse_end(text: str) -> datetime:
    """Return the aware time that `now` or an ISO date or time means; without a zone it is UTC.

    Raises
    ------
    BadInputError
        If it is neither.
    """
    if text == "now":
        return datetime.now(UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadInputError(f"--end must be 'now' or an ISO date such as 2026-01-31, not {text!r}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _show(report: ImportReport, project: str) -> None:
    print(f"project {project}: data set {report.name}, {report.first_time} to {report.last_time}")
    if report.shift_weeks:
        print(f"  times moved by {report.shift_weeks} weeks")
    print(f"  {report.rows_read:>9,} rows read")
    print(f"  {report.accepted:>9,} events accepted: {report.users:,} users, {report.items:,} items in the catalogue")
    print(f"  {sum(report.quarantined.values()):>9,} rows in quarantine")
    for reason, count in report.quarantined.items():
        print(f"  {count:>11,} {reason}")
    print(f"  data hash {report.data_hash}")
