"""Latency against rate, one curve for each server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from larder.benches.serving_load import OBJECTIVE_MS, Point


def plot(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draw p95 of every server at every rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in curves.items():
        axis.plot([one.rps for one in points], [one.p95 for one in points], marker="o", markersize=3, label=name)
    axis.axhline(OBJECTIVE_MS, color="grey", linewidth=0.8, linestyle="--")
    axis.set(
        xlabel="requests a second, Poisson arrivals", ylabel="p95 from the moment due, ms", ylim=(0, 3 * OBJECTIVE_MS)
    )
    axis.set_xscale("log")
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
