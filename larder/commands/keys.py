"""`larder keys`: the key that plans and verdicts are signed with."""

from __future__ import annotations

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The key that plans and verdicts are signed with.")


@app.command()
def create(ctx: typer.Context) -> None:
    """Make a random signing key for an embedded installation, unless it has one.

    With several machines set LARDER_SIGNING_KEY to the same secret on each instead.

    Examples
    --------
      larder keys create
    """
    from serving.signature import create_key, key_path, signing_key

    settings = settings_of(ctx)
    made = create_key(settings)
    signing_key(settings)
    print(f"made {key_path(settings)}" if made else "there is a signing key already; nothing was changed")
