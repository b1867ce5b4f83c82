"""Ratios of sums over users, with intervals: lists of one user are alike, users are not. PURE.

Every figure here is a sum over a sum (clicks over items shown, gain over lists with a click, ...). What varies
independently is the user, so the variance is that of the linearised ratio between users (delta method; Deng et al.
2018, "Applying the delta method in metric analytics"). It needs six sums, however many users there are. A few users
who ask much count as fewer (Kish's effective number).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from scipy.special import stdtrit

#: A share lies in [0, 1], a quotient is positive, a mean is any number.
Kind = Literal["share", "quotient", "mean"]
LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Sums:
    """What is kept of the users' numerators y and denominators x.

    Attributes
    ----------
    users
        Those with x > 0.
    y, x, yy, xy, xx
        Sums over users of y, x, y squared, x times y, x squared.
    """

    users: int
    y: float
    x: float
    yy: float
    xy: float
    xx: float

    @property
    def value(self) -> float:
        """The ratio; NaN without a denominator."""
        return self.y / self.x if self.x else math.nan

    @property
    def effective(self) -> float:
        """How many users who ask alike this is worth (Kish 1965); NaN for fewer than two users."""
        return self.x**2 / self.xx if self.users > 1 and self.xx else math.nan

    @property
    def variance(self) -> float:
        """Of the ratio, between users; NaN for fewer than two.

        Examples
        --------
        >>> round(Sums(users=2, y=3.0, x=4.0, yy=5.0, xy=6.0, xx=8.0).variance, 4)
        0.0625
        """
        n = self.effective
        if not n > 1.0:
            return math.nan
        spread = self.yy - 2.0 * self.value * self.xy + self.value**2 * self.xx
        return max(spread, 0.0) / self.x**2 * n / (n - 1.0)

    def estimate(self, kind: Kind, level: float = LEVEL) -> Estimate:
        """Return the ratio with its interval, whose ends are NaN for fewer than two users."""
        low, high = self._interval(kind, level)
        return Estimate(self.value, low, high, math.sqrt(self.variance), self.users, self.y, self.x)

    def _interval(self, kind: Kind, level: float) -> tuple[float, float]:
        value, variance = self.value, self.variance
        if math.isnan(variance):
            return math.nan, math.nan
        z, error = float(stdtrit(self.effective - 1.0, 0.5 + level / 2.0)), math.sqrt(variance)
        if kind == "share":
            return _wilson(value, variance, self.effective, z)
        if kind == "quotient":
            if not value:  # nobody did it: as if it were rare, and each user one draw
                return 0.0, -math.log((1.0 - level) / 2.0) / self.x
            return value * math.exp(-z * error / value), value * math.exp(z * error / value)
        return value - z * error, value + z * error


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, and what it was made of.

    Attributes
    ----------
    low, high
        NaN where fewer than two users say anything, as is `error`.
    error
        Standard error.
    users
        Users behind it.
    numerator, denominator
        The two sums.
    """

    value: float
    low: float
    high: float
    error: float
    users: int
    numerator: float
    denominator: float

    def to_dict(self) -> dict[str, float | int | None]:
        """Return it as JSON has it: null for what is not known."""
        return {
            "value": finite(self.value), "low": finite(self.low), "high": finite(self.high),
            "error": finite(self.error), "users": self.users, "numerator": self.numerator,
            "denominator": self.denominator,
        }  # fmt: skip


def finite(value: float) -> float | None:
    """Return a number, None for NaN and infinity."""
    return value if math.isfinite(value) else None


def _wilson(value: float, variance: float, users: float, z: float) -> tuple[float, float]:
    """Wilson's interval with as many draws as would give this variance; a user each where all did the same."""
    p = min(max(value, 0.0), 1.0)
    draws = p * (1.0 - p) / variance if variance > 0.0 and 0.0 < p < 1.0 else users
    centre = (p + z * z / (2.0 * draws)) / (1.0 + z * z / draws)
    half = z / (1.0 + z * z / draws) * math.sqrt(p * (1.0 - p) / draws + z * z / (4.0 * draws * draws))
    return max(centre - half, 0.0), min(centre + half, 1.0)
