"""Quality on Online Retail under the protocol: the only place that opens the final cut for a figure in the README."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from feature_repo.backfill import backfill
from feature_repo.settings import Settings
from larder.commands.train import print_result
from larder.story.data import ensure_data
from larder.story.steps import PhaseProgress
from training.train import TrainConfig, train


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Train and evaluate from the raw file, with the times as published."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="online_retail")
        data_hash = ensure_data(own, "online_retail")
        backfill(own)
        with PhaseProgress() as report:
            result = train(own, TrainConfig(), data_hash, report)
    print_result(result)
    figures = result.evaluation.flat() | {f"seconds.{name}": value for name, value in result.seconds.items()}
    targets: dict[str, tuple[str, float]] = {
        "gain_over_own_history_low": (">", 0.0),
        "gain_over_history_x_popularity_low": (">", 0.0),
        "warm.two_stage.ndcg_at_10": (">=", 0.375),
        "auc": (">", 0.85),
    }
    return figures, targets
