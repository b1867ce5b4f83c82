"""`larder admin`: the control plane's own API, where no rollout controller runs it."""

from __future__ import annotations

from typing import Annotated

import typer

from feature_repo.errors import UnavailableError
from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The control plane's own API.")

#: Never another: the API is for callers on this machine.
_HOST = "127.0.0.1"


@app.callback()
def group() -> None:
    """Keep `serve` a sub-command though it is the only one."""


@app.command()
def serve(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (setting admin_port).")] = None,
) -> None:
    """Run it on 127.0.0.1 until Ctrl-C or SIGTERM; callers need the admin token (`larder keys create`).

    Examples
    --------
      larder admin serve
      larder -p online_retail admin serve --port 8200
    """
    import uvicorn

    from deployment.admin_app import create_admin_app
    from larder.services.ports import is_free
    from larder.services.stack import attach

    settings = attach(settings_of(ctx))
    port = settings.admin_port if port is None else port
    if port and not is_free(port):
        raise UnavailableError(f"port {port} is in use; choose another with --port or the setting admin_port")
    print(f"project {settings.project}: http://{_HOST}:{port}/admin/models", flush=True)
    uvicorn.run(
        create_admin_app(settings), host=_HOST, port=port, access_log=False, server_header=False, ws="none",
        log_level="warning",
    )  # fmt: skip
