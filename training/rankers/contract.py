"""What a kind of ranker is to the training: settings that can be fitted, and what a fit gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from serving.cascade.ranker import F64, Calibration, TreeRanker
from training.candidate_rows import RankerRows

#: Takes the place of the calibration until there is one.
UNCALIBRATED = Calibration(np.array([0.0]), np.array([0.0]))


@dataclass(frozen=True, slots=True)
class Grown:
    """One fit.

    Attributes
    ----------
    ranker
        Scores rows; not calibrated yet.
    trees
        How many trees it has: with held rows, as many as were best on them.
    importance
        What each feature contributes, in the order of the features, shape (f,).
    """

    ranker: TreeRanker
    trees: int
    importance: F64


class RankerParams(Protocol):
    """Settings of one kind of ranker: a frozen dataclass, as bundles keep them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def iterations(self) -> int:
        """How many trees are grown at most."""
        ...

    def fit(
        self,
        rows: RankerRows,
        held: RankerRows | None,
        features: tuple[str, ...],
        trees: int,
        *,
        seed: int,
        threads: int,
    ) -> Grown:
        """Fit once; equal arguments give equal models, byte for byte.

        Parameters
        ----------
        held
            Rows that stop the growth where it no longer helps on them; None: all `trees` are grown.
        """
        ...
