"""What a check of the gate is, and what all checks look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from deployment.blame import surroundings
from deployment.live import Live, read_live
from deployment.measure import Measured, measure
from deployment.parser import Parsed
from deployment.thresholds import Thresholds
from deployment.verdict import Check
from feature_repo.settings import Settings
from serving.bundle import Bundle

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GateContext:
    """One model under judgement. What is expensive is measured once, when the first check asks for it.

    Attributes
    ----------
    bundle, directory
        The candidate as loaded, and where it lies in the content store.
    parsed
        What the child process found that parsed it first.
    champion
        What serves now; None without one.
    champion_problem
        Why there is a champion that nothing can be compared with; empty otherwise.
    now_us
        The moment that live requests are asked at.
    """

    settings: Settings
    thresholds: Thresholds
    bundle: Bundle
    directory: Path
    parsed: Parsed
    champion: Bundle | None
    champion_version: str
    champion_problem: str
    now_us: int
    report: Progress

    @cached_property
    def measured(self) -> Measured:
        """The pass over the held-out window."""
        return measure(self.settings, self.bundle, self.champion, self.thresholds.users, self.report)

    @cached_property
    def live(self) -> Live:
        """The online side as serving sees it."""
        users = self.measured.users
        with surroundings("read the online store"):
            return read_live(self.settings, users)


class GateCheck(Protocol):
    """One question, or a few that share their measurement."""

    @property
    def name(self) -> str:
        """What progress calls it."""
        ...

    def run(self, context: GateContext) -> list[Check]:
        """Measure and judge."""
        ...
