"""Lets the gate judge new versions in a thread of its own, and writes its verdicts into the ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from deployment.blame import told
from deployment.gate_worker import POLL_S, GateWorker
from deployment.promotion import ControlPlane
from deployment.verdict import Verdict
from deployment.verdict_entries import record_verdict
from deployment.verdict_files import kept_verdict, verdict_path
from feature_repo.errors import LarderError, NotFoundError
from feature_repo.settings import Settings
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)
_ENTRIES: Final = 500
_FILES: Final = 20
WHO: Final = "gate"


class GateFeed:
    """Looks for versions without a verdict while this process is the active controller."""

    def __init__(
        self,
        settings: Settings,
        plane: ControlPlane,
        active: Callable[[], bool],
        on_verdict: Callable[[Verdict], None] = lambda _verdict: None,
        on_attempts: Callable[[int], None] = lambda _attempts: None,
    ) -> None:
        self._settings = settings
        self._on_attempts = on_attempts
        self._on_verdict = on_verdict
        self._plane = plane
        self._active = active
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._key = signing_key(settings)
        self._told = ""
        self._again: set[str] = set()

    def again(self, version: str) -> None:
        """Let a version be judged once more: it was compared with a champion of the past."""
        self._again.add(version)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a judgement that runs is begun again by the next controller."""
        self._stopping.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        worker = GateWorker(self._settings)
        try:
            while not self._stopping.is_set():
                if self._active():
                    self._look(worker)
                self._stopping.wait(POLL_S)
        finally:
            worker.close()

    def _look(self, worker: GateWorker) -> None:
        try:
            looked = worker.run_once()
            self._on_attempts(looked.attempts)
            waits = "; ".join(f"version {version} waits: {why}" for version, why in looked.waiting)
            problem = waits or looked.problem
            self._enter(worker, looked.verdicts)
            for version in tuple(self._again):
                if self._stopping.is_set():
                    break
                self._enter(worker, (worker.judge(worker.version(version)),))
                self._again.discard(version)
        except NotFoundError as error:  # a version that was deleted is not judged again
            self._again.clear()
            problem = str(error)
        except Exception as error:  # the thread that judges must outlive whatever one look does
            if not isinstance(error, LarderError):
                _LOG.exception("a look of the gate failed")
            problem = told(error)
        if problem and problem != self._told:
            _LOG.warning("gate: %s", problem)
        self._told = problem

    def _enter(self, worker: GateWorker, verdicts: tuple[Verdict, ...]) -> None:
        """Write verdicts into the ledger, also one that MLflow has heard of and the ledger, after a crash, has not."""
        known = {
            (entry.model_version, entry.body.get("verdict", {}).get("gated_at"))
            for entry in self._plane.store.ledger(_ENTRIES)
            if entry.action == "verdict"
        }
        for verdict in (*self._kept(), *verdicts):
            if (verdict.version, verdict.gated_at) in known:
                continue
            known.add((verdict.version, verdict.gated_at))
            # A version's number comes again when a project starts anew on another MLflow; a run's id never does.
            if verdict in verdicts or worker.version(verdict.version).run_id == verdict.run_id:
                record_verdict(self._plane.store, verdict, WHO, datetime.now(UTC))
                self._on_verdict(verdict)

    def _kept(self) -> list[Verdict]:
        """Return the newest verdicts of this machine's files."""
        paths = list(verdict_path(self._settings, "0").parent.glob("v*.json"))
        newest = sorted(paths, key=lambda path: path.stat().st_mtime)[-_FILES:]
        kept = [kept_verdict(self._settings, path.stem[1:], self._key) for path in newest]
        return [one for one in kept if one is not None and one.model == self._settings.model_name]
