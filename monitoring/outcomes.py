"""What a comparison of features found: outcomes counted by name, lateness, and examples a person can follow. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

OUTCOMES: Final = ("match", "wrong", "late", "missing")
MATCH, WRONG, LATE, MISSING = range(4)
#: Examples kept per name and outcome.
EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One value that is no match: where it stands, and both sides of it."""

    name: str
    outcome: str
    where: dict[str, str]
    here: str
    there: str
    why: str


@dataclass(slots=True)
class Comparison:
    """One check.

    Attributes
    ----------
    name
        In figures: `stores` or `served`.
    title
        What was compared with what.
    here, there
        What the two sides of an example are.
    counts
        Values by name and outcome, arrays of shape (4,) in the order of `OUTCOMES`.
    late_ms
        For each row that lacked something it could have held: how long that had been accepted, ms, by name of its view.
    left_out
        What was not compared, and why, with its number.
    """

    name: str
    title: str
    here: str
    there: str
    counts: dict[str, I64] = field(default_factory=dict)
    late_ms: dict[str, list[F64]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, outcome: I8, values: int = 1) -> None:
        """Count outcomes of `values` values each."""
        found = np.bincount(outcome, minlength=len(OUTCOMES)).astype(np.int64) * values
        self.counts[name] = self.counts.get(name, np.zeros(len(OUTCOMES), np.int64)) + found

    def late(self, name: str, ms: F64) -> None:
        """Note how late rows were."""
        if len(ms):
            self.late_ms.setdefault(name, []).append(ms)

    def leave_out(self, why: str, number: int) -> None:
        """Count what was not compared."""
        if number:
            self.left_out[why] = self.left_out.get(why, 0) + number

    def wants_example(self, name: str, outcome: int) -> bool:
        """Whether there is room for one more example of a kind."""
        kind = OUTCOMES[outcome]
        return sum(example.name == name and example.outcome == kind for example in self.examples) < EXAMPLES

    @property
    def total(self) -> I64:
        """Values by outcome, shape (4,)."""
        return sum(self.counts.values(), np.zeros(len(OUTCOMES), np.int64))

    def lateness(self, name: str | None = None) -> F64:
        """All delays in ms, of one view or of all."""
        parts = [part for key, some in self.late_ms.items() if name in (None, key) for part in some]
        return np.concatenate([np.empty(0), *parts])


@dataclass(frozen=True, slots=True)
class SkewReport:
    """Both checks of one run."""

    project: str
    taken_at: str
    seconds: float
    comparisons: tuple[Comparison, ...]

    @property
    def total(self) -> I64:
        """Values by outcome over both checks, shape (4,)."""
        return sum((one.total for one in self.comparisons), np.zeros(len(OUTCOMES), np.int64))

    @property
    def compared(self) -> int:
        """How many values were compared."""
        return int(self.total.sum())

    @property
    def differs(self) -> bool:
        """Whether anything is wrong or missing."""
        return bool(self.total[WRONG] or self.total[MISSING])

    @property
    def empty(self) -> bool:
        """Whether a check had nothing to compare: that is no pass."""
        return any(not one.counts for one in self.comparisons)

    @property
    def passed(self) -> bool:
        """Whether every check compared something, and nothing is wrong or missing."""
        return not self.empty and not self.differs

    def lateness(self) -> F64:
        """All delays in ms."""
        return np.concatenate([np.empty(0), *(one.lateness() for one in self.comparisons)])


def quantile(values: F64, q: float) -> float:
    """Quantile of delays; 0 where nothing was late."""
    return float(np.quantile(values, q)) if len(values) else 0.0
