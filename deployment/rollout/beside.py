"""Slow work beside the controller's ticks, in a thread of its own: MLflow's aliases, and reports of what ended.

MLflow may take seconds to answer, or not answer: a rollback waits for neither.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from deployment.promotion import ControlPlane
from deployment.rollout.moves import Current
from deployment.rollout.report import write_report
from feature_repo.errors import LarderError
from feature_repo.settings import Settings

_LOG = logging.getLogger(__name__)
_ALIASES_S: Final = 5.0
_RETRY_S: Final = 15.0


class BesideWork:
    """The thread.

    Parameters
    ----------
    active
        Whether this process is the active controller: only that one touches MLflow.
    """

    def __init__(self, settings: Settings, plane: ControlPlane, active: Callable[[], bool]) -> None:
        self._settings = settings
        self._plane = plane
        self._active = active
        self._lock = threading.Lock()
        self._wanted: Current | None = None
        self._done: set[str] = set()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)
        self._told = ""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it; a call to MLflow that hangs is not waited for."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def ended(self, current: Current) -> bool:
        """Take up the report of a rollout that ended; return whether it is done."""
        with self._lock:
            if current.row.rollout_id in self._done:
                return True
            if self._wanted is None or self._wanted.row.rollout_id != current.row.rollout_id:
                self._wanted = current
                self._wake.set()
            return False

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(_ALIASES_S)
            self._wake.clear()
            if self._stopping.is_set() or not self._active():
                continue
            problem = self._report() or self._check_aliases()
            if problem and problem != self._told:
                _LOG.warning("%s", problem)
            self._told = problem
            if problem:
                self._stopping.wait(_RETRY_S - _ALIASES_S)

    def _report(self) -> str:
        with self._lock:
            wanted = self._wanted
        if wanted is None:
            return ""
        try:
            write_report(self._settings, wanted, self._plane.store, self._plane.registry)
        except (LarderError, OSError) as error:
            return f"the report of rollout {wanted.row.rollout_id} waits: {error}"
        with self._lock:
            self._done.add(wanted.row.rollout_id)
            if self._wanted is wanted:
                self._wanted = None
        return ""

    def _check_aliases(self) -> str:
        try:
            self._plane.aliases.check(datetime.now(UTC))
        except LarderError as error:
            return f"the aliases in MLflow wait: {error}"
        return ""
