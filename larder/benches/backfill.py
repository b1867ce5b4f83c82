"""Time and memory of a backfill from 0.1 M to 10 M simulated events, each folded in a process of its own."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.settings import Settings
from larder.benches.child import measured, report
from larder.progress import progress

#: Millions of events.
SIZES = (0.1, 0.3, 1.0, 3.0, 10.0)
_WARM = "warm"
_MODULE = "larder.benches.backfill"


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Simulate, fold and compare; the plot goes beside the figures."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as home:
        measured(_MODULE, "simulate", home, _WARM, "5000")
        for size in SIZES:
            name, events = f"backfill_{size:g}m", str(round(size * 1e6))
            with progress(f"simulate {size:g} M events"):
                measured(_MODULE, "simulate", home, name, events, timeout_s=1800)
            with progress(f"fold {size:g} M events"):
                done = measured(_MODULE, "fold", home, name, timeout_s=1800)
            figures[f"{name}_s"], figures[f"{name}_peak_gb"] = done["seconds"], done["peak_gb"]
            figures[f"{name}_disk_gb"] = done["disk_gb"]
    figures["events_per_s"] = 10e6 / figures["backfill_10m_s"]
    # 1 where cost is linear from 1 M on; what a short run pays once would hide growth in a comparison with 0.1 M.
    figures["seconds_per_event_10m_to_1m"] = figures["backfill_10m_s"] / figures["backfill_1m_s"] / 10
    _plot(figures, settings.results_dir / "backfill.png")
    return figures, {
        "backfill_10m_s": ("<", 90.0),
        "backfill_10m_peak_gb": ("<", 4.0),
        "seconds_per_event_10m_to_1m": ("<", 1.3),
    }


def _plot(figures: dict[str, float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, key, title in ((axes[0], "s", "seconds"), (axes[1], "peak_gb", "peak memory, GB")):
        values = [figures[f"backfill_{size:g}m_{key}"] for size in SIZES]
        axis.plot(SIZES, values, "o-", label="measured")
        axis.set(xlabel="events, million", title=title, ylim=(0, None))
    first = figures["backfill_1m_s"]
    axes[0].plot(SIZES, [size * first for size in SIZES], "--", label="linear from 1 M")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _simulate(settings: Settings, events: int) -> None:
    from feature_repo.datasets import load_dataset, write_dataset

    write_dataset(load_dataset("simulator", settings, n_events=events, end=datetime(2026, 1, 1, tzinfo=UTC)), settings)


def _fold(settings: Settings) -> None:
    from feature_repo.backfill import backfill

    backfill(replace(settings, project=_WARM), full=True)  # the compiled fold is loaded before the clock runs
    start = time.perf_counter()
    backfill(settings)
    seconds = time.perf_counter() - start
    disk = sum(path.stat().st_size for path in settings.offline_dir.rglob("*.parquet"))
    report(seconds=seconds, disk_gb=disk / 2**30)


if __name__ == "__main__":
    task, home, project, *rest = sys.argv[1:]
    own = Settings(home=Path(home), project=project)
    if task == "simulate":
        _simulate(own, int(rest[0]))
        report()
    else:
        _fold(own)
