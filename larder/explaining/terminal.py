"""The account of an answer on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from larder.explaining import words
from larder.explaining.account import Account, Line
from serving.logs import printable


def show(account: Account, console: Console, *, features: bool) -> None:
    """Print it; with `features`, all values the model saw of each item."""
    table = Table.grid(padding=(0, 2))
    for name, value in words.facts(account):
        table.add_row(f"[bold]{name}[/]", _text(value))
    console.print(table)
    for reason, text in account.reasons.items():
        console.print(f"[yellow]{reason}[/]: {_text(text)}")
    _head(console, "The list")
    console.print(_list(account.lines))
    _head(console, "Why this order")
    _sentences(console, [*account.steps, *account.known])
    _head(console, "Why each item")
    for line in account.lines:
        console.print(f"[bold]{line.rank}. {_text(line.item_id)}[/]  {_text(line.summary)}")
        for one in line.contributions:
            console.print(f"     {_text(one.text)}", style="green" if one.contribution > 0 else "red")
        if features and line.features:
            console.print("     " + _text(", ".join(f"{name}={value}" for name, value in line.features.items())))
            console.print(
                "     " + _text("; ".join(f"{view}: {words.row_in_words(row)}" for view, row in line.rows.items()))
            )
    _head(console, "What came of it so far")
    outcome = [words.outcome_in_words(one) for one in account.outcome]
    _sentences(console, outcome or ["Nothing in the event log yet."])
    if (shadow := words.shadow_in_words(account)) is not None:
        _head(console, "Shadow")
        _sentences(console, [shadow])
    if account.replayed is not None:
        _head(console, "Replay (computed now, not logged)")
        _sentences(console, words.replay_in_words(account.replayed, len(account.lines)))


def _list(lines: list[Line]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, right in (("rank", True), ("item", False), ("score", True), ("brought by", False), ("item row", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in lines:
        row = line.rows.get("item_stats")
        slot = f" (slot: {line.slot})" if line.slot else ""
        table.add_row(
            str(line.rank),
            _text(line.item_id),
            f"{line.score:.4g}",
            _text(words.sources_in_words(line.source, line.brought) + slot),
            "" if row is None else words.row_in_words(row),
        )
    return table


def _head(console: Console, title: str) -> None:
    console.print(f"\n[bold underline]{title}[/]")


def _sentences(console: Console, sentences: list[str]) -> None:
    for sentence in sentences:
        console.print(f"- {_text(sentence)}")


def _text(value: str) -> str:
    """Ids are user data: neither markup nor letters that move the cursor come through."""
    return escape(printable(value))
