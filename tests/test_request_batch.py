"""Features computed kind by kind are those computed one by one, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.request_batch import RequestBatch
from feature_repo.request_features import FEATURES, INPUTS, compute
from feature_repo.services import FEATURE_LISTS
from feature_repo.views import DAY_US

NOW = 20_000 * DAY_US
USER = tuple(name for name in INPUTS if name.startswith("user_"))
ROWS = tuple(name for name in INPUTS if name not in USER)


def block(columns: tuple[str, ...], n: int, rng: np.random.Generator) -> np.ndarray:
    """Counters, prices and moments before and after now, some of them null or zero."""
    values = rng.choice([0.0, 1.0, 3.5, 1e6], (len(columns), n)) * rng.random((len(columns), n))
    times = np.array([[name.endswith(("_time", "_at"))] for name in columns])
    values = np.where(times, NOW - DAY_US * rng.integers(-3, 400, values.shape), values)
    return np.where(rng.random(values.shape) < 0.2, np.nan, values)


@pytest.mark.parametrize("names", [*FEATURE_LISTS.values(), tuple(FEATURES), ("f_item_price",), ("f_user_orders",)])
@given(n=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_the_same_numbers(names: tuple[str, ...], n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    user, rows = block(USER, 1, rng), block(ROWS, n, rng)
    out = np.empty((len(names), n), np.float32)
    RequestBatch(names, USER, ROWS).compute(user, rows, NOW, out)
    columns = {**dict(zip(USER, user, strict=True)), **dict(zip(ROWS, rows, strict=True))}
    for row, (name, values) in zip(out, compute(columns, np.array([NOW]), names).items(), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(values, n), err_msg=name)
