"""Plot of a search: how the best value rose from trial to trial, and what the differences came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.search_study import Found


def save_search_plot(path: Path, found: Found) -> Path:
    """Draw the history of the optimisation and the importances as one PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (history, importance) = plt.subplots(1, 2, figsize=(11.0, 4.0), width_ratios=(3, 2))
    whole = [one for one in found.trials if not one.pruned]
    pruned = [one for one in found.trials if one.pruned]
    history.plot([one.number for one in pruned], [one.value for one in pruned], "x", color="0.6", label="pruned")
    history.plot([one.number for one in whole], [one.value for one in whole], "o", label="judged at all cuts")
    best = np.maximum.accumulate([one.value for one in whole])
    history.step([one.number for one in whole], best, where="post", color="C1", label="best so far")
    history.axhline(whole[0].value, color="0.8", linewidth=1, zorder=0)
    history.set(xlabel="trial (the line: the defaults)", ylabel="mean nDCG@10 of the cuts before the test")
    history.legend()
    names = list(found.importance)[::-1]
    importance.barh(range(len(names)), [found.importance[name] for name in names])
    importance.set_yticks(range(len(names)), names, fontsize=7)
    importance.set(xlabel="share of the differences between whole trials")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
