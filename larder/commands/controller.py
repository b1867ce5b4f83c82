"""`larder controller`: the process that judges, rolls out and rolls back, with the control plane's own API."""

from __future__ import annotations

from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Judge versions, roll them out, roll them back.")

#: How long a stopping process waits for a request to its API.
_GRACE_S = 5


@app.callback()
def group() -> None:
    """Judge versions, roll them out, roll them back."""


@app.command()
def run(
    ctx: typer.Context,
    profile: Annotated[
        str | None, typer.Option(help="Profile of rollouts it starts (setting rollout_profile).")
    ] = None,
    api: Annotated[bool, typer.Option(help="Serve the control plane's API on setting admin_port.")] = True,
    gate: Annotated[bool, typer.Option(help="Judge versions that were registered.")] = True,
) -> None:
    """Run the controller until Ctrl-C or SIGTERM. Several may run: one is active, the others wait for it to go away.

    It judges new versions, starts the rollout of one that passes (setting rollout_auto), moves it from step to step or
    back by the evidence in the logs, and sets aliases back that were moved by hand. Serving does not need it.

    Examples
    --------
      larder controller run
      larder -p online_retail controller run --profile demo --no-gate
    """
    import signal
    import threading

    from larder.control import ControlProcess
    from larder.exposition import exposed
    from larder.services.stack import attach
    from serving.logs import configure_logging

    settings = attach(settings_of(ctx))
    configure_logging(settings.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    process = ControlProcess(settings, profile or settings.rollout_profile, with_gate=gate)
    shown = exposed(settings, "controller", process.metrics.registry, settings.control_metrics_port)
    with shown as port, process.serving(_GRACE_S) if api else process:
        where = f", API on 127.0.0.1:{settings.admin_port}" if api else ""
        where += f", metrics on port {port}"
        print(f"controller ready: project {settings.project}, profile {process.profile}{where}", flush=True)
        process.run(stop)
    print("controller stopped")
