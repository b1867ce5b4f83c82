"""Plots of a grading: quality by list length, gains user by user, and what is shown of head and tail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from training.grading import CURVE, MAIN, Grading
from training.metrics import head_items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES: Final = {"warm": "warm users", "new_items": "warm users, new items only", "cold": "cold users"}
_WIDTH: Final = 4.4


def plots(grading: Grading) -> Iterator[tuple[str, Figure]]:
    """Draw all plots: (title, figure)."""
    yield "Quality by length of the list, 95 % intervals", _curves(grading)
    if len(grading.models) > 1:
        yield f"Gain in nDCG@10 over {grading.against}, user by user", _gains(grading)
    first = next(iter(grading.segments))
    yield f"What the first 10 places show ({TITLES[first]})", _exposure(grading, first)


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray[tuple[int, int], np.dtype[np.object_]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * columns, height * rows), layout="tight")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _curves(grading: Grading) -> Figure:
    figure, axes = _figure(2, len(grading.segments), 3.2)
    for column, (name, segment) in enumerate(grading.segments.items()):
        for axis, metric in zip(axes[:, column], ("ndcg", "recall"), strict=True):
            for model, curve in segment.curves.items():
                points = [curve[f"{metric}@{k}"] for k in CURVE]
                (line,) = axis.plot(CURVE, [p.value for p in points], marker="o", markersize=3, label=_text(model))
                low, high = [p.low for p in points], [p.high for p in points]
                axis.fill_between(CURVE, low, high, color=line.get_color(), alpha=0.15)
            axis.set(xlabel="k", ylabel={"ndcg": "nDCG@k", "recall": "Recall@k"}[metric], xticks=CURVE[2:])
            axis.set_title(f"{TITLES[name]} (n={segment.users:,})", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    return figure


def _gains(grading: Grading) -> Figure:
    models = [model for model in grading.models if model != grading.against]
    figure, axes = _figure(len(models), len(grading.segments), 2.6)
    for column, (name, segment) in enumerate(grading.segments.items()):
        for axis, model in zip(axes[:, column], models, strict=True):
            gains, mean = segment.user_gains[model], segment.gains[model][MAIN]
            axis.hist(gains, bins=np.linspace(-1, 1, 42), color="#2b6cb0", log=True)
            axis.axvline(mean.value, color="#c05621")
            shares = (np.mean(gains > 0), np.mean(gains == 0), np.mean(gains < 0))
            better, same, worse = (f"{share:.0%}" for share in shares)
            axis.set_title(f"{TITLES[name]}: better {better}, same {same}, worse {worse}", fontsize=9)
            axis.set(xlabel=f"{_text(model)}: mean {mean.value:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}]")
            axis.set(ylabel="users")
    return figure


def _exposure(grading: Grading, name: str) -> Figure:
    figure, axes = _figure(1, 2, 3.4)
    bars, lorenz = axes[0]
    bought = grading.interactions
    head = head_items(bought)
    groups = {"head": head, "tail": ~head & (bought > 0), f"no {grading.target} before": bought == 0}
    shown = {f"{grading.target}s before": bought} | dict(grading.segments[name].exposure)
    shown = {label: exposure for label, exposure in shown.items() if exposure.sum()}
    left = np.zeros(len(shown))
    for (group, mask), colour in zip(groups.items(), ("#2b6cb0", "#90cdf4", "#cbd5e0"), strict=True):
        share = np.array([exposure[mask].sum() / exposure.sum() for exposure in shown.values()])
        bars.barh([_text(label) for label in shown], share, left=left, color=colour, label=f"{group} ({mask.sum():,})")
        left += share
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="share of places (items of the group)")
    bars.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for label, exposure in shown.items():
        ordered = np.r_[0.0, np.cumsum(np.sort(exposure)[::-1])] / exposure.sum()
        lorenz.plot(np.linspace(0, 1, len(ordered)), ordered, label=_text(label))
    lorenz.plot([0, 1], [0, 1], ":", color="grey")
    lorenz.set(xlabel="share of the catalogue, most shown first", ylabel="share of places")
    lorenz.legend(fontsize=8)
    return figure


def _text(name: str) -> str:
    """Names are data: a $ must not start a formula, nor a leading _ hide a line from the legend."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")
