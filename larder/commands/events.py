"""`larder events`: load a file of events into the stream, as if the API had been sent them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Load live events from a file.")


@app.callback()
def events() -> None:
    """Load live events from a file."""


@app.command()
def load(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines (.jsonl) with the fields of an event.")],
    rate: Annotated[float, typer.Option(min=0, help="Events a second at most; 0: as fast as Redis takes them.")] = 0.0,
) -> None:
    """Load the events of a file; the ingest worker folds them like those of the API.

    Every row is checked; what cannot be an event goes to quarantine with its reason. What is reported as accepted is in
    the stream. A row without event_id gets one of the file's content and its place, so the same file may be loaded
    again, after a failure or by mistake: nothing counts twice.

    Examples
    --------
      larder events load events.parquet
      larder --project shop events load today.jsonl --rate 2000
    """
    from larder.loading.files import RowFile
    from larder.loading.load import lines_of, load_events
    from larder.progress import progress

    settings = settings_of(ctx)
    with progress(f"load {file.name}", RowFile.open(file).rows) as shown:
        report = load_events(settings, file, rate=rate, on_rows=shown.advance)
    print(f"project {settings.project}: {file}")
    print("\n".join(lines_of(report, file)))
