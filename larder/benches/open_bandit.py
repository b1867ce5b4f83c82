"""The Open Bandit sample (Saito et al. 2021): two policies' logs of one shop, so each can be asked about the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from deployment.off_policy.estimators import F64, I64, Logged, cross_fitted_rates, folds_of
from feature_repo.errors import NotFoundError

CAMPAIGNS: Final = ("men", "women")
#: The uniform policy, and Bernoulli Thompson sampling.
POLICIES: Final = ("random", "bts")
POSITIONS: Final = 3
FOLDS: Final = 5


@dataclass(frozen=True)
class Campaign:
    """What one policy showed in one campaign, a row an item shown; columns of shape (n,).

    Rows are a sample of a log of millions: two of one user are rare, and there is no user id, so each stands alone.
    """

    item: I64
    position: I64  #: 0 to 2
    click: F64
    propensity: F64

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.item)


def load(data_dir: Path, policy: str, campaign: str) -> Campaign:
    """Read one log.

    Raises
    ------
    NotFoundError
        If the sample is not there.
    """
    path = data_dir / "open_bandit" / f"{policy}_{campaign}.parquet"
    if not path.is_file():
        raise NotFoundError(f"no Open Bandit sample at {path}; set data_dir to where open_bandit/ lies")
    table = pq.read_table(path, columns=["item_id", "position", "click", "propensity_score"])
    item, position, click, propensity = (table[name].to_numpy() for name in table.schema.names)
    return Campaign(item.astype(np.int64), position.astype(np.int64) - 1, click.astype(np.float64), propensity)


def shares(log: Campaign, n_items: int) -> F64:
    """Return how often a policy showed each item at each position, shape (positions, items).

    Thompson sampling does not look at the user here, and its propensities are known for the items it showed only: how
    often it showed each is its policy, averaged over the week.
    """
    counts = np.zeros((POSITIONS, n_items))
    np.add.at(counts, (log.position, log.item), 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def asked_about(log: Campaign, target: F64) -> Logged:
    """Ask a log about another policy, shape (positions, items); the model of DR is the clicks of each item."""
    n_items = target.shape[1]
    unit = np.arange(len(log))
    fold = folds_of(unit, FOLDS)
    rates = cross_fitted_rates(log.item, log.click, fold, n_items)
    chosen = target[log.position]
    # The sample's log could have made a choice where its policy ever did; uniform draws can make any.
    return Logged(
        log.click,
        log.propensity,
        chosen[unit, log.item],
        unit,
        np.zeros(len(log)),
        rates[fold, log.item],
        (chosen * rates[fold]).sum(axis=1),
    )
