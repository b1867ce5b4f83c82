"""The purchase score: what its rows are, that nothing of the future is in them, and how classifiers are compared."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import Dataset, load_dataset, read_events, write_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.materialize import materialize
from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.training_frame import training_frame
from feature_repo.views import DAY_US
from serving.bundle import MANIFEST, load_bundle, write_manifest
from serving.cascade.purchase import CALIBRATION_FILE, GOLDEN_FILE, MODEL_FILES
from serving.feature_reads import FeatureReads
from serving.item_table_source import ItemTableSource
from serving.metrics import Metrics
from serving.redis_client import RedisGuard, connect
from serving.score import ScoreService
from serving.state import Release, ServingState
from serving.warm_up import warm_up
from tests.running_api import RunningApi, open_shop, plan_for, wait_until
from tests.tiny_bundle import Shop, make_bundle, make_shop, small_line_up
from training import compare_classifiers as comparing
from training.candidate_rows import Sampling
from training.classifier_metrics import Ordered
from training.classifiers import CLASSIFIERS
from training.compare_classifiers import CompareConfig, Comparison, Result, compare_classifiers, judged_rows
from training.npz import write_npz
from training.offline_table import offline_item_table
from training.purchase_rows import Draw, draw_pairs, join_features
from training.rankers.catboost_ranker import CatBoostParams
from training.save_purchase import read_purchase, save_purchase
from training.split import WEEK_US, Log, Split, split_by_horizon
from training.train import TrainConfig, train

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


# --- served ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Shop:
    return make_shop(1_770_000_000_000_000)


def keep(shop: Settings, compared: Comparison, kind: str, home: Path) -> tuple[Result, Path]:
    """Keep the model of one kind as if it had won."""
    winner = next(r for r in compared.results if r.classifier.name == kind)
    settings = replace(shop, home=home)
    return winner, save_purchase(settings, replace(compared, winner=winner), "hash")


@pytest.mark.parametrize("kind", ["CatBoost", "LightGBM", "XGBoost"])
def test_a_bundle_carries_the_purchase_model(
    shop: Settings, compared: Comparison, tiny: Shop, kind: str, tmp_path: Path
) -> None:
    """Every format that may be served comes back as the same numbers, and equal models as equal bundles."""
    winner, kept = keep(shop, compared, kind, tmp_path)
    bundle_id = make_bundle(tmp_path / "bundles", tiny, purchase=kept)
    bundle = load_bundle(tmp_path / "bundles" / bundle_id)
    assert bundle.purchase is not None
    rows = compared.test.rows.matrix
    np.testing.assert_array_equal(bundle.purchase.ranker.score(rows), winner.score)
    np.testing.assert_array_equal(bundle.purchase.ranker.probability(winner.score), winner.probability)
    assert load_bundle(tmp_path / "bundles" / make_bundle(tmp_path / "bundles", tiny)).purchase is None
    _, again = keep(shop, compared, kind, tmp_path / "again")
    assert make_bundle(tmp_path / "bundles", tiny, purchase=again) == bundle_id
    with pytest.raises(BadInputError, match="the model takes 53 features, the matrix has 52"):
        bundle.purchase.ranker.score(rows[:, 1:])
    warm_up(bundle, tiny.table())


def test_training_takes_the_purchase_model_along(shop: Settings, compared: Comparison, tmp_path: Path) -> None:
    """The trained bundle carries it; one that is not there is said before any work."""
    _, kept = keep(shop, compared, "LightGBM", tmp_path)
    quick = TrainConfig(
        windows=1,
        candidates=30,
        line_up=small_line_up(factors=8, iterations=2),
        ranker=CatBoostParams(iterations=10),
        sampling=Sampling(10, 10),
    )
    carried = train(shop, quick, "hash", purchase=kept).bundle
    assert carried.purchase is not None
    assert carried.manifest["purchase"]["kind"] == "lightgbm"
    assert carried.manifest["purchase"]["trained_until_us"] <= carried.manifest["trained_until_us"]
    with pytest.raises(NotFoundError, match="larder compare classifiers"):
        train(shop, quick, "hash", purchase=tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["CatBoost", "LightGBM", "XGBoost"])
def test_a_changed_purchase_model_is_refused(
    shop: Settings, compared: Comparison, tiny: Shop, kind: str, tmp_path: Path
) -> None:
    _, kept = keep(shop, compared, kind, tmp_path)
    directory = tmp_path / "bundles" / make_bundle(tmp_path / "bundles", tiny, purchase=kept)
    manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
    model = directory / MODEL_FILES[manifest["purchase"]["kind"]]
    # A file cut short never reaches its parser: LightGBM's would end the process.
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match=f"{model.name} has"):
        load_bundle(directory)
    model.write_bytes(whole)
    # Other golden scores, sealed again: the model does not give them.
    with np.load(directory / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    write_npz(directory / GOLDEN_FILE, matrix=arrays["matrix"], score=arrays["score"] + 0.1)
    manifest.pop("files")
    write_manifest(directory, manifest)
    with pytest.raises(BadInputError, match="golden rows score differently"):
        load_bundle(directory)
    # Another definition of its features, an unknown kind.
    for change in ({"feature_service_hash": "0" * 16}, {"kind": "pickle"}):
        write_manifest(directory, manifest | {"purchase": manifest["purchase"] | change})
        with pytest.raises(BadInputError):
            load_bundle(directory)
    # What is kept is checked before it is taken along.
    with pytest.raises(BadInputError, match="learned from the test window"):
        read_purchase(kept, compared.selection.window.end_us - 1)
    (kept / CALIBRATION_FILE).write_bytes(b"")
    with pytest.raises(BadInputError, match="was changed"):
        read_purchase(kept, 2**62)
    with pytest.raises(NotFoundError, match="larder compare classifiers"):
        read_purchase(tmp_path / "nothing", 2**62)


async def test_the_api_scores_as_the_training_frame_does(
    shop: Settings, compared: Comparison, tiny: Shop, settings: Settings, tmp_path: Path
) -> None:
    """Features read from Redis at a moment give the probabilities of the offline rows at that moment, bit for bit."""
    winner, kept = keep(shop, compared, "LightGBM", tmp_path)
    bundle = load_bundle(tmp_path / "bundles" / make_bundle(tmp_path / "bundles", tiny, purchase=kept))
    live = replace(settings, home=shop.home, project=shop.project)
    materialize(live)
    now_us = compared.split.test.end_us + 3_600_000_000
    client = connect(live)
    reader = AsyncOnlineReader(client, live.project)
    state = ServingState(ItemTableSource(reader, lambda: now_us))
    await state.items.refresh()
    state.release = Release(plan_for(bundle.bundle_id), bundle)
    service = ScoreService(state, FeatureReads(reader, RedisGuard(5.0), Metrics()), lambda: now_us)
    pairs = compared.test.pairs
    some = np.sort(np.random.default_rng(0).choice(len(pairs.users), 300, replace=False))
    wanted = [*zip(pairs.users[some], pairs.items[some], strict=True), ("nobody", pairs.items[0])]
    answer = await service.score([*wanted, (pairs.users[0], "nothing")])
    await client.aclose()
    frame = pd.DataFrame(wanted, columns=["user_id", "item_id"])
    frame["event_timestamp"] = pd.Timestamp(now_us, unit="us", tz="UTC")
    matrix = training_frame(frame, "purchase_v1", shop)[list(feature_list("purchase_v1"))].to_numpy(np.float32)
    expected = winner.calibration(winner.model.score(np.ascontiguousarray(matrix)))
    assert [score.probability for score in answer.scores[:-1]] == expected.tolist()
    assert len(set(expected.tolist())) > 10  # isotonic steps
    assert (answer.scored_by, answer.level) == ("purchase", "full")
    assert answer.horizon_days == pytest.approx((compared.test.window.end_us - compared.test.window.start_us) / DAY_US)
    assert answer.scores[-1].reasons == ["unknown_item"]
    assert 0.0 <= answer.scores[-1].probability <= 1.0


def test_without_a_purchase_model_the_ranker_scores(settings: Settings, redis_url: str) -> None:
    """As before, and the answer says so."""
    with redis.Redis.from_url(redis_url) as client:
        open_shop(settings, client)
        with RunningApi(settings) as api:
            wait_until(lambda: api.ready()["status"] == "ready")
            body = {"pairs": [{"user_id": "u00001", "item_id": "i00001"}]}
            answer = api.http.post("/v1/score", json=body).json()
    assert (answer["scored_by"], answer["horizon_days"]) == ("ranker", None)
