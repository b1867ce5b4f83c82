"""How the generators' lists are made one: what a rank in each list is worth. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

#: Constant of reciprocal rank fusion, as published: how little the first ranks differ.
RECIPROCAL: Final = 60.0
#: Ranks that are told apart; further down all are worth the same.
DEPTH: Final = 1_000
#: Bound of the sum of all curves: fused worth is kept as an integer of limited size (kernels.py).
_TOTAL: Final = 0.49


@dataclass(frozen=True, eq=False)
class Fusion:
    """An item is worth the sum over the lists that hold it.

    Attributes
    ----------
    curves
        Worth of rank r in list g at [g, r - 1], shape (generators, depth); scaled so that no sum exceeds one half.
    """

    curves: F64

    def __post_init__(self) -> None:
        most = float(np.abs(self.curves).max(axis=1, initial=0.0).sum())
        if most > _TOTAL:
            object.__setattr__(self, "curves", self.curves * (_TOTAL / most))

    @classmethod
    def reciprocal(cls, generators: int) -> Fusion:
        """Return reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): 1 / (60 + rank) for every list alike.

        What several generators agree on goes before what one of them ranks high.
        """
        return cls(np.tile(1.0 / (RECIPROCAL + np.arange(1.0, DEPTH + 1)), (generators, 1)))
