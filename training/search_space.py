"""What a search may set: dimensions by the dotted names of a settings file. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

Value = bool | int | float | str


class Suggests(Protocol):
    """What proposes values: a trial of a study."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number of a range."""
        ...

    def suggest_categorical(self, name: str, choices: tuple[Value, ...]) -> Value:
        """Return one of a few values."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values.

    Settings of generators are choices, not ranges: each value is fitted once per cut and kept.
    """

    values: tuple[Value, ...]
    default: Value

    def suggest(self, trial: Suggests, name: str) -> Value:
        """Ask a trial for a value."""
        return trial.suggest_categorical(name, self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two, on a logarithmic scale."""

    low: float
    high: float
    default: float

    def suggest(self, trial: Suggests, name: str) -> Value:
        """Ask a trial for a value."""
        return trial.suggest_float(name, self.low, self.high, log=True)


Dimension = Choice | Range

#: Defaults are those of `larder train`: the first trial of a study tries them.
SPACE: Final[Mapping[str, Dimension]] = {
    "fusion": Choice(("learned", "reciprocal"), "learned"),
    "sampling.hard": Choice((40, 80, 160), 80),
    "ranker.learning_rate": Range(0.03, 0.2, 0.08),
    "ranker.depth": Choice((4, 5, 6, 7), 6),
    "ranker.l2": Range(1.0, 30.0, 5.0),
    "ranker.weight_power": Choice((0.25, 0.5, 0.75), 0.5),
    "generators.history.half_life_days": Choice((60.0, 120.0, 240.0), 120.0),
    "generators.history.popularity_floor": Choice((0.05, 0.2, 1.0), 0.05),
    "generators.history_30d": Choice((True, False), True),
    "generators.popular_1d": Choice((True, False), True),
    "generators.als.factors": Choice((32, 64, 128), 64),
    "generators.als.half_life_days": Choice((90.0, 180.0), 180.0),
    "generators.als_60d": Choice((True, False), True),
    "generators.similar.half_life_days": Choice((30.0, 60.0), 60.0),
    "generators.ease.regularization": Choice((250.0, 500.0, 1000.0), 500.0),
    "generators.next.regularization": Choice((750.0, 1500.0, 3000.0), 1500.0),
    "generators.next.half_life_days": Choice((60.0, 120.0), 120.0),
}


def defaults(space: Mapping[str, Dimension]) -> dict[str, Value]:
    """Return the default of every dimension."""
    return {name: one.default for name, one in space.items()}
