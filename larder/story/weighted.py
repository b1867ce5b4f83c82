"""Other versions of a champion for demonstrations: its ranker's scores times a weight; at -1 the worst comes first."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deployment.register_model import register_model
from deployment.registry import Registry
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from training.tracking import log_evaluation

FILE = "weighted.cbm"


def register_weighted(settings: Settings, bundle: Path, weight: float, service: str = "ranking_v1") -> str:
    """Log the weighted ranker of a bundle as a run of its own and register it; return the version's number.

    Parameters
    ----------
    weight
        -1 turns the order upside down; any positive one keeps it, in another bundle.

    Raises
    ------
    BadInputError
        If the bundle's ranker is not CatBoost's.
    """
    from catboost import CatBoost, sum_models

    source = bundle / "ranker.cbm"
    if not source.is_file():
        raise BadInputError(f"{bundle} has no CatBoost ranker to weight")
    model = CatBoost()
    model.load_model(str(source))
    with tempfile.TemporaryDirectory(prefix="larder-weighted-") as work:
        file = Path(work) / FILE
        sum_models([model], weights=[weight]).save_model(str(file))
        _, run_id = log_evaluation(settings, "weighted", {}, {"made_of": bundle.name, "weight": str(weight)}, [file])
    return register_model(settings, Registry(settings), run_id, service, FILE)
