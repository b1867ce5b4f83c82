"""The report's pictures as PNG. Names come from the data: they are drawn as they stand, never as mathematics."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from larder.describing.figures import PRICE_BINS, Description, Lengths, share

_BLUE, _GREY, _ORANGE = "#2b6cb0", "#a0aec0", "#dd6b20"
_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_STYLE: Final[Any] = {"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_MAX_NAME: Final = 32


def pictures(data: Description) -> dict[str, bytes]:
    """Draw everything there is something to draw of.

    Returns
    -------
    dict
        Title of the picture to its PNG, in the order of the report.
    """
    drawn: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
        "Activity over time": (lambda f: _activity(f, data), (9, 2.8)),
        "When people come": (lambda f: _clock(f, data), (9, 2.6)),
        "New users and items": (lambda f: _new(f, data), (9, 2.8)),
        "How long histories are": (lambda f: _histories(f, data), (9, 2.8)),
    }
    if sum(count > 0 for count in data.funnel.values()) > 1:
        drawn["From view to purchase"] = (lambda f: _funnel(f, data), (9, 2.2))
    if data.categories:
        drawn["Categories"] = (lambda f: _categories(f, data), (9, 0.8 + 0.25 * len(data.categories)))
    if data.prices:
        drawn["Prices"] = (lambda f: _prices(f, data), (9, 2.6))
    if data.quarantine:
        drawn["Quarantine"] = (lambda f: _quarantine(f, data), (9, 0.8 + 0.25 * len(data.quarantine)))
    return {title: _png(draw, size) for title, (draw, size) in drawn.items()}


def _png(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the font does not have every script
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _activity(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    starts: Any = [period.start for period in data.periods]
    width = {"day": 0.9, "week": 6.3, "month": 27.0}[data.step]
    axis.bar(starts, [period.events for period in data.periods], width=width, align="edge", color=_BLUE)
    axis.set_title(f"events by {data.step}", loc="left")
    axis.yaxis.set_major_formatter(_thousands())


def _clock(figure: Figure, data: Description) -> None:
    hours, days = figure.subplots(1, 2, width_ratios=[2, 1])
    hours.bar(range(24), data.hours, color=_BLUE)
    hours.set_title("events by hour (UTC)", loc="left")
    hours.set_xticks(range(0, 24, 3))
    days.bar(_WEEKDAYS, data.weekdays, color=_BLUE)
    days.set_title("by weekday", loc="left")
    for axis in (hours, days):
        axis.yaxis.set_major_formatter(_thousands())


def _funnel(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    steps = list(data.funnel)
    axis.barh(steps, list(data.funnel.values()), color=_GREY, label="with the event at all")
    axis.barh(steps, list(data.funnel_after.values()), color=_BLUE, height=0.45, label="after the steps before it")
    axis.invert_yaxis()
    before = 0
    for at, (step, count) in enumerate(data.funnel.items()):
        told = f" {count:,}"
        if before:
            told += f"; of the pairs before it {share(data.funnel_after[step], before):.1%}"
        axis.text(max(count, data.funnel_after[step]), at, told, va="center")
        before = data.funnel_after[step]
    axis.set_xlim(0, 1.5 * max(1, *data.funnel.values()))
    axis.set_title("pairs of a user and an item", loc="left")
    axis.xaxis.set_major_formatter(_thousands())
    axis.legend(frameon=False, loc="lower right")


def _new(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    starts: Any = [period.start for period in data.periods]
    for name, colour in (("users", _BLUE), ("items", _ORANGE)):
        shares = [share(getattr(p, f"new_{name}"), getattr(p, name)) for p in data.periods]
        axis.plot(starts, shares, color=colour, marker=".", label=f"new {name}")
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axis.set_title(f"share of each {data.step}'s active users and items that were never seen before", loc="left")
    axis.legend(frameon=False)


def _histories(figure: Figure, data: Description) -> None:
    for axis, name, lengths in zip(
        figure.subplots(1, 2), ("user", "item"), (data.per_user, data.per_item), strict=True
    ):
        _powers(axis, lengths)
        axis.set_title(f"events per {name}", loc="left")
        axis.set_ylabel(f"{name}s")


def _powers(axis: Axes, lengths: Lengths) -> None:
    labels = [str(low) if low == 1 else f"{low:,}+" for low in lengths.bars]
    axis.bar(labels, list(lengths.bars.values()), color=_BLUE)
    axis.tick_params("x", rotation=45)
    axis.yaxis.set_major_formatter(_thousands())


def _categories(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    _bars(axis, {name: events for name, events, _ in data.categories})
    axis.set_title(f"events in the {len(data.categories)} most frequent categories", loc="left")


def _prices(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    lows = [low / 100 for low in data.prices]
    widths = [low * (10 ** (1 / PRICE_BINS) - 1) for low in lows]
    axis.bar(lows, list(data.prices.values()), width=widths, align="edge", color=_BLUE, edgecolor="white")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_major_formatter(_thousands())
    axis.set_title("events by unit price, in units of 100 minor ones", loc="left")


def _quarantine(figure: Figure, data: Description) -> None:
    axis = figure.subplots()
    _bars(axis, data.quarantine)
    axis.set_title("rows in quarantine, by reason", loc="left")


def _bars(axis: Axes, counts: Mapping[str, int]) -> None:
    names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in counts]
    places = range(len(names))  # two long names may look the same
    axis.barh(places, list(counts.values()), color=_BLUE)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    for at, count in zip(places, counts.values(), strict=True):
        axis.text(count, at, f" {count:,}", va="center")
    axis.set_xlim(0, 1.12 * max(1, *counts.values()))
    axis.xaxis.set_major_formatter(_thousands())


def _thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,.0f}")
