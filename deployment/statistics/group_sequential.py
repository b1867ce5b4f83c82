"""Boundaries for a few planned looks at growing data. PURE.

Lan and DeMets (1983): the share of alpha that may be spent by each look follows a spending function of how much of the
planned data is there, here the one that resembles O'Brien and Fleming (1979): hardly anything early, most of it at the
end. Boundaries come from the recursion of Armitage, McPherson and Rowe (1969), integrated on a grid (Jennison and
Turnbull 2000, chapter 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

#: Grid of the integration: standard deviations either way, and points.
_REACH: Final = 8.0
_POINTS: Final = 2_001


def spent(fraction: float, alpha: float) -> float:
    """Two-sided alpha that may be spent by the time a fraction of the planned data is there."""
    return float(4.0 * norm.sf(norm.isf(alpha / 4.0) / math.sqrt(min(max(fraction, 1e-9), 1.0))))


@lru_cache(maxsize=64)
def boundaries(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return |z| at which each look stops.

    Parameters
    ----------
    fractions
        Share of the planned data at each look, ascending, the last at most 1.
    alpha
        Two-sided.

    Raises
    ------
    ValueError
        If the fractions are not ascending within (0, 1].
    """
    if not fractions or any(b <= a for a, b in zip((0.0, *fractions), fractions, strict=False)) or fractions[-1] > 1:
        raise ValueError(f"looks must ascend within (0, 1], not {fractions}")
    # Density of the score z * sqrt(fraction) among the paths that have not stopped.
    grid = np.linspace(-_REACH, _REACH, _POINTS)
    step = grid[1] - grid[0]
    density: np.ndarray | None = None
    found: list[float] = []
    before, used = 0.0, 0.0
    for fraction in fractions:
        gain = math.sqrt(fraction - before)
        if density is None:
            score = norm.pdf(grid, scale=gain)
        else:
            score = np.convolve(density, norm.pdf(grid, scale=gain), mode="same") * step
        allowed = max(spent(fraction, alpha) - used, 1e-12)
        tail = np.concatenate([[0.0], np.cumsum((score[1:] + score[:-1]) / 2)]) * step

        def excess(bound: float, tail: np.ndarray = tail, allowed: float = allowed) -> float:
            below, above = np.interp([-bound, bound], grid, tail)
            return float(below + tail[-1] - above - allowed)

        bound = float(brentq(excess, 1e-6, _REACH - 1e-6)) if excess(_REACH - 1e-6) < 0 else _REACH
        found.append(bound / math.sqrt(fraction))
        density = np.where(np.abs(grid) < bound, score, 0.0)
        before, used = fraction, spent(fraction, alpha)
    return tuple(found)


def next_boundary(done: Sequence[float], fraction: float, alpha: float) -> float:
    """Return |z| at which a look at `fraction` stops, after looks at the fractions `done`."""
    return boundaries((*done, fraction), alpha)[-1]
