"""Finds versions that were never judged and judges them: one look at a time, with bounded waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from deployment.checks.contract import Progress
from deployment.gate import gate
from deployment.parser import Parser
from deployment.registry import Registry, Version
from deployment.thresholds import load_thresholds
from deployment.verdict import Verdict
from deployment.verdict_files import keep_verdict, kept_verdict
from feature_repo.errors import LarderError, UnavailableError
from feature_repo.settings import Settings
from serving.signature import signing_key

#: One call to MLflow waits so long, and is not repeated: the next look is the repetition.
POLL_TIMEOUT_S: Final = 5
POLL_S: Final = 5.0


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
        Why there was nothing to look at (MLflow or Redis away); empty otherwise.
    """

    verdicts: tuple[Verdict, ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    problem: str = ""


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
        self._parser = Parser(seconds=thresholds.parse_seconds, memory_mb=thresholds.parse_memory_mb)

    def close(self) -> None:
        """End the child process that parses."""
        self._parser.close()

    def run_once(self, progress: Progress | None = None) -> Looked:
        """Look once and judge what is new; never raises for a dependency that is away, nor for a bad version.

        Returns
        -------
        Looked
            Empty where there was nothing new.
        """
        try:
            new = [one for one in reversed(self._registry.versions()) if not one.verdict]
        except UnavailableError as error:
            return Looked(problem=str(error))
        verdicts: list[Verdict] = []
        waiting: list[tuple[str, str]] = []
        for version in new:
            try:
                verdicts.append(self._handed_in(version) or self.judge(version, progress))
            except UnavailableError as error:
                return Looked(tuple(verdicts), tuple(waiting), str(error))
            except LarderError as error:
                waiting.append((version.version, str(error)))
        return Looked(tuple(verdicts), tuple(waiting))

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
