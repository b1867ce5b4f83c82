"""Feature services: the named, ordered list of features a model is bound to. PURE."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

from feature_repo.errors import NotFoundError
from feature_repo.request_features import OUTPUTS
from feature_repo.views import FOLD_VIEWS

#: The order is part of the contract: a model reads its features by position.
FEATURE_LISTS: Final[dict[str, tuple[str, ...]]] = {
    # A ranker learns from rolling cuts: all rows of a cut share one hour and weekday, so these would only tell cuts
    # apart, and mean nothing at the hour of a request.
    "ranking_v1": tuple(name for name, _ in OUTPUTS if name not in {"f_hour_of_day", "f_day_of_week"}),
    # A purchase score is asked for given pairs, also where nothing was shown: no exposure features.
    "purchase_v1": tuple(name for name, _ in OUTPUTS if name not in {"f_item_ctr", "f_pair_impressions_7d"}),
}


def feature_list(service: str) -> tuple[str, ...]:
    """Return the ordered features of a service.

    Raises
    ------
    NotFoundError
        If there is no such service.
    """
    try:
        return FEATURE_LISTS[service]
    except KeyError:
        known = ", ".join(sorted(FEATURE_LISTS))
        raise NotFoundError(f"no feature service {service!r}; there are: {known}") from None


@cache
def service_hash(service: str) -> str:
    """Hash of a service's ordered features and of the layouts they are computed from; kept in every bundle."""
    text = "|".join([*feature_list(service), *(f"{view.name}={view.layout_hash:016x}" for view in FOLD_VIEWS)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
