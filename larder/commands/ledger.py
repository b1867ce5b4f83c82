"""`larder ledger`: everything the control plane did, and whether that record is still what was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from deployment.store.records import LedgerEntry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The hash-chained record of every decision.")


@app.command()
def verify(ctx: typer.Context) -> None:
    """Check hash, signature and place of every entry, the signed end, and that the plan is the one the last move made.

    Ends with exit code 1 and names the first entry that is not what was written.

    Examples
    --------
      larder ledger verify
    """
    from deployment.ledger_check import verify_ledger
    from deployment.store.control_store import ControlStore
    from serving.signature import signing_key

    settings = settings_of(ctx)
    key = signing_key(settings)
    count = verify_ledger(settings, ControlStore(settings, key), key)
    print(f"the ledger is intact: {count} {'entry' if count == 1 else 'entries'}")


@app.command()
def show(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many entries, the newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Whole entries, one JSON object a line.")] = False,
) -> None:
    """Show the newest entries: number, time, epoch, action, version, who and why.

    Examples
    --------
      larder ledger show
      larder ledger show --limit 1 --json
    """
    from dataclasses import asdict

    from deployment.store.control_store import ControlStore
    from serving.signature import signing_key

    settings = settings_of(ctx)
    entries = ControlStore(settings, signing_key(settings)).ledger(limit)
    if not entries:
        print("the ledger is empty")
    for entry in entries:
        print(json.dumps(asdict(entry)) if as_json else _line(entry))


def _line(entry: LedgerEntry) -> str:
    broken = "" if entry.intact else "  NOT WHAT WAS WRITTEN"
    version = f"v{entry.model_version}" if entry.model_version else "-"
    words = f"{entry.who}: {entry.why}".replace("\n", " ")
    return f"{entry.entry:>5}  {entry.at[:19]}  epoch {entry.epoch:<4} {entry.action:<13} {version:<5} {words}{broken}"
