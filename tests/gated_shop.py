"""A small trained shop for the gate: few events, generators that fit in no time, thresholds of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deployment.promotion import ControlPlane
from deployment.thresholds import override_path
from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.materialize import materialize
from feature_repo.settings import Settings
from feature_repo.store import apply
from serving.candidates.history import OwnHistory
from serving.candidates.popularity import Popularity
from training.generators.contract import Ready
from training.generators.cooccurrence import Cooccurrence
from training.rankers.catboost_ranker import CatBoostParams
from training.tracking import register_training
from training.train import TrainConfig, TrainResult, train

CONFIG = TrainConfig(
    windows=1,
    users=300,
    candidates=60,
    line_up=(Ready(OwnHistory(60.0), 60), Ready(Popularity("7d"), 60), Cooccurrence(60, depth=30)),
    ranker=CatBoostParams(iterations=40, depth=4),
)
#: A small shop is not a good one: the floors are where it stands, the machine may be busy, the rest is as shipped.
THRESHOLDS = """
auc = 0.72
baseline_gain = -0.3
average_precision = -0.3
calibration_error = 0.2
ndcg_margin_share = 0.9
hard_auc_margin = 0.5
segment_margin = 0.1
users = 300
halves_drop = 0.15
missing_drop = 0.2
noise_drop = 0.1
latency_requests = 60
latency_p50_ms = 200
latency_p95_ms = 400
latency_p99_ms = 900
"""


@dataclass(frozen=True)
class GatedShop:
    """A shop whose first model is the champion."""

    settings: Settings
    result: TrainResult


def make_gated_shop(settings: Settings, *, events: int = 12_000, config: TrainConfig = CONFIG) -> GatedShop:
    """Import, fold, materialise, train, register and promote."""
    write_dataset(load_dataset("simulator", settings, n_events=events, end=datetime(2026, 3, 1, tzinfo=UTC)), settings)
    backfill(settings)
    apply(settings)
    materialize(settings)
    write_thresholds(settings.root)
    result = train(settings, config, "hash-of-the-data")
    registered = register_training(settings, result)
    promotion = ControlPlane(settings).promote(registered.version, why="first")
    assert promotion.plan is not None, promotion.verdict.lines()
    return GatedShop(settings, result)


def write_thresholds(root: Path, more: str = "") -> None:
    """Write a project's own thresholds."""
    path = override_path(Settings(home=root.parent, project=root.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(THRESHOLDS + more, "utf-8")
