"""What the contrastive model and the last few items add to the two-stage model, on the same users; and each alone.

Online Retail at its rolling cuts, Complete Journey one window before its last, and the simulator with pictures drawn of
its items. The final cut of Online Retail stays closed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feature_repo.backfill import backfill
from feature_repo.datasets import read_items
from feature_repo.event_log import read_report
from feature_repo.settings import Settings
from feature_repo.simulator.pictures import write_pictures
from feature_repo.simulator.world import Simulator
from larder.progress import progress
from larder.story.data import ensure_data
from larder.story.steps import PhaseProgress
from training.encode_items import encode_pictures, main_directions
from training.encoders.histogram_encoder import HistogramEncoder
from training.evaluate import TWO_STAGE, Evaluation
from training.item_vectors import write_item_vectors
from training.line_up import LineUp, default_line_up, with_contrastive, with_sequence
from training.metrics import bootstrap_mean
from training.train import TrainConfig, TrainResult, train

F64 = npt.NDArray[np.float64]

#: Data set to the cuts it is measured at: n test windows before the final one.
CUTS: Mapping[str, tuple[int, ...]] = {"online_retail": (1, 2, 3), "complete_journey": (1,), "simulator": (1,)}
#: A seed the simulator's parameters were not chosen on.
SEED = 301
_PICTURES = 32


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Train with and without each addition, and pair the users."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        for name, cuts in CUTS.items():
            own = replace(settings, home=Path(work), project=name)
            options = {"seed": SEED} if name == "simulator" else None
            data_hash = ensure_data(own, name, options=options)
            backfill(own)
            line_ups = _line_ups(own)
            gains: dict[str, list[F64]] = {}
            for back in cuts:
                plain = _trained(own, default_line_up(), back, data_hash)
                figures |= _figures(f"{name}.cut_{back}.default", plain)
                for added, line_up in line_ups.items():
                    result = _trained(own, line_up, back, data_hash)
                    prefix = f"{name}.cut_{back}.{added}"
                    figures |= _figures(prefix, result) | _alone(prefix, result.evaluation)
                    for segment in ("warm", "new_items"):
                        pairs = paired(result.evaluation, plain.evaluation, segment)
                        gains.setdefault(f"{added}.{segment}", []).append(pairs)
                        figures |= gain_figures(f"{prefix}.{segment}", pairs, settings.seed)
            for what, pairs_of_cuts in gains.items():
                figures |= gain_figures(f"{name}.{what}", np.concatenate(pairs_of_cuts), settings.seed)
    return figures, {"online_retail.contrastive.warm.gain_low": (">", 0.0)}


def _line_ups(settings: Settings) -> dict[str, LineUp]:
    line_ups = {"contrastive": with_contrastive(), "sequence": with_sequence()}
    if settings.project == "simulator":
        line_ups["pictures"] = with_contrastive(str(_drawn(settings)))
    return line_ups


def _drawn(settings: Settings) -> Path:
    """Draw the shop's items and encode what was drawn."""
    directory, path = settings.home / "pictures", settings.home / "pictures.npz"
    with progress("draw and encode pictures"):
        write_pictures(Simulator(seed=SEED).catalogue, directory)
        ids, vectors, _ = encode_pictures(read_items(settings), directory, HistogramEncoder())
        write_item_vectors(path, ids, main_directions(vectors, _PICTURES))
    return path


def _trained(settings: Settings, line_up: LineUp, back: int, data_hash: str) -> TrainResult:
    data = read_report(settings)
    print(f"\n{settings.project}, {back} windows before the final cut: {', '.join(one.name for one in line_up)}")
    config = TrainConfig(target=data.target, repeats=data.repeats, cuts_back=back, line_up=line_up)
    with PhaseProgress() as report:
        return train(settings, config, data_hash, report)


def paired(one: Evaluation, other: Evaluation, segment: str) -> F64:
    """Return the difference in nDCG@10 of two two-stage models, user by user, shape (n_users,)."""
    left, right = (list(each.slates[segment][TWO_STAGE]) for each in (one, other))
    if left != right:
        raise ValueError("the evaluations are of different users")
    difference: F64 = one.metrics[segment][TWO_STAGE]["ndcg@10"] - other.metrics[segment][TWO_STAGE]["ndcg@10"]
    return difference


def gain_figures(prefix: str, pairs: F64, seed: int) -> dict[str, float]:
    """Return the mean of paired differences and its 95 % interval, by name."""
    gain, low, high = bootstrap_mean(pairs, seed=seed)
    return {f"{prefix}.gain": gain, f"{prefix}.gain_low": low, f"{prefix}.gain_high": high}


def _figures(prefix: str, result: TrainResult) -> dict[str, float]:
    one = result.evaluation
    found = {f"{prefix}.{segment}.ndcg_at_10": _mean(one, segment, TWO_STAGE) for segment in ("warm", "new_items")}
    gain, low, high = one.paired("own_history")
    return found | {
        f"{prefix}.candidate_recall": float(one.candidate_recall.mean()),
        f"{prefix}.over_own_history": gain,
        f"{prefix}.over_own_history_low": low,
        f"{prefix}.over_own_history_high": high,
        f"{prefix}.fit_generators_s": result.seconds["fit generators"],
    }


def _alone(prefix: str, one: Evaluation) -> dict[str, float]:
    return {
        f"{prefix}.alone.{segment}.{name}.ndcg_at_10": _mean(one, segment, name)
        for segment in ("warm", "new_items")
        for name in ("contrastive", "recent")
        if name in one.metrics[segment]
    }


def _mean(one: Evaluation, segment: str, model: str) -> float:
    return float(one.metrics[segment][model]["ndcg@10"].mean())
