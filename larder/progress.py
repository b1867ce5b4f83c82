"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere (CI logs, files)."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

#: Seconds between plain lines.
_EVERY_S = 5.0


class Progress(ABC):
    """One piece of work with a known or unknown number of steps."""

    @abstractmethod
    def advance(self, steps: float = 1) -> None:
        """Count steps as done."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Say what is being done now."""


class _Lines(Progress):
    def __init__(self, title: str, total: float | None, out: TextIO) -> None:
        self._title, self._total, self._out = title, total, out
        self._done, self._note = 0.0, ""
        self._began = self._said = time.monotonic()

    def advance(self, steps: float = 1) -> None:
        self._done += steps
        if time.monotonic() - self._said >= _EVERY_S:
            self.say()

    def note(self, text: str) -> None:
        self._note = text

    def say(self, end: str = "") -> None:
        now = self._said = time.monotonic()
        share = f" of {self._total:,.0f} ({self._done / self._total:.0%})" if self._total else ""
        count = f"{self._done:,.0f}{share}, " if self._done else ""
        note = f", {self._note}" if self._note and not end else ""
        self._out.write(f"{self._title}: {count}{now - self._began:.1f} s{note}{end}\n")
        self._out.flush()


@contextmanager
def progress(title: str, total: float | None = None, out: TextIO | None = None) -> Iterator[Progress]:
    """Show the progress of a block.

    Parameters
    ----------
    title
        What is done, e.g. "backfill".
    total
        Number of steps, None if unknown.
    out
        Where to show it; standard error if None, so that standard output stays clean.
    """
    out = out or sys.stderr
    if not out.isatty():
        lines = _Lines(title, total, out)
        yield lines
        lines.say(", done")
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
    ]
    with rich_progress.Progress(*columns, console=Console(file=out)) as bars:
        task = bars.add_task(title, total=total, note="")

        class _Bar(Progress):
            def advance(self, steps: float = 1) -> None:
                bars.advance(task, steps)

            def note(self, text: str) -> None:
                bars.update(task, note=text)

        yield _Bar()
        bars.update(task, note="")
