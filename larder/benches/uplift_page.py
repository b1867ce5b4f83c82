"""The power table in words, and the picture of an A/B test's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deployment.statistics.uplift import users_per_arm


def tell(
    figures: Mapping[str, float],
    rates: Sequence[float],
    uplifts: Sequence[float],
    power: npt.NDArray[np.int64],
    visits: int,
    k: int,
) -> str:
    """Return the power table as text (Markdown)."""
    lines = [
        f"users per arm, two-sided alpha .05, power .8, {visits} lists of {k} a user, correlation "
        f"{figures['correlation']:.4f} as measured:",
        "",
        "| CTR | " + " | ".join(f"+{one:.0%}" for one in uplifts) + " |",
        "|---|" + "---|" * len(uplifts),
    ]
    for rate, row in zip(rates, power.tolist(), strict=True):
        lines.append(f"| {rate:.1%} | " + " | ".join(f"{users:,}" for users in row) + " |")
    return "\n".join(lines)


def plot(figures: Mapping[str, float], seeds: Sequence[int], correlation: float, shown: float, path: Path) -> None:
    """Draw the uplift in each shop and in all, and the users a test takes by its uplift."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    names = [*(f"seed_{seed}." for seed in seeds), ""]
    for place, prefix in enumerate(names):
        value, low, high = (100 * figures[f"{prefix}{name}"] for name in ("uplift", "uplift_low", "uplift_high"))
        colour = "#2b6cb0" if prefix else "#1a202c"
        left.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        left.plot(100 * figures[f"{prefix}true.uplift"], place, "x", color="#c05621")
    left.axvline(10.0, color="#a0aec0", linestyle="--", linewidth=1)
    left.axvline(0.0, color="black", linewidth=0.8)
    left.set(
        xlabel="clicks over 7-day popularity, %", title="A/B test (dot, 95 %) and the truth of first lists (cross)"
    )
    left.set_yticks(range(len(names)), [*(f"shop {seed}" for seed in seeds), "all"])
    left.invert_yaxis()
    uplifts = np.geomspace(0.01, 0.5, 40)
    for rate, colour in zip((0.01, 0.03, 0.1), ("#c05621", "#2b6cb0", "#2f855a"), strict=True):
        users = [users_per_arm(rate, float(one), shown=shown, correlation=correlation) for one in uplifts]
        right.loglog(100 * uplifts, users, color=colour, label=f"CTR {rate:.0%}")
    right.set(xlabel="relative uplift, %", ylabel="users per arm", title=f"Power .8, {shown:.0f} items shown a user")
    right.grid(which="both", alpha=0.2)
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
