"""The log as a user x item matrix of decayed weights: what all fitted generators start from."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from feature_repo.events import EventType
from feature_repo.views import DAY_US
from serving.candidates.history import TYPE_WEIGHT
from training.generators.contract import Past

#: Half-life that leaves every event its full weight.
FOREVER_DAYS = float("inf")


def interactions(past: Past, half_life_days: float) -> tuple[sparse.csr_matrix, list[str]]:
    """Decayed interaction weights as a user x item matrix, and the item ids of its columns.

    Returns
    -------
    tuple
        CSR matrix, shape (n_users, n_items), float64; items sorted by id.
    """
    log = past.log
    names = {member.name: int(member) for member in EventType}
    codes = np.fromiter((names[name] for name in log.event_type), np.int64, len(log.event_type))
    weights = TYPE_WEIGHT[codes] * np.exp2(-(past.now_us - log.time_us) / DAY_US / half_life_days)
    items, item_index = np.unique(log.item.astype(str), return_inverse=True)
    users, user_index = np.unique(log.user.astype(str), return_inverse=True)
    matrix = sparse.coo_matrix((weights, (user_index, item_index)), shape=(len(users), len(items))).tocsr()
    matrix.eliminate_zeros()
    return matrix, [str(item) for item in items]
