"""What another policy would have earned, by a log of random choices: IPS, SNIPS, DR, and the weights' health. PURE.

Every estimator is a ratio of two means over rounds, so that one bootstrap serves them all (`intervals.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

#: Sums of probabilities are 1 up to rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Logged:
    """Rounds of a log, and what another policy, the target, would have done in them.

    Attributes
    ----------
    reward
        What the action taken brought, 0 to 1, shape (n,).
    propensity
        Probability with which the logging policy took that action, above 0, shape (n,).
    target
        Probability with which the target takes the same action in the same context, shape (n,).
    unit
        Who the round belongs to: rounds of one user are not independent, shape (n,).
    unsupported
        Probability that the target takes an action the logging policy never takes in that context, shape (n,).
    predicted
        Reward model's value of the action taken, shape (n,); None: there is no model, and no DR.
    expected
        Reward model's value of the target's choice: mean over its actions, shape (n,).

    Raises
    ------
    BadInputError
        If shapes differ, a propensity is not in (0, 1], or a target is no probability.
    """

    reward: F64
    propensity: F64
    target: F64
    unit: I64
    unsupported: F64
    predicted: F64 | None = None
    expected: F64 | None = None

    def __post_init__(self) -> None:
        columns = [self.reward, self.propensity, self.target, self.unit, self.unsupported]
        columns += [one for one in (self.predicted, self.expected) if one is not None]
        if {one.shape for one in columns} != {(len(self.reward),)} or (self.predicted is None) != (
            self.expected is None
        ):
            raise BadInputError("reward, propensity, target, unit and the model's two columns must be of one length")
        if not ((self.propensity > 0) & (self.propensity <= 1 + _ROUNDING)).all():
            raise BadInputError("the log has propensities that are not above 0 and at most 1: what was shown has some")
        for name, values in (("target", self.target), ("unsupported", self.unsupported)):
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise BadInputError(f"{name} has values that are no probabilities")

    def __len__(self) -> int:
        """Return the number of rounds."""
        return len(self.reward)

    @property
    def weight(self) -> F64:
        """Importance weights, shape (n,)."""
        return np.asarray(self.target / self.propensity)


@dataclass(frozen=True, eq=False)
class Terms:
    """An estimator: mean of `above` over mean of `below`, each shape (n,)."""

    above: F64
    below: F64

    @property
    def value(self) -> float:
        """The estimate; NaN without weight."""
        below = float(self.below.sum())
        return float(self.above.sum()) / below if below > 0 else math.nan


def clip_at(n: int) -> float:
    """Return the largest weight: the square root of the number of rounds (Ionides 2008, truncated importance sampling).

    Variance stays bounded, and the bias goes to 0 with more rounds.
    """
    return math.sqrt(n)


def clipped(weight: F64, at: float) -> F64:
    """Cut weights off at `at`."""
    return np.minimum(weight, at)


def ips(reward: F64, weight: F64) -> Terms:
    """Inverse propensity scoring (Horvitz and Thompson 1952): unbiased where weights are not clipped.

    Examples
    --------
    >>> ips(np.array([1.0, 0.0]), np.array([0.5, 1.5])).value
    0.25
    """
    return Terms(weight * reward, np.ones(len(reward)))


def snips(reward: F64, weight: F64) -> Terms:
    """Self-normalised IPS (Swaminathan and Joachims 2015): a weighted mean, so it stays within the rewards seen.

    Examples
    --------
    >>> snips(np.array([1.0, 0.0]), np.array([1.0, 3.0])).value
    0.25
    """
    return Terms(weight * reward, weight)


def dr(reward: F64, weight: F64, predicted: F64, expected: F64) -> Terms:
    """Doubly robust (Dudík, Langford and Li 2011): the model's value, corrected by IPS of its errors.

    Unbiased if either the propensities or the model are right; of less variance than IPS as far as the model is good.

    Examples
    --------
    >>> dr(np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.array([0.5, 0.5]), np.array([0.25, 0.25])).value
    0.75
    """
    return Terms(expected + weight * (reward - predicted), np.ones(len(reward)))


def effective_size(weight: F64) -> float:
    """Return how many rounds of the target's own the log is worth (Kong 1992): (sum w)^2 / sum w^2.

    Examples
    --------
    >>> effective_size(np.array([1.0, 1.0, 1.0])), effective_size(np.array([9.0, 0.0, 0.0]))
    (3.0, 1.0)
    """
    squares = float(weight @ weight)
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


def clipped_mass(weight: F64, at: float) -> float:
    """Return the share of the weight that clipping leaves out, 0 to 1.

    With rewards of 0 to 1 clipped IPS is too low by so much at most, in expectation.

    Examples
    --------
    >>> clipped_mass(np.array([1.0, 5.0]), 2.0)
    0.5
    """
    total = float(weight.sum())
    return float((weight - clipped(weight, at)).sum()) / total if total > 0 else 0.0


def mean_weight_error(weight: F64, unsupported: F64) -> float:
    """Return by how many standard errors the mean weight differs from what it must be: 1 less what has no support.

    Weights of a log whose propensities are those of the policy that wrote it have that mean (Li et al. 2011).
    """
    if not len(weight):
        return 0.0
    spread = weight + unsupported
    error = float(spread.std()) / math.sqrt(len(weight))
    gap = float(spread.mean()) - 1.0
    return gap / error if error > 0 else (0.0 if abs(gap) < _ROUNDING else math.copysign(math.inf, gap))


def folds_of(unit: I64, folds: int) -> I64:
    """Deal units out to folds, all rounds of a unit to one, shape (n,)."""
    _, place = np.unique(unit, return_inverse=True)
    return np.asarray(place % folds, np.int64)


def cross_fitted_rates(action: I64, reward: F64, fold: I64, n_actions: int, strength: float = 50.0) -> F64:
    """Return mean rewards of actions, each fold's learned from the others, so that no round is predicted by itself.

    Few rounds of an action count little: `strength` rounds of the mean reward are added to each.

    Returns
    -------
    ndarray
        Shape (folds, n_actions).
    """
    out = np.empty((int(fold.max(initial=0)) + 1, n_actions))
    for one in range(len(out)):
        others = fold != one
        mean = float(reward[others].mean()) if others.any() else 0.0
        taken = np.bincount(action[others], minlength=n_actions)
        brought = np.bincount(action[others], weights=reward[others], minlength=n_actions)
        out[one] = (brought + strength * mean) / (taken + strength)
    return out
