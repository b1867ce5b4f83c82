"""What ranking 300 items and explaining 20 takes by one thread, CatBoost beside LightGBM LambdaRank."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from feature_repo.services import feature_list
from feature_repo.settings import Settings
from larder.progress import progress
from training.candidate_rows import RankerRows
from training.rankers.registry import RANKERS

ITEMS = 300
SHOWN = 20
#: Features of the service and two columns of each of five generators.
WIDTH = len(feature_list("ranking_v1")) + 10
_KINDS = ("catboost", "lambdarank")
_ROUNDS = 200


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Grow both with as many trees as they may have, and time them in turns on the same rows."""
    rows, features = synthetic_rows(250, seed=settings.seed), tuple(f"f{i}" for i in range(WIDTH))
    matrix = np.ascontiguousarray(rows.matrix[:ITEMS])
    rankers = {}
    for name in _KINDS:
        with progress(f"fit {name}"):
            params = RANKERS[name]()
            grown = params.fit(rows, None, features, params.iterations, seed=settings.seed, threads=settings.threads)
            rankers[name] = (grown.ranker, grown.trees)
    score: dict[str, list[float]] = {name: [] for name in _KINDS}
    explain: dict[str, list[float]] = {name: [] for name in _KINDS}
    with progress("measure"):
        for number in range(_ROUNDS):
            for name, (ranker, _) in rankers.items():
                score[name].append(_seconds(partial(ranker.score, matrix)))
                if number % 20 == 0:
                    explain[name].append(_seconds(partial(ranker.contributions, matrix[:SHOWN])))
    figures = {}
    for name in _KINDS:
        figures[f"{name}_trees"] = float(rankers[name][1])
        figures[f"{name}_300_items_p50_ms"] = float(np.median(score[name])) * 1e3
        figures[f"{name}_300_items_p95_ms"] = float(np.quantile(score[name], 0.95)) * 1e3
        figures[f"{name}_explain_20_p50_ms"] = float(np.median(explain[name])) * 1e3
    figures["lambdarank_over_catboost"] = float(np.median(score["lambdarank"]) / np.median(score["catboost"]))
    return figures, {"lambdarank_300_items_p50_ms": ("<=", 3.0), "catboost_300_items_p50_ms": ("<=", 3.0)}


def synthetic_rows(slates: int, *, seed: int, width: int = WIDTH, items: int = 160) -> RankerRows:
    """Rows with something to learn: a taken item has more of the first five columns; a fifth of all is unknown."""
    rng = np.random.default_rng(seed)
    n = slates * items
    matrix = rng.normal(0.0, 1.0, (n, width)).astype(np.float32)
    good = matrix[:, :5].sum(axis=1) + rng.normal(0.0, 1.0, n)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    label = (good > 3.0).astype(np.float32)
    weight = np.where(label > 0, 1.0, rng.choice([1.0, 5.0], n)).astype(np.float32)
    return RankerRows(matrix, label, weight, np.repeat(np.arange(slates), items))


def _seconds(run_once: Callable[[], object]) -> float:
    start = time.perf_counter()
    run_once()
    return time.perf_counter() - start
