"""Work that repeats beside the requests: it never ends by an error, and says so once, not twice a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping

from feature_repo.errors import UnavailableError

_LOG = logging.getLogger(__name__)
_CANCEL_AGAIN_S = 0.2
#: Least pause after a run that failed: who is away is looked at once a second, not twice.
_AFTER_FAILURE_S = 1.0


class BackgroundWork:
    """A coroutine function run again and again.

    Parameters
    ----------
    name
        For the log, and the key under which trouble is noted in `problems`.
    seconds
        Pause between two runs.
    work
        May raise; the next run tries again.
    problems
        Where trouble is noted for `/readyz`, and removed when it is over.
    """

    def __init__(
        self, name: str, seconds: float, work: Callable[[], Awaitable[object]], problems: MutableMapping[str, str]
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._problems = problems
        self._task: asyncio.Task[None] | None = None

    async def run_once(self) -> None:
        """Run the work; note what went wrong."""
        key = f"{self._name} failed"
        try:
            await self._work()
        except (UnavailableError, TimeoutError) as error:
            if key not in self._problems:
                _LOG.warning("%s: Redis is away: %s", self._name, error or "no answer in time")
            self._problems[key] = f"{self._name}: Redis is away"
        except Exception as error:  # a task that ends for good would leave the service stale for ever
            if key not in self._problems:
                _LOG.exception("%s failed", self._name)
            self._problems[key] = f"{self._name}: {type(error).__name__}"
        else:
            if self._problems.pop(key, None):
                _LOG.info("%s: works again", self._name)

    def start(self) -> None:
        """Begin, with a pause first."""
        self._task = asyncio.create_task(self._repeat(), name=self._name)

    async def stop(self) -> None:
        """End and wait for the end."""
        # A cancellation can be lost: in Python 3.11 `asyncio.wait_for`, which Redis clients use, swallows one that
        # arrives together with the answer. One that was lost is sent again.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_AGAIN_S)

    async def _repeat(self) -> None:
        while True:
            failed = f"{self._name} failed" in self._problems
            await asyncio.sleep(max(self._seconds, _AFTER_FAILURE_S) if failed else self._seconds)
            await self.run_once()
