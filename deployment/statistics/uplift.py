"""Clicks of two groups of users compared: relative uplift with an interval, and how many users a test takes. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

F64 = npt.NDArray[np.float64]

_Z95: Final = float(norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Rate:
    """Clicks per item shown of a group of users.

    Attributes
    ----------
    value, low, high
        The rate with its 95 % interval; users are independent, what one user clicks is not.
    error
        Standard error of it.
    users, shown
        Users, and items shown to each on average.
    design_effect
        By what its variance exceeds that of as many independent items (Kish 1965).
    """

    value: float
    low: float
    high: float
    error: float
    users: int
    shown: float
    design_effect: float

    @property
    def correlation(self) -> float:
        """Correlation of two items shown to one user, by the design effect."""
        return (self.design_effect - 1.0) / (self.shown - 1.0) if self.shown > 1.0 else 0.0


def click_rate(clicks: F64, shown: F64) -> Rate:
    """Return the rate of a group.

    Parameters
    ----------
    clicks, shown
        Of each user, shape (users,).

    Examples
    --------
    >>> rate = click_rate(np.array([1.0, 0.0, 2.0, 1.0]), np.full(4, 10.0))
    >>> rate.value, round(rate.error, 4), round(rate.design_effect, 3)
    (0.1, 0.0408, 0.741)
    """
    n, total = len(clicks), float(shown.sum())
    value = float(clicks.sum()) / total
    # A ratio of means (Cochran 1977): linearised, users as clusters.
    error = math.sqrt(n / (n - 1) * float(((clicks - value * shown) ** 2).sum())) / total
    alone = value * (1.0 - value) / total
    effect = error**2 / alone if alone > 0 else 1.0
    return Rate(value, value - _Z95 * error, value + _Z95 * error, error, n, total / n, effect)


@dataclass(frozen=True, slots=True)
class Uplift:
    """By what share one rate exceeds another, with its 95 % interval."""

    value: float
    low: float
    high: float


def relative_uplift(pairs: Sequence[tuple[Rate, Rate]]) -> Uplift:
    """Return the uplift of treated over control, the mean of strata of equal weight, by the delta method on logarithms.

    Parameters
    ----------
    pairs
        Treated and control of each stratum (a shop); all rates above 0.

    Examples
    --------
    >>> one = Rate(0.06, 0.05, 0.07, 0.003, 1000, 10.0, 1.0)
    >>> other = Rate(0.05, 0.04, 0.06, 0.0025, 1000, 10.0, 1.0)
    >>> found = relative_uplift([(one, other)])
    >>> round(found.value, 4), round(found.low, 3), round(found.high, 3)
    (0.2, 0.045, 0.378)
    """
    logs = [math.log(treated.value / control.value) for treated, control in pairs]
    variance = sum((one.error / one.value) ** 2 for pair in pairs for one in pair) / len(pairs) ** 2
    middle, half = sum(logs) / len(logs), _Z95 * math.sqrt(variance)
    return Uplift(math.expm1(middle), math.expm1(middle - half), math.expm1(middle + half))


def users_per_arm(
    rate: float, uplift: float, *, shown: float, correlation: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Return the users per arm by which an A/B test finds a relative uplift of a click rate.

    Parameters
    ----------
    rate
        Clicks per item shown of the control, in (0, 1).
    uplift
        Relative: 0.1 is a tenth more.
    shown
        Items shown to a user in the test.
    correlation
        Of two items shown to one user (`Rate.correlation`).
    alpha, power
        Two-sided error, and how often the uplift is found.

    Examples
    --------
    >>> users_per_arm(0.03, 0.1, shown=1, correlation=0.0), users_per_arm(0.03, 0.1, shown=100, correlation=0.01)
    (53208, 1059)
    """
    other = rate * (1.0 + uplift)
    effect = max(1.0 + (shown - 1.0) * correlation, 0.0)
    spread = (rate * (1.0 - rate) + other * (1.0 - other)) * effect / shown
    z = float(norm.ppf(1.0 - alpha / 2.0) + norm.ppf(power))
    return max(math.ceil(z**2 * spread / (other - rate) ** 2), 2)
