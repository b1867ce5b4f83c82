"""Lets the gate judge new versions in a thread of its own, and writes its verdicts into the ledger."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from deployment.promotion import ControlPlane
from deployment.verdict_entries import record_verdict
from feature_repo.errors import LarderError
from feature_repo.settings import Settings
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)
_EVERY_S: Final = 5.0
_ENTRIES: Final = 500
WHO: Final = "gate"


class GateFeed:
    """Looks for versions without a verdict while this process is the active controller."""

    def __init__(self, settings: Settings, plane: ControlPlane, active: Callable[[], bool]) -> None:
        self._settings = settings
        self._plane = plane
        self._active = active
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
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
        if importlib.util.find_spec("deployment.gate_worker") is None:
            _LOG.warning("there is no gate worker: versions are judged by `larder models promote` only")
            return
        worker = importlib.import_module("deployment.gate_worker").GateWorker(self._settings)
        try:
            while not self._stopping.is_set():
                if self._active():
                    self._look(worker)
                self._stopping.wait(_EVERY_S)
        finally:
            worker.close()

    def _look(self, worker: Any) -> None:
        try:
            looked = worker.run_once()
            problem = looked.problem or "; ".join(f"version {version} waits: {why}" for version, why in looked.waiting)
            self._enter(looked.verdicts)
            while self._again and not self._stopping.is_set():
                version = self._again.pop()
                self._enter((worker.judge(worker.version(version)),))
        except LarderError as error:
            problem = str(error)
        if problem and problem != self._told:
            _LOG.warning("gate: %s", problem)
        self._told = problem

    def _enter(self, verdicts: tuple[Any, ...]) -> None:
        """Write verdicts into the ledger, those of before a crash as well."""
        entries = self._plane.store.ledger(_ENTRIES)
        known = {
            (entry.model_version, entry.body.get("verdict", {}).get("gated_at"))
            for entry in entries
            if entry.action == "verdict"
        }
        for verdict in (*self._kept(), *verdicts):
            if (verdict.version, verdict.gated_at) in known:
                continue
            known.add((verdict.version, verdict.gated_at))
            record_verdict(self._plane.store, verdict, WHO, datetime.now(UTC))

    def _kept(self) -> list[Any]:
        """Return verdicts of versions that are judged, from this machine's files."""
        files = importlib.import_module("deployment.verdict_files")
        key = signing_key(self._settings)
        paths = sorted((self._settings.root / "verdicts").glob("v*.json"), key=lambda path: path.stat().st_mtime)[-20:]
        kept = (files.kept_verdict(self._settings, path.stem[1:], key) for path in paths)
        return [verdict for verdict in kept if verdict is not None and verdict.model == self._settings.model_name]
