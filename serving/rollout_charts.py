"""Small SVG charts of a rollout: intervals against a margin, and how they narrowed. PURE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from serving.rollout_status import Point, TestStatus

_WIDTH, _HEIGHT = 210, 26
_CHART_WIDTH, _CHART_HEIGHT, _LEFT, _BOTTOM = 340, 130, 46, 18
#: A chart shows so many times the margin: at first, intervals are as wide as can be and would hide everything.
_MARGINS: Final = 4.0


def interval_bar(test: TestStatus, *, low_is_bad: bool) -> str:
    """Return an interval on a line, with 0 and the margin."""
    if test.low is None or test.high is None:
        return ""
    margin = abs(test.margin or 0.0)
    reach = _reach(margin, [test.value] if margin else [test.low, test.high])

    def x(value: float) -> float:
        return round(_WIDTH / 2 + min(max(value / reach, -1.0), 1.0) * (_WIDTH / 2 - 6), 1)

    mid, at = _HEIGHT / 2, x(-margin if low_is_bad else margin)
    value = "" if test.value is None else f"<circle class=point cx={x(test.value)} cy={mid} r=4.5 />"
    return (
        f"<svg width={_WIDTH} height={_HEIGHT} role=img><line class=axis x1=0 x2={_WIDTH} y1={mid} y2={mid} />"
        f"<line class=zero x1={x(0)} x2={x(0)} y1=3 y2={_HEIGHT - 3} />"
        f"<line class=range x1={x(test.low)} x2={x(test.high)} y1={mid} y2={mid} />"
        f"<line class=margin x1={at} x2={at} y1=1 y2={_HEIGHT - 1} />{value}</svg>"
    )


def share_bar(value: float) -> str:
    """Return a share as a bar."""
    width = round(min(max(value, 0.0), 1.0) * 140, 1)
    return f"<svg width=142 height=14 role=img><rect class=bar x=0 y=2 width={width} height=10 rx=2 /></svg>"


def timeline(series: Sequence[Point], name: str, margin: float | None) -> str:
    """Return how the difference of one test and its interval went, with lines where the weight changed.

    Parameters
    ----------
    margin
        Where the dashed line is; None for no line.
    """
    points = [(n, point.weight, *point.tests[name]) for n, point in enumerate(series) if name in point.tests]
    shown = [value for _, _, *values in points for value in (values[:1] if margin else values)]
    reach = _reach(abs(margin or 0.0), shown)
    last = max(len(series) - 1, 1)

    def x(n: int) -> float:
        return round(_LEFT + n / last * (_CHART_WIDTH - _LEFT - 6), 1)

    def y(value: float) -> float:
        middle = (_CHART_HEIGHT - _BOTTOM) / 2
        return round(middle - min(max(value / reach, -1.0), 1.0) * (middle - 6), 1)

    parts = [f"<svg width='100%' viewBox='0 0 {_CHART_WIDTH} {_CHART_HEIGHT}' role=img>"]
    parts += _band([(x(n), y(low), y(high)) for n, _, _, low, high in points if low is not None and high is not None])
    parts += _steps(series, x)
    for value, kind in ((0.0, "zero"), (margin, "margin")):
        if value is not None:
            parts.append(f"<line class={kind} x1={_LEFT} x2={_CHART_WIDTH} y1={y(value)} y2={y(value)} />")
            parts.append(f"<text x={_LEFT - 6} y={y(value) + 4} text-anchor=end>{100 * value:+.2g}</text>")
    line = " ".join(f"{x(n)},{y(value)}" for n, _, value, _, _ in points if value is not None)
    parts.append(f"<polyline class=value points='{line}' /></svg>")
    return "".join(parts)


def _band(edges: Sequence[tuple[float, float, float]]) -> list[str]:
    if not edges:
        return []
    upper = [f"{x},{high}" for x, _, high in edges]
    lower = [f"{x},{low}" for x, low, _ in reversed(edges)]
    return [f"<polygon class=band points='{' '.join([*upper, *lower])}' />"]


def _steps(series: Sequence[Point], x: Callable[[int], float]) -> list[str]:
    """Return a line and a label at every change of the weight."""
    parts, before = [], -1
    for n, point in enumerate(series):
        if point.weight != before:
            at = x(n)
            parts.append(f"<line class=step x1={at} x2={at} y1=0 y2={_CHART_HEIGHT - _BOTTOM} />")
            parts.append(f"<text x={at + 3} y={_CHART_HEIGHT - 5}>{point.weight / 100:g} %</text>")
            before = point.weight
    return parts


def _reach(margin: float, values: Sequence[float | None]) -> float:
    """Return the largest value shown."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return max(_MARGINS * margin, 1.3 * largest, 1e-4)
