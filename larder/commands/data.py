"""`larder data`: import a data set as a project's history, and say what a project has."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import BadInputError
from larder.progress import progress
from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.datasets import ImportReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import a data set; say what a project has.")


@app.command("import")
def import_(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Option(help="simulator or online_retail.")] = "simulator",
    end: Annotated[
        str | None,
        typer.Option(help="Move all times by whole weeks, up to this ISO date or 'now'; default: times as published."),
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="How many events the simulator makes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulator (default: setting seed).")] = None,
) -> None:
    """Import a data set as the history of a project (its name is the project's unless --project names one).

    Examples
    --------
      larder data import --dataset simulator --events 200000 --end now
      larder data import --dataset online_retail
    """
    from feature_repo.datasets import load_dataset, shift_to, write_dataset

    settings = settings_of(ctx, dataset)
    until = None if end is None else parse_end(end)
    options = {key: value for key, value in {"n_events": events, "seed": seed}.items() if value is not None}
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
    _show(read_report(settings), settings.project)


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
