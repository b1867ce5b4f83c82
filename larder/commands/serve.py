"""`larder serve`: the API of a project."""

from __future__ import annotations

import contextlib
import importlib
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from feature_repo.errors import LarderError, UnavailableError
from feature_repo.settings import Settings
from larder.session import settings_of

app = typer.Typer(rich_markup_mode=None, help="Run the API: recommendations, scores, events.")

#: How long requests in flight may take when the server is told to stop.
_GRACE_S = 10
#: A connection on which nothing is asked is closed after so long: later than clients (httpx: 5 s) and proxies (HAProxy:
#: 5 s) give it up themselves, or a request now and then leaves in the very moment the other end closes.
_IDLE_S: Final = 20


@app.command()
def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on (setting api_host).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port (setting api_port).")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Serve this bundle, whatever the plan says (setting pinned_bundle).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; /metrics of any has the metrics of all.")] = 1,
) -> None:
    """Run the API until Ctrl-C or SIGTERM. Redis is expected to run: `larder services up`.

    Examples
    --------
      larder serve
      larder -p online_retail serve --port 8100
      larder serve --port 8101 --bundle 3f0c9a...
    """
    import uvicorn

    from larder.exposition import announced
    from larder.services.stack import attach
    from serving.app import create_app
    from serving.logs import configure_logging
    from serving.prefork import Prefork
    from serving.protocol import EdgeProtocol
    from serving.workers import remove_directory

    settings = attach(settings_of(ctx))
    settings = replace(
        settings,
        api_host=host or settings.api_host,
        api_port=settings.api_port if port is None else port,
        pinned_bundle=bundle or settings.pinned_bundle,
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
        "timeout_keep_alive": _IDLE_S,
        "server_header": False,
        "ws": "none",
        "log_level": "warning",
        "log_config": None,  # ours, with request ids, for uvicorn's lines too
    }
    # uvicorn ends in order, then raises the signal again: it must not end this process before it has tidied up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with announced(settings, "api", settings.api_host, settings.api_port):
        if workers == 1:
            uvicorn.run(create_app(settings), **options)
            return
        _import_ranker(settings)
        # Short, as the name of a Unix socket must be; nobody else may enter.
        with tempfile.TemporaryDirectory(prefix="larder-") as name:
            directory = Path(name)
            make_app = partial(create_app, settings, workers_dir=directory)
            Prefork(make_app, workers, _GRACE_S, options, partial(remove_directory, directory)).run()


def _import_ranker(settings: Settings) -> None:
    """Import what the champion's ranker needs, so that the workers share it; they say what is wrong with a bundle."""
    from serving.bundle import read_manifest
    from serving.plan import load_plan
    from serving.signature import signing_key

    with contextlib.suppress(LarderError, ImportError):
        plan = load_plan(settings.plan_path, signing_key(settings))
        if plan is not None:
            manifest = read_manifest(settings.bundles_dir / plan.stable.bundle_id)
            importlib.import_module(manifest["ranker"]["kind"])  # kinds have the names of their libraries


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
