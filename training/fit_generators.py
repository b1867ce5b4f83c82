"""Fits the candidate generators that serving loads: implicit ALS and item-to-item co-occurrence."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from feature_repo.events import EventType
from feature_repo.views import DAY_US
from serving.candidates.contract import CandidateGenerator
from serving.candidates.factors import ItemFactors
from serving.candidates.history import TYPE_WEIGHT, OwnHistory
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.candidates.vocabulary import Vocabulary
from training.split import Log


@dataclass(frozen=True, slots=True)
class GeneratorParams:
    """Settings of all generators; the defaults were tuned on windows before the test."""

    popular_window: str = "7d"
    category_window: str = "30d"
    history_half_life_days: float = 120.0
    history_window: str = "30d"
    als_factors: int = 64
    als_regularization: float = 0.05
    als_iterations: int = 15
    als_alpha: float = 4.0
    als_half_life_days: float = 180.0
    similar_depth: int = 100
    similar_shrinkage: float = 10.0
    similar_half_life_days: float = 60.0


def interactions(log: Log, now_us: int, half_life_days: float) -> tuple[sparse.csr_matrix, list[str]]:
    """Decayed interaction weights as a user x item matrix, and the item ids of its columns.

    Returns
    -------
    tuple
        CSR matrix, shape (n_users, n_items), float64; items sorted by id.
    """
    names = {member.name: int(member) for member in EventType}
    codes = np.fromiter((names[name] for name in log.event_type), np.int64, len(log.event_type))
    weights = TYPE_WEIGHT[codes] * np.exp2(-(now_us - log.time_us) / DAY_US / half_life_days)
    items, item_index = np.unique(log.item.astype(str), return_inverse=True)
    users, user_index = np.unique(log.user.astype(str), return_inverse=True)
    matrix = sparse.coo_matrix((weights, (user_index, item_index)), shape=(len(users), len(items))).tocsr()
    matrix.eliminate_zeros()
    return matrix, [str(item) for item in items]


def fit_item_factors(log: Log, now_us: int, params: GeneratorParams, *, seed: int, threads: int) -> ItemFactors:
    """Fit implicit ALS on decayed, logarithmic confidence and keep the item factors.

    The confidence `1 + alpha * log1p(weight)` is the one `serving.candidates.factors` folds users in with.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    matrix, items = interactions(log, now_us, params.als_half_life_days)
    matrix.data = 1.0 + params.als_alpha * np.log1p(matrix.data)
    with threadpool_limits(1, "blas"):  # implicit brings its own threads; two pools fight and results vary
        model = AlternatingLeastSquares(
            factors=params.als_factors,
            regularization=params.als_regularization,
            alpha=1.0,
            iterations=params.als_iterations,
            num_threads=threads,
            random_state=seed,
            dtype=np.float32,
        )
        model.fit(matrix.astype(np.float32), show_progress=False)
    return ItemFactors(
        Vocabulary(items),
        np.asarray(model.item_factors, np.float32),
        params.als_regularization,
        params.als_alpha,
        params.als_half_life_days,
    )


def fit_item_to_item(log: Log, now_us: int, params: GeneratorParams) -> ItemToItem:
    """Cosine between items over the users who took them, shrunk where few did; the nearest ones are kept."""
    matrix, items = interactions(log, now_us, 100_000.0)
    binary = matrix.copy()
    binary.data = np.ones_like(binary.data)
    together = (binary.T @ binary).tocsr()
    count = together.diagonal()
    together.setdiag(0)
    together.eliminate_zeros()
    depth = min(params.similar_depth, max(len(items) - 1, 1))
    neighbours = np.full((len(items), depth), -1, np.int32)
    similarity = np.zeros((len(items), depth), np.float32)
    for item in range(len(items)):
        row = together.getrow(item)
        norm = np.sqrt(count[item] * count[row.indices])
        value = row.data / (norm + params.similar_shrinkage)
        order = np.lexsort((row.indices, -value))[:depth]
        neighbours[item, : len(order)] = row.indices[order]
        similarity[item, : len(order)] = value[order]
    return ItemToItem(Vocabulary(items), neighbours, similarity, params.similar_half_life_days)


def fit_generators(
    log: Log, now_us: int, params: GeneratorParams, *, seed: int, threads: int
) -> tuple[CandidateGenerator, ...]:
    """Fit every generator on the events known before `now_us`."""
    past = log.before(now_us)
    return (
        OwnHistory(params.history_half_life_days, params.history_window),
        Popularity(params.popular_window),
        CategoryPopularity(params.category_window),
        fit_item_factors(past, now_us, params, seed=seed, threads=threads),
        fit_item_to_item(past, now_us, params),
    )


def save_generators(generators: tuple[CandidateGenerator, ...], directory: Path) -> list[dict[str, Any]]:
    """Write the generators' files into a bundle directory and return their manifest entries."""
    return [_save(generator, directory) for generator in generators]


def _save(generator: CandidateGenerator, directory: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": generator.name}
    if isinstance(generator, OwnHistory):
        names = ("half_life_days", "window", "popularity_floor")
        return entry | {"kind": "history", "params": {name: getattr(generator, name) for name in names}}
    if isinstance(generator, Popularity):
        return entry | {"kind": "popularity", "params": {"window": generator.window}}
    if isinstance(generator, CategoryPopularity):
        return entry | {"kind": "category_popularity", "params": {"window": generator.window}}
    entry["file"] = f"{generator.name}.npz"
    if isinstance(generator, ItemFactors):
        arrays: dict[str, npt.NDArray[Any]] = {"factors": generator.factors}
        params = {name: getattr(generator, name) for name in ("regularization", "alpha", "half_life_days")}
        kind = "item_factors"
    elif isinstance(generator, ItemToItem):
        arrays = {"neighbours": generator.neighbours, "similarity": generator.similarity}
        params, kind = {"half_life_days": generator.half_life_days}, "item_to_item"
    else:
        raise TypeError(f"no way to save a {type(generator).__name__}: add it here and in serving/candidates/load.py")
    write_npz(directory / entry["file"], ids=np.array(generator.vocabulary.ids), **arrays)
    return entry | {"kind": kind, "params": params}


def write_npz(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays as an `.npz` whose bytes depend on the arrays only (numpy stamps the time of day into it)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
