"""`larder rollout`: start, watch, pause, end and force a rollout; its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from larder.rollout_commands import RolloutCommands

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Bring a version to users, step by step.")

Why = Annotated[str, typer.Option(help="Reason, kept in the ledger.")]
Reason = Annotated[str, typer.Option("--why", help="Reason, kept in the ledger.", prompt="Why")]


@app.command()
def start(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="Version number; the newest if left out.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile (setting rollout_profile).")] = None,
    why: Why = "started by hand",
) -> None:
    """Start the rollout of a version the gate let through. `larder controller run` moves it on.

    Examples
    --------
      larder rollout start
      larder rollout start 3 --profile demo --why "more of the new arrivals"
    """
    current = _commands(ctx).start(version, profile, why)
    rollout = current.rollout
    print(f"rollout {rollout.rollout_id} started: version {rollout.candidate.model_version}, now {rollout.state}")


@app.command()
def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until it ends or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show the newest rollout: arms, weights, intervals and how they went, the decision and its reason.

    Examples
    --------
      larder rollout status
      larder rollout status --watch
      larder rollout status --json
    """
    from larder.rollout_screen import show, watch_rollout

    commands = _commands(ctx)
    if as_json:
        from serving.rollout_status import encode_status

        print(encode_status(commands.status()).decode())
    elif watch:
        watch_rollout(commands.status)
    else:
        show(commands.status())


@app.command()
def pause(ctx: typer.Context, why: Why = "paused by hand") -> None:
    """Let the rollout not go on. What turns out worse is still rolled back.

    Examples
    --------
      larder rollout pause --why "sale begins"
    """
    print(f"rollout {_commands(ctx).pause(why)} is paused; `larder rollout resume` lets it go on")


@app.command()
def resume(ctx: typer.Context, why: Why = "resumed by hand") -> None:
    """Let a paused rollout go on.

    Examples
    --------
      larder rollout resume
    """
    print(f"rollout {_commands(ctx).resume(why)} goes on")


@app.command()
def abort(ctx: typer.Context, why: Reason) -> None:
    """End the rollout: every user is answered by the champion again, within seconds.

    Examples
    --------
      larder rollout abort --why "wrong training data"
    """
    commands = _commands(ctx)
    print(f"rollout {commands.abort(why)} is aborted")
    commands.print_unpublished()


@app.command()
def force(
    ctx: typer.Context,
    why: Reason,
    promote: Annotated[bool, typer.Option("--promote", help="To the champion, not to the next step.")] = False,
) -> None:
    """Go on without the evidence: to the next step, or to the champion. The ledger keeps who, and why.

    Examples
    --------
      larder rollout force --why "too little traffic at night, looked at by hand"
      larder rollout force --promote --why "fixes a bad mistake of the champion"
    """
    commands = _commands(ctx)
    current = commands.force(why, promote=promote)
    where = f" at {current.rollout.weight / 100:g} % of users" if current.rollout.weight else ""
    print(f"rollout {current.row.rollout_id}: {current.rollout.state}{where}")
    commands.print_unpublished()


@app.command()
def report(
    ctx: typer.Context,
    rollout_id: Annotated[str | None, typer.Argument(help="Rollout; the newest if left out.")] = None,
) -> None:
    """Write the report of a rollout, as it stands, as one HTML file, and print where it is.

    Examples
    --------
      larder rollout report
    """
    print(_commands(ctx).report(rollout_id))


def _commands(ctx: typer.Context) -> RolloutCommands:
    from larder.rollout_commands import RolloutCommands
    from larder.services.stack import attach

    return RolloutCommands(attach(settings_of(ctx)))
