"""CatBoost's trees compiled: the library's scores to the bit, whatever the model and the rows; else the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catboost import CatBoost, Pool
from hypothesis import given, settings
from hypothesis import strategies as st

from deployment.parser import Parser
from serving.bundle import compiled_trees
from serving.cascade.oblivious_trees import oblivious_trees
from tests.test_cascade import small_shop
from tests.tiny_bundle import make_bundle


def _model(rng: np.random.Generator, missing: float, **options: Any) -> tuple[CatBoost, int]:
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    rows[rng.random(rows.shape) < missing] = np.nan
    label = (np.nan_to_num(rows[:, 0]) + rng.normal(size=400) > 0).astype(int)
    known = {"iterations": 30, "depth": 4, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    model = CatBoost({"loss_function": "Logloss", **known, **options})
    return model.fit(Pool(rows, label)), 6


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 8),
    missing=st.sampled_from([0.0, 0.3]),
    nan_mode=st.sampled_from(["Min", "Max"]),
    loss=st.sampled_from(["Logloss", "RMSE"]),
)
def test_scores_are_the_librarys_to_the_bit(seed: int, depth: int, missing: float, nan_mode: str, loss: str) -> None:
    rng = np.random.default_rng(seed)
    model, width = _model(rng, missing, depth=depth, nan_mode=nan_mode, loss_function=loss, iterations=20)
    trees = compiled_trees(model)
    assert trees is not None
    for count in (1, 300, 1_025):
        rows = np.asfortranarray(rng.normal(size=(count, width)).astype(np.float32))
        rows[rng.random(rows.shape) < 0.3] = np.nan
        rows[rng.random(rows.shape) < 0.02] = np.inf
        assert np.array_equal(trees.score(rows), model.predict(rows, prediction_type="RawFormulaVal"))


def test_values_on_a_border_are_not_above_it() -> None:
    model, width = _model(np.random.default_rng(3), 0.0)
    trees = compiled_trees(model)
    assert trees is not None
    borders = trees.border[np.abs(trees.border) < 1e38]
    rows = np.repeat(borders[:, None], width, axis=1)
    assert np.array_equal(trees.score(rows), model.predict(rows, prediction_type="RawFormulaVal"))


@pytest.mark.parametrize("options", [{"grow_policy": "Lossguide"}, {"depth": 9}])
def test_what_is_not_known_stays_with_the_library(options: dict[str, Any]) -> None:
    model, _ = _model(np.random.default_rng(1), 0.0, **options)
    assert compiled_trees(model) is None


def test_a_model_of_categories_stays_with_the_library() -> None:
    rng = np.random.default_rng(2)
    rows = [[str(n), float(x)] for n, x in zip(rng.integers(0, 5, 200), rng.normal(size=200), strict=True)]
    pool = Pool(rows, rng.integers(0, 2, 200), cat_features=[0])
    model = CatBoost({"iterations": 10, "verbose": False, "allow_writing_files": False, "loss_function": "Logloss"})
    assert compiled_trees(model.fit(pool)) is None


def test_a_wrong_reading_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(description: Any) -> Any:
        description["oblivious_trees"][-1]["splits"][0]["border"] += 0.01
        return oblivious_trees(description)

    monkeypatch.setattr("serving.bundle.oblivious_trees", wrong)
    model, _ = _model(np.random.default_rng(4), 0.1)
    assert compiled_trees(model) is None


def test_the_gates_child_process_which_may_write_no_file_takes_a_bundle(tmp_path: Path) -> None:
    with Parser(seconds=60.0, memory_mb=8192.0) as parser:
        assert parser.bundle(tmp_path / make_bundle(tmp_path, small_shop()), ("catboost",)).finite


def test_leaves_that_are_no_numbers_stay_with_the_library() -> None:
    """The gate must find them by their scores, and say so; JSON cannot hold them."""
    model, width = _model(np.random.default_rng(5), 0.0)
    model.set_leaf_values(np.full_like(model.get_leaf_values(), np.nan))
    assert compiled_trees(model) is None
    assert np.isnan(model.predict(np.zeros((3, width), np.float32), prediction_type="RawFormulaVal")).all()
