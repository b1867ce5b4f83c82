"""Plots of a comparison of classifiers on the test window: ROC, precision and recall, calibration; and the table."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from training.classifier_metrics import F64, Ordered
from training.compare_classifiers import Comparison, Result

#: Points drawn of a curve: more than a plot has pixels.
_POINTS = 600
_BINS = 12
#: Lowest probability of the calibration plot's logarithmic axes.
_RARE = 1e-5


def save_comparison_plots(directory: Path, comparison: Comparison) -> list[Path]:
    """Draw all plots as PNG files and return their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _plot(directory / "roc.png", comparison, _roc),
        _plot(directory / "precision_recall.png", comparison, _precision_recall),
        _plot(directory / "calibration.png", comparison, _calibration),
    ]


def write_page(path: Path, title: str, table: list[dict[str, object]], lines: list[str], plots: list[Path]) -> None:
    """Write table and plots (which lie beside the page) as one HTML page."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>\n" for row in table
    )
    text = "".join(f"<p>{escape(line)}</p>\n" for line in lines)
    images = "".join(f'<img src="{escape(plot.name)}" alt="{escape(plot.stem)}">\n' for plot in plots)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:.2em .7em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}</style>\n"
        f"<h1>{escape(title)}</h1>\n{text}<table><tr>{head}</tr>\n{body}</table>\n{images}</html>\n",
        "utf-8",
    )


def _plot(path: Path, comparison: Comparison, draw: Callable[[Any, Comparison, Result, F64], None]) -> Path:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.8))
    weight = comparison.test.rows.weight.astype(np.float64)
    for result in comparison.results:
        draw(axis, comparison, result, weight)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _counts(comparison: Comparison, result: Result, weight: F64) -> tuple[F64, F64]:
    """Count true and false positives along the scores, thinned evenly in the true positives."""
    tp, fp = Ordered.by(result.score, comparison.test.rows.label).counts(weight)
    keep = np.unique(np.searchsorted(tp, np.linspace(tp[0], tp[-1], _POINTS)))
    return tp[keep], fp[keep]


def _roc(axis: Any, comparison: Comparison, result: Result, weight: F64) -> None:
    tp, fp = _counts(comparison, result, weight)
    negatives = comparison.test.pairs.population - comparison.test.pairs.bought
    label = f"{result.classifier.name} {result.figures['roc_auc']:.3f}"
    axis.plot(np.append(0.0, fp / negatives), np.append(0.0, tp / tp[-1]), label=label, lw=1.2)
    axis.set(xlabel="false positive rate", ylabel="recall", title="ROC, area in the legend")


def _precision_recall(axis: Any, comparison: Comparison, result: Result, weight: F64) -> None:
    tp, fp = _counts(comparison, result, weight)
    label = f"{result.classifier.name} {result.figures['average_precision']:.3f}"
    axis.plot(tp / tp[-1], tp / (tp + fp), label=label, lw=1.2)
    axis.set(xlabel="recall", ylabel="precision", title="Precision and recall, average precision in the legend")


def _calibration(axis: Any, comparison: Comparison, result: Result, weight: F64) -> None:
    predicted = result.probability
    order = np.argsort(predicted, kind="stable")
    bought = np.cumsum((weight * comparison.test.rows.label)[order])
    # Bins with equally many purchases: the rare high probabilities are the ones that matter.
    bins = np.empty(len(order), np.int64)
    bins[order] = np.minimum((bought / bought[-1] * _BINS).astype(np.int64), _BINS - 1)
    mass = np.bincount(bins, weight, _BINS)
    seen = mass > 0
    mean = np.bincount(bins, weight * predicted, _BINS)[seen] / mass[seen]
    taken = np.bincount(bins, weight * comparison.test.rows.label, _BINS)[seen] / mass[seen]
    axis.plot(np.maximum(mean, _RARE), np.maximum(taken, _RARE), "o-", label=result.classifier.name, ms=3, lw=1)
    if result is comparison.results[-1]:
        axis.plot([_RARE, 1], [_RARE, 1], ":", color="grey")
    axis.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="share bought")
    axis.set_title("Calibration on the test window, bins of equal purchases")
