"""The contract of fitting a candidate generator: settings that turn the past into what serving loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from serving.candidates.contract import CandidateGenerator
from serving.cascade.items import ItemTable
from training.split import Log

Fitted = TypeVar("Fitted", bound=CandidateGenerator)
Fitted_co = TypeVar("Fitted_co", bound=CandidateGenerator, covariant=True)


class FitOf(Protocol[Fitted_co]):
    """The part of a `GeneratorFit` that says which class comes of it."""

    def fit(self, past: Past) -> Fitted_co:
        """Fit on the past."""
        ...


@dataclass(frozen=True)
class Past:
    """What a generator may learn from: nothing that was known only at or after `now_us`.

    Attributes
    ----------
    log
        Events known before `now_us`; later ones are refused.
    table
        Items with their state and catalogue entry as of `now_us`.
    """

    log: Log
    table: ItemTable
    now_us: int
    seed: int
    threads: int
    _fitted: dict[FitOf[CandidateGenerator], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.log.time_us) and int(self.log.time_us.max()) >= self.now_us:
            raise ValueError("the log holds events of `now_us` or later: cut it with Log.before(now_us)")

    def fit(self, one: FitOf[Fitted]) -> Fitted:
        """Fit a generator on this past, once: one that builds on another (`NewItems` on `Als`) shares its work."""
        if one not in self._fitted:
            self._fitted[one] = one.fit(self)
        fitted: Fitted = self._fitted[one]
        return fitted


class GeneratorFit(Protocol):
    """Settings of one generator of the line-up; equal settings, past and seed give an equal generator."""

    @property
    def name(self) -> str:
        """Source tag in answers and prefix of the retrieval features; distinct within a line-up."""
        ...

    @property
    def quota(self) -> int:
        """How many items it contributes to the candidates at most; 0: it only scores those of others."""
        ...

    def fit(self, past: Past) -> CandidateGenerator:
        """Fit on the past."""
        ...


@dataclass(frozen=True)
class Ready:
    """A generator that has nothing to fit: it reads the live item table and the user's rows."""

    generator: CandidateGenerator
    quota: int

    @property
    def name(self) -> str:
        """Name of the generator."""
        return self.generator.name

    def fit(self, past: Past) -> CandidateGenerator:
        """Return the generator as it is."""
        return self.generator
