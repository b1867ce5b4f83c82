"""`larder keys`: the key that plans and verdicts are signed with, and the token of the control plane's API."""

from __future__ import annotations

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The signing key and the admin token.")


@app.callback()
def group() -> None:
    """Keep `create` a sub-command though it is the only one."""


@app.command()
def create(ctx: typer.Context) -> None:
    """Make a random signing key and admin token for an embedded installation, unless it has them.

    With several machines set LARDER_SIGNING_KEY to the same secret on each instead; LARDER_ADMIN_TOKEN is needed where
    the control plane runs.

    Examples
    --------
      larder keys create
    """
    from deployment.admin_token import admin_token, create_token, token_path
    from serving.signature import create_key, key_path, signing_key

    settings = settings_of(ctx)
    made = create_key(settings)
    signing_key(settings)
    print(f"made {key_path(settings)}" if made else "there is a signing key already; it was not changed")
    made = create_token(settings)
    admin_token(settings)
    print(f"made {token_path(settings)}" if made else "there is an admin token already; it was not changed")
