"""Several processes of one parent that share what is imported: the parent imports, then forks.

uvicorn's own supervisor starts each process anew: every one imports 200 MB of libraries for itself. Of a fork the pages
are shared until one writes to them.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import uvicorn
from threadpoolctl import threadpool_limits

_LOG = logging.getLogger(__name__)
_WATCHED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
#: A process that ends by itself is started again after so long, at first; twice as long each time it does not last.
_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 15.0
#: A process that ran so long has lasted.
_LASTED_S: Final = 30.0
#: What a process may take beyond its grace before it is killed.
_BEYOND_S: Final = 5.0


class Prefork:
    """A parent and its processes, all accepting on one socket.

    Parameters
    ----------
    make_app
        Makes the application, in each process.
    workers
        How many processes.
    grace_s
        How long a process may take to answer what is in flight when it is told to stop.
    options
        Of `uvicorn.Config`.
    orphaned
        Called in each process when the parent was killed and could not tidy up.
    """

    def __init__(
        self,
        make_app: Callable[[], Any],
        workers: int,
        grace_s: float,
        options: dict[str, Any],
        orphaned: Callable[[], None],
    ) -> None:
        self._config = uvicorn.Config(make_app, factory=True, **options)
        self._socket = self._config.bind_socket()
        self._workers, self._grace_s, self._orphaned = workers, grace_s, orphaned
        self._began: dict[int, float] = {}  # by pid of those that run
        self._due: list[float] = []  # when those that ended are to be started again
        self._pause_s = _PAUSE_S
        self._ended_by: float | None = None  # when those that still run are killed

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then let the processes finish what is in flight."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        # Threads do not survive a fork, and the collector would write into every object there is.
        threadpool_limits(1, "blas")
        gc.collect()
        gc.freeze()
        self._due = [0.0] * self._workers
        try:
            while self._due or self._began:
                self._start_due()
                wait_s = self._wait_s()
                got = signal.sigwait(_WATCHED) if wait_s is None else _signal_of(signal.sigtimedwait(_WATCHED, wait_s))
                if got in (signal.SIGTERM, signal.SIGINT):
                    self._stop()
                self._reap()
        finally:
            self._socket.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start_due(self) -> None:
        now = time.monotonic()
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            pid = os.fork()
            if not pid:
                self._be_worker()
            self._began[pid] = now

    def _be_worker(self) -> NoReturn:
        """Serve; never returns into what the parent was doing."""
        code = 1
        try:
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            threading.Thread(target=_end_with, args=(os.getppid(), self._orphaned), name="parent", daemon=True).start()
            server = uvicorn.Server(self._config)
            server.run(sockets=[self._socket])
            code = 0 if server.started else 3
        except SystemExit as error:  # as uvicorn ends where it cannot start
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            _LOG.exception("a worker failed")
        finally:
            logging.shutdown()
            os._exit(code)

    def _stop(self) -> None:
        self._due.clear()
        if self._ended_by is None:
            self._ended_by = time.monotonic() + self._grace_s + _BEYOND_S
        for pid in self._began:
            os.kill(pid, signal.SIGTERM)

    def _wait_s(self) -> float | None:
        """Return how long to wait for a signal; None for as long as it takes."""
        moments = self._due + ([] if self._ended_by is None else [self._ended_by])
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _reap(self) -> None:
        while self._began:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            began = self._began.pop(pid, None)
            if began is None or self._ended_by is not None:
                continue
            now = time.monotonic()
            self._pause_s = _PAUSE_S if now - began > _LASTED_S else min(2 * self._pause_s, _LONGEST_PAUSE_S)
            _LOG.error("worker %d ended (%d); another starts in %.1f s", pid, _code(status), self._pause_s)
            self._due.append(now + self._pause_s)
        if self._ended_by is not None and time.monotonic() >= self._ended_by:
            for pid in self._began:
                os.kill(pid, signal.SIGKILL)
            self._ended_by = time.monotonic() + _BEYOND_S


def _signal_of(found: signal.struct_siginfo | None) -> int | None:
    return None if found is None else found.si_signo


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def _end_with(parent: int, orphaned: Callable[[], None]) -> None:
    """End this process in order when the one that started it is gone: no worker outlives a parent's kill -9."""
    while os.getppid() == parent:
        time.sleep(1.0)
    orphaned()
    os.kill(os.getpid(), signal.SIGTERM)
