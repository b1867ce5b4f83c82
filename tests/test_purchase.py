"""The purchase score: what its rows are, that nothing of the future is in them, and how classifiers are compared."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import Dataset, load_dataset, read_events, write_dataset
from feature_repo.errors import BadInputError
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from training import compare_classifiers as comparing
from training.classifier_metrics import Ordered, best_f1_threshold, bootstrap_areas, confusion, interval
from training.classifiers import CLASSIFIERS
from training.compare_classifiers import CompareConfig, Comparison, Result, compare_classifiers, judged_rows, pick
from training.offline_table import offline_item_table
from training.purchase_rows import Draw, draw_pairs, join_features
from training.split import WEEK_US, Log, Split, split_by_horizon

CONFIG = CompareConfig(
    windows=2, train=Draw(2_000, 1_500, 1_500, 20), judge=Draw(2_000, 2_000, 2_000, 20), effort=0.15, rounds=60
)
COLUMNS = ["user_id", "item_id", "event_type", "event_timestamp", "received_at"]


def log_of(settings: Settings) -> Log:
    return Log.of(read_events(settings, columns=COLUMNS))


def split_of(log: Log) -> Split:
    return split_by_horizon(log.time_us, horizon_us=None, test_share=0.1, windows=4)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    options = {"n_events": 20_000, "n_users": 200, "n_items": 150, "n_categories": 10}
    return load_dataset("simulator", Settings(), end=datetime(2026, 3, 1, tzinfo=UTC), **options)


@pytest.fixture(scope="module")
def shop(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("purchase"), project="small", threads=1)
    write_dataset(dataset, settings)
    backfill(settings)
    return settings


@pytest.fixture(scope="module")
def compared(shop: Settings) -> Comparison:
    return compare_classifiers(shop, CONFIG)


# --- the rows -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(100, 400), st.integers(1, 6))
def test_cuts_lie_whole_weeks_apart_and_windows_do_not_overlap(days: int, span: int, windows: int) -> None:
    time = np.sort(np.random.default_rng(days).integers(0, span * DAY_US, 500))
    try:
        split = split_by_horizon(time, horizon_us=days * DAY_US, test_share=0.1, windows=windows + 1)
    except BadInputError:
        assert 2 * (days + 7) * 2 > span - 1
        return
    all_windows = [*split.rolling, split.test]
    assert {w.end_us - w.start_us for w in all_windows} == {days * DAY_US}
    assert {(w.start_us - split.test.start_us) % WEEK_US for w in all_windows} == {0}
    assert all(a.end_us <= b.start_us for a, b in itertools.pairwise(all_windows))
    assert split.test.end_us == time.max() + 1
    assert all(w.start_us - time.min() >= days * DAY_US for w in all_windows)


def test_rows_are_a_fair_sample_of_everybody_times_everything_on_sale(shop: Settings) -> None:
    """Weights sum to the population and to its purchases; labels and membership hold one by one."""
    log = log_of(shop)
    window = split_of(log).test
    table = offline_item_table(AsOfReader(shop, window.start_us), window.start_us)
    pairs = draw_pairs(log, table, window, "purchase", Draw(50, 400, 300, 20), [1])
    known = set(log.before(window.start_us).user)
    assert pairs.population == len(known) * int(table.available.sum())
    assert pairs.weight.sum() == pytest.approx(pairs.population, rel=1e-5)
    assert (pairs.weight * pairs.label).sum() == pytest.approx(pairs.bought, rel=1e-5)
    assert (len(pairs.label), int(pairs.label.sum())) == (750, 50)
    targets = log.targets(window, "purchase")
    for user, item, label in zip(pairs.users, pairs.items, pairs.label, strict=True):
        assert user in known and table.available[table.index[item]]
        assert label == (item in targets.get(user, set()))
    assert len(set(zip(pairs.users, pairs.items, strict=True))) == 750
    assert pairs.bought + pairs.outside == sum(map(len, targets.values()))
    assert (np.diff(pairs.group) >= 0).all()
    np.testing.assert_array_equal(np.unique(pairs.users, return_inverse=True)[1], pairs.group)


def test_nothing_after_the_cut_is_in_the_features(shop: Settings, dataset: Dataset, compared: Comparison) -> None:
    """Other people buying other things from the test cut on changes no row and no model that came before it."""
    moved = replace(shop, home=shop.home.parent / "moved")
    events = dataset.events
    later = pc.greater_equal(
        pc.cast(events["event_timestamp"], pa.int64()), pa.scalar(compared.split.test.start_us, pa.int64())
    ).to_numpy(zero_copy_only=False)
    mixed = np.arange(len(later))
    mixed[later] = np.random.default_rng(0).permutation(mixed[later])
    others = {name: events[name].take(pa.array(mixed)) for name in ("item_id", "category", "price", "event_type")}
    for name, column in others.items():
        events = events.set_column(events.schema.get_field_index(name), name, column)
    write_dataset(replace(dataset, events=events), moved)
    backfill(moved)
    again = compare_classifiers(moved, CONFIG)
    assert again.split == compared.split
    np.testing.assert_array_equal(again.selection.rows.matrix, compared.selection.rows.matrix)
    for before, after in zip(compared.results, again.results, strict=True):
        np.testing.assert_array_equal(after.selection, before.selection)
        name = "selection_average_precision"
        assert after.figures[name] == before.figures[name]
    # The labels of the test did change: there was something to see.
    assert {a.figures["average_precision"] for a in again.results} != {
        b.figures["average_precision"] for b in compared.results
    }
    # And the test's features are those of before for the same pairs.
    start = compared.split.test.start_us
    same = join_features(moved, compared.test.pairs, "purchase_v1", start)
    np.testing.assert_array_equal(same.matrix, compared.test.rows.matrix)


def test_a_leak_put_in_on_purpose_raises_the_metric(shop: Settings, compared: Comparison) -> None:
    """The canary: features as of the end of the label window know the answer, and the figures show it."""
    log, names = log_of(shop), feature_list("purchase_v1")
    learn = compared.split.rolling[-2]
    table = offline_item_table(AsOfReader(shop, learn.start_us), learn.start_us)
    pairs = draw_pairs(log, table, learn, "purchase", CONFIG.judge, [3])
    train = join_features(shop, pairs, "purchase_v1", learn.end_us)
    select = join_features(shop, compared.selection.pairs, "purchase_v1", compared.selection.window.end_us)
    kind = next(c for c in CLASSIFIERS if c.name == "LightGBM")
    score = kind.fit(train, names, 11, 1, CONFIG.effort).score(select.matrix)
    leaking = Ordered.by(score, select.label).areas(select.weight.astype(float))[0]
    honest = max(result.figures["selection_average_precision"] for result in compared.results)
    assert honest < 0.5
    assert leaking > 0.9


def test_all_rows_share_weekday_and_hour(compared: Comparison) -> None:
    """So a model cannot tell cuts apart by the clock, and asks nothing of it at the hour of a request."""
    names = feature_list("purchase_v1")
    for rows in (compared.selection.rows, compared.test.rows):
        for name in ("f_hour_of_day", "f_day_of_week"):
            assert (rows.matrix[:, names.index(name)] == compared.test.rows.matrix[0, names.index(name)]).all()


# --- the metrics ----------------------------------------------------------------------------------------------------

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


# --- the comparison -------------------------------------------------------------------------------------------------


def test_every_classifier_beats_chance_and_the_counts_add_up(compared: Comparison) -> None:
    pairs = compared.test.pairs
    assert [r.classifier.name for r in compared.results] == [c.name for c in CLASSIFIERS]
    for result in compared.results:
        f = result.figures
        assert f["average_precision_low"] > pairs.bought / pairs.population
        assert f["roc_auc"] > 0.6
        assert f["tp"] + f["fn"] == pytest.approx(pairs.bought, rel=1e-5)
        assert f["tp"] + f["fp"] + f["tn"] + f["fn"] == pytest.approx(pairs.population, rel=1e-5)
        assert ((result.probability >= 0) & (result.probability <= 1)).all()
        assert f["inference_ms_per_row"] > 0


def test_probabilities_are_those_of_the_population(compared: Comparison) -> None:
    """On the window it was calibrated on, the mean probability is the share that is bought; no mean over the sample."""
    rows, pairs = compared.selection.rows, compared.selection.pairs
    for result in compared.results:
        predicted = result.calibration(result.model.score(rows.matrix))
        assert np.average(predicted, weights=rows.weight) == pytest.approx(pairs.bought / pairs.population, rel=0.02)


def test_two_runs_give_the_same_table(shop: Settings, compared: Comparison) -> None:
    """The same rows are drawn, and give the same figures; only the times differ."""
    number = len(compared.split.rolling) + 1
    test = judged_rows(shop, CONFIG, log_of(shop), compared.split.test, CONFIG.judge, number)
    np.testing.assert_array_equal(test.rows.matrix, compared.test.rows.matrix)
    timed = {"training_seconds", "inference_ms_per_row"}
    for before in compared.results:
        after = comparing.judge(before.classifier, compared.train, compared.selection, test, shop, CONFIG)
        assert {k: v for k, v in after.figures.items() if k not in timed} == {
            k: v for k, v in before.figures.items() if k not in timed
        }


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


def test_a_window_without_purchases_is_said(shop: Settings) -> None:
    with pytest.raises(BadInputError, match="there is nothing to learn or judge by"):
        compare_classifiers(shop, replace(CONFIG, target="like"))
    with pytest.raises(BadInputError, match="take a shorter one"):
        compare_classifiers(shop, replace(CONFIG, horizon_days=100.0))


def test_the_winner_may_be_served(compared: Comparison) -> None:
    assert compared.winner.classifier.suffix in {".cbm", ".txt", ".json"}
    assert comparing.by_average_precision(compared)[0].figures["average_precision"] == max(
        r.figures["average_precision"] for r in compared.results
    )
