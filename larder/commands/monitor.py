"""`larder monitor`: what is measured of a shop that runs."""

from __future__ import annotations

import typer

from larder.watching.quality import quality

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a shop that runs.")


@app.callback()
def _group() -> None:
    """Keep `quality` a command of its own, though it is the only one."""


app.command()(quality)
