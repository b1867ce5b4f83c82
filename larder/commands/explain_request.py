"""`larder explain-request`: what the model saw, where each candidate came from, and why a list looks as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(rich_markup_mode=None)


@app.command()
def explain_request(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(help="`request_id` of a list's answer.")],
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="UTC day of the answer: only its log is searched.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page that needs nothing else to this file.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Print every value the model saw, too.")] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Make the list again from offline features, to see what was filtered and moved; takes a backfill.",
        ),
    ] = False,
) -> None:
    """Explain one answer after the fact: features and scores as logged, sources, order, outcome so far.

    Examples
    --------
      larder explain-request 0f8e3c1f6d0b4a0f9d6f6f0e2a7c5b11
      larder -p shop explain-request page-77 --date 2026-11-27 --replay --html why.html
    """
    from datetime import datetime

    import msgspec

    from feature_repo.errors import BadInputError
    from larder.explaining.account import account_of
    from larder.explaining.page import account_page
    from larder.progress import progress
    from monitoring.find_request import find_request

    if date is not None:
        try:
            date = datetime.strptime(date, "%Y-%m-%d").strftime("%Y-%m-%d")  # noqa: DTZ007 - a day, no moment
        except ValueError:
            raise BadInputError(f"--date must be a day (2026-11-27), not {date!r}") from None
    settings = settings_of(ctx)
    found = find_request(settings, request_id, date)
    account, bundle = account_of(settings, found)
    if replay:
        from larder.explaining.replayed import replay_list

        with progress("replay") as bar:
            account.replayed = replay_list(settings, found.record, bundle, lambda done, _total: bar.note(f"{done:,}"))
    if html is not None:
        html.write_text(account_page(account), "utf-8")
    if as_json:
        print(msgspec.json.encode(account).decode())
        return
    from rich.console import Console

    from larder.explaining.terminal import show

    show(account, Console(highlight=False), features=features)
    if html is not None:
        print(f"\nwritten to {html}")
