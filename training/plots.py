"""Plots of one training: models side by side, what the ranker looks at, how its probabilities are calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.candidate_rows import RankerRows
from training.evaluate import Evaluation
from training.fit_ranker import FittedRanker

#: Lowest probability of the calibration plot's logarithmic axes.
_RARE = 1e-4
_SEGMENTS = {"warm": "warm users", "new_items": "warm users, new items only", "cold": "cold users"}


def save_plots(
    directory: Path, evaluation: Evaluation, fitted: FittedRanker, held: RankerRows, seconds: dict[str, float]
) -> list[Path]:
    """Draw all plots as PNG files and return their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    return [
        _models(directory / "models.png", evaluation),
        _importance(directory / "importance.png", fitted),
        _calibration(directory / "calibration.png", fitted, held),
        _seconds(directory / "seconds.png", seconds),
    ]


def _models(path: Path, evaluation: Evaluation) -> Path:
    import matplotlib.pyplot as plt

    rows = evaluation.table()
    segments = [s for s in _SEGMENTS if any(row["segment"] == s for row in rows)]
    figure, axes = plt.subplots(1, len(segments), figsize=(4.6 * len(segments), 3.6), squeeze=False)
    for axis, segment in zip(axes[0], segments, strict=True):
        mine = sorted((r for r in rows if r["segment"] == segment), key=lambda r: r["ndcg@10"])
        value = np.array([r["ndcg@10"] for r in mine])
        low, high = (np.array([r[f"ndcg@10_{side}"] for r in mine]) for side in ("low", "high"))
        colours = ["#2b6cb0" if r["model"] == "two_stage" else "#a0aec0" for r in mine]
        axis.barh([r["model"] for r in mine], value, xerr=[value - low, high - value], color=colours, capsize=3)
        axis.set_title(f"{_SEGMENTS[segment]} (n={mine[0]['users']})", fontsize=10)
        axis.set_xlabel("nDCG@10, 95 % interval")
    return _save(figure, path)


def _importance(path: Path, fitted: FittedRanker) -> Path:
    import matplotlib.pyplot as plt

    top = list(fitted.importance.items())[:20][::-1]
    figure, axis = plt.subplots(figsize=(6, 5))
    axis.barh([name for name, _ in top], [value for _, value in top], color="#2b6cb0")
    axis.set_xlabel("share of the ranker's decisions, %")
    axis.set_title(f"What the ranker looks at ({fitted.best_iteration} trees)")
    return _save(figure, path)


def _calibration(path: Path, fitted: FittedRanker, held: RankerRows) -> Path:
    import matplotlib.pyplot as plt

    predicted = fitted.ranker.probability(fitted.ranker.score(held.matrix))
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, 16)))
    bins = np.clip(np.searchsorted(edges, predicted, "right") - 1, 0, max(len(edges) - 2, 0))
    weight = np.bincount(bins, held.weight)
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    seen = weight > 0
    mean = np.bincount(bins, held.weight * predicted)[seen] / weight[seen]
    taken = np.bincount(bins, held.weight * held.label)[seen] / weight[seen]
    axis.plot([_RARE, 1], [_RARE, 1], ":", color="grey")
    axis.plot(np.maximum(mean, _RARE), np.maximum(taken, _RARE), "o-", color="#2b6cb0")
    axis.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="share taken")
    axis.set_title("Calibration on the latest training window")
    return _save(figure, path)


def _seconds(path: Path, seconds: dict[str, float]) -> Path:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 2.8))
    axis.barh(list(seconds)[::-1], list(seconds.values())[::-1], color="#a0aec0")
    axis.set_xlabel("seconds")
    axis.set_title("Where the training time went")
    return _save(figure, path)


def _save(figure: object, path: Path) -> Path:
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    if not isinstance(figure, Figure):
        raise TypeError(f"not a figure: {figure!r}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
