"""Optuna adapter: the study of a search, kept in SQLite, so that the same command goes on where it was stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_repo.errors import BadInputError, ConflictError
from training.search import F64, Judge, Step
from training.search_space import Dimension, Value, defaults
from training.settings_file import configured, nested
from training.train import TrainConfig

#: So many trials end before the first may be pruned: a median of fewer says little.
WARM_UP: Final = 4
#: Fewer whole trials say nothing of what the differences between them came from.
_LEAST_FOR_IMPORTANCE: Final = 8
_RESAMPLES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends: at so many trials of the study, or after so many minutes of this run."""

    trials: int
    minutes: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration that was judged.

    Attributes
    ----------
    values
        Mean nDCG@10 of each cut it was judged at, the latest cut first; fewer than all where it was pruned.
    """

    number: int
    params: Mapping[str, Value]
    values: tuple[float, ...]
    pruned: bool
    seconds: float

    @property
    def value(self) -> float:
        """Mean over the cuts."""
        return float(np.mean(self.values))


@dataclass(frozen=True, slots=True)
class Found:
    """What a study knows.

    Attributes
    ----------
    gain
        Best trial over the first, which has the defaults: mean paired difference and its 95 % interval.
    importance
        How much of the differences between trials each dimension explains; empty where the trials are too few.
    """

    trials: tuple[Trial, ...]
    best: Trial
    gain: tuple[float, float, float]
    importance: Mapping[str, float]


class OutOfTimeError(Exception):
    """The minutes are over; what the trial was at is not counted."""


class SearchStudy:
    """A study under a directory, for one process at a time.

    Parameters
    ----------
    identity
        What makes trials comparable (data, cuts, windows, users, seed): with another one another study begins.

    Raises
    ------
    BadInputError
        If Optuna is not installed.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any], space: Mapping[str, Dimension], seed: int) -> None:
        optuna = _optuna()
        text = json.dumps([identity, {name: repr(one) for name, one in space.items()}], sort_keys=True)
        self.name: Final = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.directory: Final = directory / self.name
        self.directory.mkdir(parents=True, exist_ok=True)
        self._space, self._seed = space, seed
        self._study = optuna.create_study(
            storage=f"sqlite:///{(directory / 'study.db').resolve()}",
            study_name=self.name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP),
        )
        # A study that goes on draws otherwise than it began: equal seeds would repeat the first draws.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(self._study.get_trials(deepcopy=False)), n_startup_trials=8
        )

    def trials(self) -> tuple[Trial, ...]:
        """Return what was judged so far, in order."""
        found = []
        for one in self._study.get_trials(deepcopy=False):
            if one.state.name in ("COMPLETE", "PRUNED"):
                values = tuple(float(value) for value in one.user_attrs["values"])
                took = (one.datetime_complete - one.datetime_start).total_seconds()
                found.append(Trial(one.number, dict(one.params), values, one.state.name == "PRUNED", took))
        return tuple(found)

    def note(self, key: str, value: str | None = None) -> str | None:
        """Read something remembered with the study, or remember it."""
        if value is not None:
            self._study.set_user_attr(key, value)
        kept = self._study.user_attrs.get(key)
        return None if kept is None else str(kept)

    def run(
        self,
        judge: Judge,
        config: TrainConfig,
        budget: Budget,
        on_trial: Callable[[Trial], None],
        on_step: Step = lambda what: None,
    ) -> None:
        """Judge configurations until the budget is used up.

        A trial that was cut short by the budget, an interrupt or a kill is tried again, from its beginning, by the
        next run; it does not count.

        Raises
        ------
        ConflictError
            If another process works on the study.
        """
        ends = None if budget.minutes is None else time.monotonic() + 60.0 * budget.minutes

        def step(what: str) -> None:
            if ends is not None and time.monotonic() >= ends:
                raise OutOfTimeError
            on_step(what)

        with self._alone():
            self._take_up()
            while len(self.trials()) < budget.trials:
                try:
                    on_trial(self._one(judge, config, step))
                except OutOfTimeError:
                    return

    def _one(self, judge: Judge, config: TrainConfig, step: Step) -> Trial:
        step("next trial")
        trial = self._study.ask()
        number = trial.number
        try:
            flat = {name: one.suggest(trial, name) for name, one in self._space.items()}
            per_cut: list[F64] = []
            means: list[float] = []
            for per_user in judge.judge(configured(config, nested(flat)), step):
                per_cut.append(per_user)
                means.append(float(per_user.mean()))
                trial.report(float(np.mean(means)), len(means))
                if len(means) < len(judge.cuts) and trial.should_prune():
                    break
            trial.set_user_attr("values", means)
            kept: dict[str, Any] = {f"cut_{i}": values for i, values in enumerate(per_cut)}
            np.savez(self._file(number), **kept)
            whole = len(means) == len(judge.cuts)
            self._study.tell(trial, float(np.mean(means)) if whole else None, None if whole else _state("PRUNED"))
        except BaseException:  # also an interrupt: nothing may stay behind as running
            self._again(number)
            raise
        return next(one for one in self.trials() if one.number == number)

    def found(self) -> Found:
        """Return the best trial so far, and what the study says of it.

        Raises
        ------
        BadInputError
            If no trial was judged at all cuts yet.
        """
        trials = self.trials()
        whole = [one for one in trials if not one.pruned]
        if not whole:
            raise BadInputError("no trial has ended yet: give the search more minutes, or fewer users or windows")
        best = max(whole, key=lambda one: (one.value, -one.number))
        first = whole[0]  # the defaults, which nothing could prune
        enough = len(whole) >= _LEAST_FOR_IMPORTANCE
        return Found(trials, best, self._gain(best, first), self._importance() if enough else {})

    def _gain(self, best: Trial, first: Trial) -> tuple[float, float, float]:
        with np.load(self._file(best.number)) as a, np.load(self._file(first.number)) as b:
            return mean_over_cuts([a[name] - b[name] for name in a.files], self._seed)

    def _importance(self) -> dict[str, float]:
        optuna = _optuna()
        try:
            return {name: float(share) for name, share in optuna.importance.get_param_importances(self._study).items()}
        except (ValueError, RuntimeError):  # all trials of one value
            return {}

    def _take_up(self) -> None:
        """Put back what a killed run was at; begin a new study with the defaults."""
        trials = self._study.get_trials(deepcopy=False)
        if not trials:
            self._study.enqueue_trial(defaults(self._space))
        for one in trials:
            if one.state.name == "RUNNING":
                self._again(one.number)

    def _again(self, number: int) -> None:
        params = self._study.get_trials(deepcopy=False)[number].params
        self._study.tell(number, state=_state("FAIL"))
        if params:
            self._study.enqueue_trial(params)

    def _file(self, number: int) -> Path:
        return self.directory / f"trial-{number:05d}.npz"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second run of the study at the same time; the system frees the lock if we die."""
        with (self.directory / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(f"another search works on {self.directory}; wait until it has ended") from None
            yield


def mean_over_cuts(per_cut: list[F64], seed: int) -> tuple[float, float, float]:
    """Mean of the cuts' means, with a 95 % bootstrap interval: users are drawn anew within each cut.

    Examples
    --------
    >>> mean, low, high = mean_over_cuts([np.array([0.0, 2.0]), np.array([5.0])], seed=1)
    >>> mean, low, high
    (3.0, 2.5, 3.5)
    """
    rng = np.random.default_rng(seed)
    drawn = [one[rng.integers(0, len(one), (_RESAMPLES, len(one)))].mean(axis=1) for one in per_cut]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return float(np.mean([one.mean() for one in per_cut])), float(low), float(high)


def _state(name: str) -> Any:
    return _optuna().trial.TrialState[name]


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise BadInputError(
            "`larder search` needs Optuna, which is not installed; install the extra: pip install 'larder[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
