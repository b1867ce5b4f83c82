"""`larder services`: the embedded Redis and MLflow, kept running independently of any command."""

from __future__ import annotations

from typing import Annotated

import typer

from feature_repo.errors import NotFoundError
from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start, stop and list the embedded services.")


@app.command()
def up(
    ctx: typer.Context,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Start Prometheus too; `make prometheus` gets it.")
    ] = False,
) -> None:
    """Start Redis and MLflow and leave them running; other commands then reuse them.

    Examples
    --------
      larder services up
      larder services up --prometheus
    """
    from larder.services.prometheus_server import prometheus_service
    from larder.services.stack import Stack

    settings = settings_of(ctx)
    watcher = prometheus_service(settings) if prometheus else None  # that it is not here is said first
    with Stack(settings, detach=True, report=print) as stack:
        if watcher is not None:
            stack.start(watcher, wait=False)
        stack.wait()
        print(f"Ready. MLflow: {stack.settings.tracking_uri}  stop with: larder services down")


@app.command()
def down(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Services to stop; all if none is named.")] = None,
) -> None:
    """Stop running services (all that run under this home, whoever started them).

    Examples
    --------
      larder services down
      larder services down mlflow
    """
    from larder.services.process import records, stop

    home = settings_of(ctx).home.resolve()
    running = {record.name: record for record in records(home)}
    for name in names or []:
        if name not in running:
            raise NotFoundError(f"no service {name!r} is running; running are: {', '.join(running) or 'none'}")
    for record in reversed(running.values()):
        if not names or record.name in names:
            stop(record, home)
            print(f"{record.name}: stopped (pid {record.pid})")
    if not running:
        print(f"No service is running under {home}.")


@app.command()
def status(ctx: typer.Context) -> None:
    """List the running services with their URLs and logs.

    Examples
    --------
      larder services status
    """
    from larder.services.process import records

    home = settings_of(ctx).home.resolve()
    running = records(home)
    for record in running:
        print(f"{record.name:<20} pid {record.pid:<8} {record.url:<28} {record.log}")
    if not running:
        print(f"No service is running under {home}.")
