"""`larder serve`: the API of a project."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Annotated, Any

import typer

from feature_repo.errors import UnavailableError
from larder.session import settings_of

app = typer.Typer(rich_markup_mode=None, help="Run the API: recommendations, scores, events.")

#: How long requests in flight may take when the server is told to stop.
_GRACE_S = 10


@app.command()
def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on (setting api_host).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (setting api_port).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each has its own /metrics.")] = 1,
) -> None:
    """Run the API until Ctrl-C or SIGTERM. Redis is expected to run: `larder services up`.

    Examples
    --------
      larder serve
      larder -p online_retail serve --port 8100
    """
    import uvicorn

    from larder.services.stack import attach, settings_env
    from serving.app import app_from_environment, create_app
    from serving.logs import configure_logging
    from serving.protocol import EdgeProtocol

    settings = attach(settings_of(ctx))
    settings = replace(
        settings, api_host=host or settings.api_host, api_port=settings.api_port if port is None else port
    )
    _require_free(settings.api_host, settings.api_port)
    configure_logging(settings.log_format)
    print(f"project {settings.project}: http://{settings.api_host}:{settings.api_port}/docs", flush=True)
    options: dict[str, Any] = {
        "host": settings.api_host,
        "port": settings.api_port,
        "loop": "uvloop",
        "http": EdgeProtocol,
        "access_log": False,  # /metrics counts; a line per request costs more than the request's own Python
        "timeout_graceful_shutdown": _GRACE_S,
        "server_header": False,
        "ws": "none",
        "log_level": "warning",
        "log_config": None,  # ours, with request ids, for uvicorn's lines too
    }
    if workers == 1:
        uvicorn.run(create_app(settings), **options)
    else:
        os.environ.update(settings_env(settings))
        name = f"{app_from_environment.__module__}:{app_from_environment.__name__}"
        uvicorn.run(name, factory=True, workers=workers, **options)


def _require_free(host: str, port: int) -> None:
    """Find out before anything is loaded whether the server could listen.

    Raises
    ------
    UnavailableError
        If not.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UnavailableError(
            f"the API cannot listen on {host} port {port}: {error.strerror}; choose another with --host and --port"
        ) from None
