"""Features computed in one compiled pass are those computed one by one, to the bit."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import request_batch
from feature_repo.request_batch import RequestBatch, RowBlocks
from feature_repo.request_features import FEATURES, INPUTS, Ratio, compute
from feature_repo.services import FEATURE_LISTS
from feature_repo.views import DAY_US

NOW = 20_000 * DAY_US
USER, ITEM, PAIR, AFFINITY = (
    tuple(name for name in INPUTS if name.startswith(prefix)) for prefix in ("user_", "item_", "pair_", "affinity_")
)


def block(columns: tuple[str, ...], n: int, rng: np.random.Generator) -> np.ndarray:
    """Counters, prices and moments before and after now, some of them null or zero."""
    values = rng.choice([0.0, 1.0, 3.5, 1e6], (len(columns), n)) * rng.random((len(columns), n))
    times = np.array([[name.endswith(("_time", "_at"))] for name in columns])
    values = np.where(times, NOW - DAY_US * rng.integers(-3, 400, values.shape), values)
    return np.where(rng.random(values.shape) < 0.2, np.nan, values)


def both(names: tuple[str, ...], n: int, pairs: int, categories: int, seed: int) -> None:
    """Compute both ways and compare."""
    rng = np.random.default_rng(seed)
    blocks = RowBlocks(
        block(USER, 1, rng),
        np.ascontiguousarray(block(ITEM, n + 3, rng).T),
        rng.permutation(n + 3)[:n].astype(np.int32),
        block(PAIR, pairs, rng),
        rng.integers(-1, pairs, n, dtype=np.int32) if pairs else np.full(n, -1, np.int32),
        block(AFFINITY, categories, rng),
        rng.integers(-1, categories, n, dtype=np.int32) if categories else np.full(n, -1, np.int32),
    )
    out = np.empty((len(names), n), np.float32)
    RequestBatch(names, USER, ITEM, PAIR, AFFINITY).compute(blocks, NOW, out)
    columns = dict(zip(USER, blocks.user, strict=True)) | dict(zip(ITEM, blocks.items[blocks.item_of].T, strict=True))
    for known, rows, of in (
        (PAIR, blocks.pairs, blocks.pair_of),
        (AFFINITY, blocks.affinities, blocks.affinity_of),
    ):
        # A row that there is not has nulls only.
        columns |= dict(zip(known, np.column_stack([rows, np.full(len(rows), np.nan)])[:, of], strict=True))
    for row, (name, values) in zip(out, compute(columns, np.array([NOW]), names).items(), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(values, n), err_msg=name)


@pytest.mark.parametrize("names", [*FEATURE_LISTS.values(), tuple(FEATURES), ("f_item_price",), ("f_user_orders",)])
@settings(deadline=None)  # the first example compiles
@given(n=st.integers(0, 9), pairs=st.integers(0, 4), categories=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_the_same_numbers(names: tuple[str, ...], n: int, pairs: int, categories: int, seed: int) -> None:
    both(names, n, pairs, categories, seed)


def test_a_feature_of_another_kind_or_of_several_sides_is_computed_all_the_same() -> None:
    added = {
        "of_three_sides": (
            "",
            lambda c, now: c["pair_views"] + c["item_views"] - c["affinity_views"] + c["user_views"],
        ),
        "ratio_of_two_sides": ("", Ratio("pair_views", "item_views")),
    }
    with mock.patch.dict(FEATURES, added):
        both(("f_item_price", *added, "f_pair_views"), 50, 7, 3, 1)
        assert request_batch.RequestBatch(tuple(added), USER, ITEM, PAIR, AFFINITY)._others
