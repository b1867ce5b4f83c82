"""Stops a server so that nobody notices: first it says that it is going, later it stops listening."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOG = logging.getLogger(__name__)


class Drain:
    """Whether the process is about to stop.

    A server that closes its listener on SIGTERM refuses whom the balancer still sends, and closes kept connections
    while a request may be on its way over them. While it drains, all goes on, but readiness is refused and every answer
    says `Connection: close`, so that both balancer and clients leave by themselves.

    Parameters
    ----------
    seconds
        How long to go on after SIGTERM; a balancer must look at readiness more often.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.draining = False

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Drain on SIGTERM before the handler there is (the server's) hears of it; Ctrl-C is not delayed.

        Does nothing where there is no handler, or outside the main thread, to which signals belong.
        """
        stop = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(stop):
            yield
            return
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            # Once: a supervisor and whoever stops the group may both send it.
            if not self.draining:
                self.draining = True
                _LOG.info("draining for %.1f s", self.seconds)
                loop.call_soon_threadsafe(loop.call_later, self.seconds, stop, number, None)

        signal.signal(signal.SIGTERM, begin)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, stop)
