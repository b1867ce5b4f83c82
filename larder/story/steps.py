"""Progress of work in named phases: each phase gets a bar (or lines) of its own."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from larder.progress import Progress, progress


class PhaseProgress:
    """Callable as `report(what, done, total)`; a new `what` ends the last phase's bar and opens the next."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._what: str | None = None
        self._shown: Progress | None = None
        self._done = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take a report of progress."""
        if what != self._what or self._shown is None:
            self._stack.close()
            self._shown = self._stack.enter_context(progress(what, total))
            self._what, self._done = what, 0
        self._shown.advance(done - self._done)
        self._done = done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
