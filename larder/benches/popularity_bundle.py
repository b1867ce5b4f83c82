"""A bundle that shows everybody what is most bought, with a half-life of 7 days: the baseline of an A/B test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from serving.candidates.popularity import Popularity
from serving.cascade.items import ItemTable
from serving.cascade.ranker import Calibration, LightGBMRanker
from serving.cascade.recommender import Policy
from training.save_bundle import feature_columns, save_bundle

SERVICE: Final = "ranking_v1"
CANDIDATES: Final = 100
#: Scores it tells apart: a grid from a millionth to a million, half a per cent apart.
_GRID: Final = np.geomspace(1e-6, 1e6, 5_000)


def save_popularity(bundles_dir: Path, table: ItemTable, *, name: str, trained_until_us: int) -> str:
    """Write the bundle and return its id.

    A ranker is a tree model, so this one is a tree that rises with the popularity score and looks at nothing else.
    """
    import lightgbm

    generators = (Popularity("7d"),)
    columns = feature_columns(SERVICE, generators)
    matrix = np.full((len(_GRID), len(columns)), np.nan, np.float32)
    matrix[:, columns.index("r_popular_score")] = _GRID
    parameters = {
        "objective": "regression",
        "num_leaves": len(_GRID),
        "max_bin": 2 * len(_GRID),
        "min_data_in_leaf": 1,
        "min_data_in_bin": 1,
        "min_sum_hessian_in_leaf": 0.0,
        "learning_rate": 1.0,
        "bin_construct_sample_cnt": len(_GRID),
        "num_threads": 1,
        "deterministic": True,
        "seed": 1,
        "verbosity": -1,
    }
    score = np.log(_GRID)
    model = lightgbm.train(parameters, lightgbm.Dataset(matrix, score, free_raw_data=False), num_boost_round=1)
    knots = np.linspace(score[0], score[-1], 50)
    ranker = LightGBMRanker(model, Calibration(knots, 1.0 / (1.0 + np.exp(-knots))))
    directory = save_bundle(
        bundles_dir,
        name=name,
        service=SERVICE,
        generators=generators,
        ranker=ranker,
        policy=Policy("keep", CANDIDATES, (CANDIDATES,)),
        table=table,
        golden=matrix[:: len(_GRID) // 16][:16],
        content={"metrics": {}, "trained_until_us": trained_until_us, "target": "purchase"},
        volatile={},
    )
    return directory.name
