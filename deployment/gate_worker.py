"""Finds versions that were never judged and judges them: one look at a time, with bounded waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from deployment.blame import NotHereError, told
from deployment.checks.contract import Progress
from deployment.gate import gate
from deployment.parser import Parser
from deployment.registry import Registry, Version
from deployment.thresholds import load_thresholds
from deployment.verdict import Verdict
from deployment.verdict_files import keep_verdict, kept_verdict
from feature_repo.errors import LarderError
from feature_repo.settings import Settings
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)
#: One call to MLflow waits so long, and is not repeated: the next look is the repetition.
POLL_TIMEOUT_S: Final = 5
POLL_S: Final = 5.0
#: After so many attempts in vain it is said as an error, and by an alert: a person must look.
LOUD_AFTER: Final = 5
#: The first attempt in vain is repeated at the next look, each further one after twice the time, up to this.
_BACKOFF_S: Final = (10.0, 120.0)


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look did.

    Attributes
    ----------
    verdicts
        Of versions judged now; each is in MLflow.
    waiting
        Version to why it could not be judged yet; the next look tries again.
    problem
        What around the gate failed (MLflow, Redis, the disk); empty otherwise.
    attempts
        Attempts in vain in a row for that: the most of any version, or of looking for versions.
    """

    verdicts: tuple[Verdict, ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    attempts: int = 0


@dataclass(slots=True)
class _InVain:
    """Attempts on a version that something around the gate made fail."""

    attempts: int = 0
    not_before_s: float = 0.0
    why: str = ""


class GateWorker:
    """Judges what was registered, oldest first, each version once.

    A verdict is kept on this machine before MLflow hears of it: where MLflow goes away in between, the next look hands
    it in, and nothing is measured twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings, retries=0, timeout_s=POLL_TIMEOUT_S)
        self._key = signing_key(settings)
        thresholds = load_thresholds(settings)
        self._looks_in_vain = 0
        self._in_vain: dict[str, _InVain] = {}
        self._parser = Parser(seconds=thresholds.parse_seconds, memory_mb=thresholds.parse_memory_mb)

    def close(self) -> None:
        """End the child process that parses."""
        self._parser.close()

    def run_once(self, progress: Progress | None = None) -> Looked:
        """Look once and judge what is new; never raises: what fails now is tried again, later and later.

        Returns
        -------
        Looked
            Empty where there was nothing new.
        """
        try:
            new = [one for one in reversed(self._registry.versions()) if not one.verdict]
        except LarderError as error:
            self._looks_in_vain += 1
            _say_aloud(f"versions cannot be listed: {error}", self._looks_in_vain)
            return Looked(problem=str(error), attempts=self._looks_in_vain)
        self._looks_in_vain = 0
        self._in_vain = {one.version: self._in_vain[one.version] for one in new if one.version in self._in_vain}
        verdicts: list[Verdict] = []
        waiting: list[tuple[str, str]] = []
        for version in new:
            before = self._in_vain.get(version.version)
            if before is not None and time.monotonic() < before.not_before_s:
                waiting.append((version.version, before.why))
                continue
            try:
                verdicts.append(self._handed_in(version) or self.judge(version, progress))
                self._in_vain.pop(version.version, None)
            except NotHereError as error:
                waiting.append((version.version, str(error)))
            except Exception as error:  # one version must not keep the others from their verdict, nor end the worker
                waiting.append((version.version, self._failed(version.version, error)))
        failed = max(self._in_vain.values(), key=lambda one: one.attempts, default=_InVain())
        return Looked(tuple(verdicts), tuple(waiting), failed.why, failed.attempts)

    def version(self, number: str) -> Version:
        """Return a version by its number; raises like `Registry.version`."""
        return self._registry.version(number)

    def judge(self, version: Version, progress: Progress | None = None) -> Verdict:
        """Judge a version now, whether it was judged before or not."""
        return gate(self._settings, self._registry, version, progress, parser=self._parser)

    def watch(
        self,
        stop: threading.Event,
        on_look: Callable[[Looked], None],
        progress: Progress | None = None,
        *,
        every_s: float = POLL_S,
    ) -> None:
        """Look again and again until told to stop."""
        try:
            while not stop.is_set():
                on_look(self.run_once(progress))
                stop.wait(every_s)
        finally:
            self.close()

    def _failed(self, version: str, error: Exception) -> str:
        """Note an attempt in vain, and when the next one is due; return why, in one line."""
        if not isinstance(error, LarderError):
            _LOG.error("version %s could not be judged", version, exc_info=error)
        noted = self._in_vain.setdefault(version, _InVain())
        noted.attempts += 1
        noted.why = told(error)
        first, longest = _BACKOFF_S
        wait = min(first * 2.0 ** (noted.attempts - 2), longest) if noted.attempts > 1 else 0.0
        noted.not_before_s = time.monotonic() + wait
        _say_aloud(f"version {version} cannot be judged: {noted.why}", noted.attempts)
        return noted.why

    def _handed_in(self, version: Version) -> Verdict | None:
        """Hand in a verdict that MLflow has not heard of; None if there is none."""
        verdict = kept_verdict(self._settings, version.version, self._key)
        # A version's number comes again when a project starts anew on another MLflow; a run's id never does.
        if (
            verdict is None
            or not version.run_id
            or verdict.run_id != version.run_id
            or verdict.model != self._settings.model_name
        ):
            return None
        sealed, page = keep_verdict(self._settings, verdict, self._key)
        self._registry.write_verdict(version, verdict, sealed, page)
        return verdict


def _say_aloud(what: str, attempts: int) -> None:
    """Say as an error what has failed `LOUD_AFTER` times, and again after as many more."""
    if attempts % LOUD_AFTER == 0:
        _LOG.error("%s (%d attempts in vain; it is tried again)", what, attempts)
