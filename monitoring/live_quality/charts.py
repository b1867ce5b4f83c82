"""SVG charts of estimates with their intervals; labels are user data: every text is escaped. PURE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

from monitoring.live_quality.report import Point

COLOURS: Final = ("blue", "orange", "violet", "green", "red", "grey")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 240, 52, 26, 10, 30
_TICKS: Final = 4


def chart(
    series: Mapping[str, Sequence[Point]],
    label: Callable[[float], str],
    *,
    title: str,
    diagonal: bool = False,
    x_ticks: Sequence[float] = (),
) -> str:
    """Return lines through estimates, each with a band of its intervals; the first series lies above the others.

    Parameters
    ----------
    series
        Points by name, with numbers for `at`.
    label
        What is written at a place of the horizontal axis.
    title
        For those who cannot see it.
    diagonal
        Whether both axes are shares and where they are equal is drawn.
    x_ticks
        Places of the horizontal axis that are labelled; none: evenly spaced ones.
    """
    points = [point for some in series.values() for point in some]
    if not points:
        return "<p class=none>Nothing to draw.</p>"
    xs = [float(point.at) for point in points]
    left, right = (0.0, max(xs)) if diagonal else (min(xs), max(xs))
    right = right if right > left else left + 1.0
    # The intervals of a handful of items must not flatten the rest.
    highs = sorted(p.estimate.high for p in points if math.isfinite(p.estimate.high)) or [0.0]
    top = _rounded_up(max(highs[int(0.85 * (len(highs) - 1))], *(p.estimate.value for p in points), 1e-4))

    def x(at: float) -> float:
        return _LEFT + (at - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1.0 - min(max(value / top, 0.0), 1.0)) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{escape(title)}'>"]
    for n in range(_TICKS + 1):
        value = top * n / _TICKS
        parts.append(
            f"<line class=grid x1={_LEFT} x2={_WIDTH - _RIGHT} y1={y(value):.1f} y2={y(value):.1f} />"
            f"<text class=end x={_LEFT - 6} y={y(value) + 4:.1f}>{100 * value:.3g}%</text>"
        )
    ticks = x_ticks or [left + (right - left) * n / _TICKS for n in range(_TICKS + 1)]
    parts += [f"<text class=mid x={x(at):.1f} y={_HEIGHT - 10}>{escape(label(at))}</text>" for at in ticks]
    if diagonal:
        end = min(right, top)
        parts.append(f"<line class=diagonal x1={x(0):.1f} y1={y(0):.1f} x2={x(end):.1f} y2={y(end):.1f} />")
    for n, some in reversed(list(enumerate(series.values()))):
        parts += _line(some, COLOURS[n % len(COLOURS)], x, y)
    return "".join(parts) + f"</svg>{_legend(series)}"


def _line(points: Sequence[Point], colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    known = [point for point in points if math.isfinite(point.estimate.low)]
    above = [f"{x(float(point.at)):.1f},{y(point.estimate.high):.1f}" for point in known]
    below = [f"{x(float(point.at)):.1f},{y(point.estimate.low):.1f}" for point in reversed(known)]
    places = [f"{x(float(point.at)):.1f},{y(point.estimate.value):.1f}" for point in points]
    parts = [
        f"<polygon class='band {colour}' points='{' '.join([*above, *below])}' />",
        f"<polyline class='line {colour}' points='{' '.join(places)}' />",
    ]
    for point in points:
        one = point.estimate
        told = f"{100 * one.value:.2f}% of {one.denominator:,.0f}"
        if math.isfinite(one.low):
            told += f", 95% [{100 * one.low:.2f}%, {100 * one.high:.2f}%]"
        at = f"cx={x(float(point.at)):.1f} cy={y(one.value):.1f}"
        parts.append(f"<circle class={colour} {at} r=2.5><title>{told}</title></circle>")
    return parts


def _legend(series: Mapping[str, Sequence[Point]]) -> str:
    names = (
        f"<span><i class={COLOURS[n % len(COLOURS)]}></i>{escape(name)}</span>" for n, name in enumerate(series)
    )  # fmt: skip
    return f"<p class=legend>{''.join(names)}</p>"


def _rounded_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0) if step * scale >= value)
