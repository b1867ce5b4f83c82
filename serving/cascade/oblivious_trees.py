"""CatBoost's trees, compiled for the few hundred rows of a request: the library's scores, bit for bit. PURE.

Of what `predict` takes for 300 rows, two thirds go into its own table of the matrix and into setting itself up. A
CatBoost tree asks the same question at all nodes of a level, so a row's leaf is a number of as many bits as the tree
has levels, and the answers to one question, of all rows, are one comparison of a column. The leaves' values are added
tree after tree, as the library adds them. Models with anything else than numbers and symmetric trees stay with the
library (decision 23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

#: Levels of a tree whose leaf is numbered by one byte.
MAX_DEPTH: Final = 8
#: Rows taken at a time, so that the room for their answers has a bound; a request's rows are one block.
_BLOCK: Final = 512
#: Rows on which a compiled model is compared with the library's, and the share of missing values among a quarter.
_PROBES: Final = 256
_MISSING: Final = 0.5
#: Larger borders only tell missing values from others.
_FINITE: Final = 1e38
#: How a model says that a missing value counts as larger than every border.
_NAN_IS_LARGE: Final = "AsTrue"

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast).

    The interpreter is kept: another thread that took it for these microseconds would keep the request for far longer.
    """
    return cast("Function", njit(cache=True)(function))


# Arguments of the compiled function are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _add_leaves(columns: Any, feature: Any, border: Any, nan_large: Any, questions: Any, leaves: Any, out: Any) -> None:
    depth = questions.shape[1]
    answers = np.empty((len(feature), _BLOCK), np.uint8)
    leaf = np.empty(_BLOCK, np.uint8)
    for first in range(0, len(out), _BLOCK):
        size = min(_BLOCK, len(out) - first)
        for q in range(len(feature)):
            column, least, answer = columns[feature[q], first : first + size], border[q], answers[q]
            for i in range(size):
                answer[i] = np.uint8(255) if column[i] > least else np.uint8(0)
            if nan_large[q]:
                for i in range(size):
                    answer[i] |= np.uint8(255) if np.isnan(column[i]) else np.uint8(0)
        total = out[first : first + size]
        for tree in range(len(questions)):
            answer = answers[questions[tree, 0]]
            for i in range(size):
                leaf[i] = answer[i] & np.uint8(1)
            for level in range(1, depth):
                answer, bit = answers[questions[tree, level]], np.uint8(1 << level)
                for i in range(size):
                    leaf[i] |= answer[i] & bit
            values = leaves[tree]
            for i in range(size):
                total[i] += values[leaf[i]]


@dataclass(frozen=True, eq=False)
class ObliviousTrees:
    """Symmetric trees over columns of numbers.

    Attributes
    ----------
    feature, border, nan_large
        The distinct questions, "is the value of this column above this border?", and whether a missing value is, each
        of shape (q,).
    questions
        The question of each level, shape (trees, depth); shallower trees ask the last question, which is always
        answered by no.
    leaves
        Value of each leaf, shape (trees, 2 ** depth).
    scale, bias
        The sum of the leaves, times `scale`, plus `bias`, is the score.
    """

    feature: I32
    border: F32
    nan_large: npt.NDArray[np.bool_]
    questions: I32
    leaves: F64
    scale: float
    bias: float

    def score(self, matrix: F32) -> F64:
        """Return raw scores, shape (n,), of a matrix of shape (n, f); fastest where its columns are contiguous."""
        out = np.zeros(len(matrix))
        columns = np.ascontiguousarray(matrix.T, np.float32)
        _add_leaves(columns, self.feature, self.border, self.nan_large, self.questions, self.leaves, out)
        return out if (self.scale, self.bias) == (1.0, 0.0) else out * self.scale + self.bias

    def probes(self, width: int) -> F32:
        """Return rows that tell a wrong reading of a model from a right one, shape (n, width).

        Values on the borders, just above, far from them, and missing, mixed so that the rows end in different leaves.
        """
        rng = np.random.default_rng(0)
        rows = np.full((_PROBES, width), np.nan, np.float32)
        for column in np.unique(self.feature):
            borders = self.border[self.feature == column]
            borders = np.append(borders[np.abs(borders) < _FINITE], np.float32(0))
            drawn = rng.choice(borders, _PROBES)
            kind = rng.integers(0, 4, _PROBES)
            drawn = np.where(kind == 1, np.nextafter(drawn, np.float32(np.inf)), drawn)
            drawn = np.where(kind == 2, drawn + rng.normal(size=_PROBES).astype(np.float32), drawn)
            rows[:, column] = np.where((kind == 3) & (rng.random(_PROBES) < _MISSING), np.float32(np.nan), drawn)
        return rows


def oblivious_trees(description: Mapping[str, Any]) -> ObliviousTrees | None:
    """Read the trees of a CatBoost model as it describes itself in JSON; None where it is more than this file knows."""
    trees, features = description.get("oblivious_trees"), description["features_info"]
    scale, bias = description["scale_and_bias"]
    if not trees or features.get("categorical_features") or len(bias) != 1:
        return None
    splits = [list(tree["splits"] or ()) for tree in trees]
    depth = max(len(one) for one in splits)
    sizes = [len(tree["leaf_values"]) == 2 ** len(one) for tree, one in zip(trees, splits, strict=True)]
    kinds = {split["split_type"] for one in splits for split in one}
    if not all(sizes) or not 1 <= depth <= MAX_DEPTH or kinds != {"FloatFeature"}:
        return None
    floats = features["float_features"]
    asked = [[(split["float_feature_index"], float(split["border"])) for split in one] for one in splits]
    known = sorted({question for one in asked for question in one})
    number = {question: n for n, question in enumerate(known)}
    never = len(known)
    questions = np.full((len(trees), depth), never, np.int32)
    leaves = np.zeros((len(trees), 2**depth))
    for row, (one, tree) in enumerate(zip(asked, trees, strict=True)):
        questions[row, : len(one)] = [number[question] for question in one]
        leaves[row, : 2 ** len(one)] = tree["leaf_values"]
    large = [floats[n]["nan_value_treatment"] == _NAN_IS_LARGE for n, _ in known]
    return ObliviousTrees(
        np.array([*(floats[n]["flat_feature_index"] for n, _ in known), 0], np.int32),
        np.array([*(border for _, border in known), np.inf], np.float32),
        np.array([*large, False]),
        questions,
        leaves,
        float(scale),
        float(bias[0]),
    )
