"""Metrics of classifiers on weighted rows, and the rule that picks the one to serve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from training.classifier_metrics import Ordered, best_f1_threshold, bootstrap_areas, confusion, interval
from training.classifiers import CLASSIFIERS
from training.compare_classifiers import Result, pick

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.floats(0.01, 100.0)), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label, _ in rows}) == 2
)


@given(ROWS)
@hypothesis_settings(deadline=None)
def test_metrics_equal_those_of_scikit_learn(rows: list[tuple[int, bool, float]]) -> None:
    score, label, weight = (np.array(column, float) for column in zip(*rows, strict=True))
    areas = Ordered.by(score, label).areas(weight)
    expected = (
        average_precision_score(label, score, sample_weight=weight),
        roc_auc_score(label, score, sample_weight=weight),
    )
    assert areas == pytest.approx(expected, abs=1e-9)


@given(ROWS)
def test_no_threshold_has_a_better_f1(rows: list[tuple[int, bool, float]]) -> None:
    score, label, weight = (np.array(column, float) for column in zip(*rows, strict=True))
    best = confusion(score, label, weight, best_f1_threshold(score, label, weight)).figures()["f1"]
    assert all(confusion(score, label, weight, t).figures()["f1"] <= best + 1e-12 for t in np.unique(score))


def test_the_confusion_counts_what_was_chosen() -> None:
    counts = confusion(np.array([0.9, 0.8, 0.3, 0.1]), [1, 0, 1, 0], np.array([1.0, 2.0, 3.0, 4.0]), 0.8)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (1.0, 2.0, 3.0, 4.0)
    figures = counts.figures()
    assert figures["accuracy"] == 0.5
    assert figures["precision"] == pytest.approx(1 / 3)
    assert figures["recall"] == 0.25
    assert figures["specificity"] == pytest.approx(4 / 6)
    assert figures["f1"] == pytest.approx(2 / 7)


def test_the_interval_covers_and_narrows_with_more_users() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for users in (50, 800):
        user = np.repeat(np.arange(users), 10)
        label = rng.random(len(user)) < 0.2
        rows = Ordered.by(rng.normal(0, 1, len(user)) + label, label)
        draws = bootstrap_areas(rows, np.ones(len(user)), user, seed=1, rounds=200)[:, 1]
        low, high = interval(draws)
        assert low < rows.areas(np.ones(len(user)))[1] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def result(name: str, average: float, ms: float, spread: float = 0.01) -> Result:
    classifier = next(c for c in CLASSIFIERS if c.name == name)
    draws = average + spread * np.random.default_rng(sum(map(ord, name))).normal(0, 1, (200, 2))
    figures = {"selection_average_precision": average, "inference_ms_per_row": ms}
    nothing = np.empty(0)
    return Result(classifier, None, None, figures, draws, draws, nothing, nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("results", "winner"),
    [
        # Better beyond the interval: speed does not matter.
        ([("CatBoost", 0.5, 0.9), ("XGBoost", 0.3, 0.1), ("LightGBM", 0.3, 0.1)], "CatBoost"),
        # A tie goes to the fastest.
        ([("CatBoost", 0.300, 0.9), ("XGBoost", 0.299, 0.1), ("LightGBM", 0.298, 0.5)], "XGBoost"),
        # Equally fast: the better one.
        ([("CatBoost", 0.299, 0.10), ("XGBoost", 0.300, 0.11), ("LightGBM", 0.1, 0.01)], "XGBoost"),
        # What has no safe format never wins.
        ([("RandomForest", 0.9, 0.01), ("CatBoost", 0.3, 0.1)], "CatBoost"),
    ],
)
def test_the_rule_picks(results: list[tuple[str, float, float]], winner: str) -> None:
    assert pick([result(*one) for one in results])[0].classifier.name == winner
