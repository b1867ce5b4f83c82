"""Small SVG charts over time: lines, shares that fill the chart, and stretches. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

#: One value per interval, oldest first; None where there is none.
Series = Sequence[float | None]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 340, 120, 46, 16, 6
_COLOURS: Final = ("blue", "orange", "violet", "red")


def line_chart(series: Mapping[str, Series], unit: str, *, limit: float | None = None, at_least: float = 0.0) -> str:
    """Return lines over time, with a legend.

    Parameters
    ----------
    limit
        Where a dashed line is, once values come near it; None for no line.
    at_least
        The vertical axis reaches at least so far.
    """
    largest = max([value for values in series.values() for value in values if value is not None], default=0.0)
    reach = _rounded_up(max(largest, at_least) or 1.0)
    parts = _frame(f"{reach:g}{unit}")
    if limit is not None and limit <= reach:
        y = _y(limit / reach)
        parts.append(f"<line class=margin x1={_LEFT} x2={_WIDTH} y1={y} y2={y} />")
    for colour, values in zip(_COLOURS, series.values(), strict=False):
        for run in _runs(values):
            points = " ".join(f"{_x(n, len(values))},{_y(value / reach)}" for n, value in run)
            parts.append(f"<polyline class='line {colour}' points='{points}' />")
    return _drawn(parts, dict(zip(series, _COLOURS, strict=False)))


def share_chart(series: Mapping[str, Series], colours: Mapping[str, str]) -> str:
    """Return what each series has of the sum of all, filling the chart from below; the first is the lowest.

    Parameters
    ----------
    colours
        Class of each series.
    """
    length = max((len(values) for values in series.values()), default=0)
    sums = [sum(values[n] or 0.0 for values in series.values()) for n in range(length)]
    parts = _frame("100%")
    floor = [0.0] * length
    for name, values in series.items():
        top = [
            low + (value or 0.0) / total if total else 0.0
            for low, value, total in zip(floor, values, sums, strict=True)
        ]
        for start, end in _stretches([total > 0 for total in sums]):
            where = [*range(start, end), end - 1]  # to the end of the last one, so that one alone is seen too
            across = [*(_x(n, length) for n in range(start, end)), _x(end - 0.5, length)]
            upper = [f"{x},{_y(top[n])}" for x, n in zip(across, where, strict=True)]
            lower = [f"{x},{_y(floor[n])}" for x, n in zip(across, where, strict=True)]
            parts.append(f"<polygon class='area {colours[name]}' points='{' '.join([*upper, *reversed(lower)])}' />")
        floor = top
    return _drawn(parts, {name: colours[name] for name in series})


def stretch_chart(series: Mapping[str, Sequence[bool]]) -> str:
    """Return a bar for each series, marked where it is true."""
    height, length = 22, max((len(values) for values in series.values()), default=0)
    total = height * len(series) + _BOTTOM
    parts = [f"<svg width='100%' viewBox='0 0 {_WIDTH} {total}' role=img>"]
    for row, (name, values) in enumerate(series.items()):
        y = row * height + 4
        parts.append(f"<rect class=calm x={_LEFT} y={y} width={_WIDTH - _LEFT} height=12 rx=2 />")
        parts.append(f"<text x={_LEFT - 6} y={y + 10} text-anchor=end>{escape(name)}</text>")
        for start, end in _stretches(values):
            x = _x(start - 0.5, length)
            width = round(_x(end - 0.5, length) - x, 1)
            parts.append(f"<rect class=alarm x={x} y={y} width={max(width, 1.5)} height=12 />")
    parts.append(_times(total))
    return "".join([*parts, "</svg>"])


def _frame(top: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    parts = [f"<svg width='100%' viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img>"]
    parts += [f"<line class=axis x1={_LEFT} x2={_WIDTH} y1={y} y2={y} />" for y in (_TOP, (_TOP + base) / 2, base)]
    parts.append(f"<text x={_LEFT - 6} y={_TOP + 6} text-anchor=end>{escape(top)}</text>")
    parts.append(f"<text x={_LEFT - 6} y={base} text-anchor=end>0</text>")
    parts.append(_times(_HEIGHT))
    return parts


def _times(height: int) -> str:
    y = height - 3
    return f"<text x={_LEFT} y={y}>10 min ago</text><text x={_WIDTH - 2} y={y} text-anchor=end>now</text>"


def _drawn(parts: list[str], colours: Mapping[str, str]) -> str:
    keys = [f"<span><i class={colour}></i>{escape(name)}</span>" for name, colour in colours.items()]
    return "".join([*parts, "</svg><p class=legend>", *keys, "</p>"])


def _x(n: float, length: int) -> float:
    last = max(length - 1, 1)
    return round(_LEFT + min(max(n / last, 0.0), 1.0) * (_WIDTH - _LEFT - 2), 1)


def _y(share: float) -> float:
    return round(_TOP + (1.0 - min(max(share, 0.0), 1.0)) * (_HEIGHT - _BOTTOM - _TOP), 1)


def _runs(values: Series) -> list[list[tuple[int, float]]]:
    """Return the pieces of a line between its gaps."""
    runs: list[list[tuple[int, float]]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((n, value))
    # A point alone has no length; it is drawn as a short line.
    return [run if len(run) > 1 else [(run[0][0], run[0][1]), (run[0][0] + 1, run[0][1])] for run in runs if run]


def _stretches(values: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where values are true: first, and the one after the last."""
    found: list[tuple[int, int]] = []
    for n, value in enumerate(values):
        if value and found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        elif value:
            found.append((n, n + 1))
    return found


def _rounded_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ..."""
    scale = 1.0
    while scale < value:
        scale *= 10
    while scale / 10 >= value:
        scale /= 10
    return next(step for step in (scale / 5, scale / 2, scale) if step >= value * (1 - 1e-9))
