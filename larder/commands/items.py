"""`larder items`: load a file of catalogue entries into the stream, as if the API had been sent them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Load catalogue entries from a file.")


@app.callback()
def items() -> None:
    """Load catalogue entries from a file."""


@app.command()
def load(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines (.jsonl) with the fields of an item.")],
    rate: Annotated[float, typer.Option(min=0, help="Entries a second at most; 0: as fast as Redis takes them.")] = 0.0,
) -> None:
    """Load new and changed items; an entry sets what it names and leaves the rest as it is.

    Empty cells of a table set nothing; in JSON lines null clears a field. The same file may be loaded again: nothing
    counts twice (within 7 days).

    Examples
    --------
      larder items load catalogue.csv
      larder --project shop items load prices.jsonl
    """
    from larder.loading.files import RowFile
    from larder.loading.load import lines_of, load_items
    from larder.progress import progress

    settings = settings_of(ctx)
    with progress(f"load {file.name}", RowFile.open(file).rows) as shown:
        report = load_items(settings, file, rate=rate, on_rows=shown.advance)
    print(f"project {settings.project}: {file}")
    print("\n".join(lines_of(report, file)))
