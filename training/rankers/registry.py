"""The rankers `larder train --ranker` knows, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from feature_repo.errors import BadInputError
from training.rankers.catboost_ranker import CatBoostParams
from training.rankers.contract import RankerParams
from training.rankers.lambdarank import LambdaRankParams

#: Name to what makes its settings; the first is the default.
RANKERS: Final[dict[str, Callable[[], RankerParams]]] = {
    "catboost": CatBoostParams,
    # As many trees as the table of docs/models.md was made with: it takes three times as long as log loss.
    "yetirank": lambda: CatBoostParams(loss="YetiRank", iterations=300),
    "lambdarank": LambdaRankParams,
}


def ranker_params(name: str) -> RankerParams:
    """Return the settings of a ranker.

    Raises
    ------
    BadInputError
        If there is none of that name.
    """
    if name not in RANKERS:
        raise BadInputError(f"no ranker {name!r}; there are: {', '.join(RANKERS)}")
    return RANKERS[name]()
