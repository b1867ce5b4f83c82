"""Training, gate and promotion on a small simulated shop, with a real Redis and a real MLflow server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis

from deployment.promotion import ControlPlane
from deployment.registry import Registry
from deployment.thresholds import override_path
from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, read_events, write_dataset
from feature_repo.errors import BadInputError
from feature_repo.materialize import materialize
from feature_repo.online_keys import watermark_key
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.store import apply
from feature_repo.training_frame import training_frame
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.bundle import load_bundle
from serving.plan import decode_plan, load_plan, plan_key
from serving.signature import signing_key
from tests.tiny_bundle import small_line_up
from training.grading import Segment, grade
from training.offline_table import offline_item_table
from training.rankers.catboost_ranker import CatBoostParams
from training.rec_files import project_events, read_recs, write_slates
from training.split import Log
from training.tracking import Registered, register_training
from training.train import TrainConfig, TrainResult, train

SMALL = TrainConfig(
    windows=2,
    line_up=small_line_up(factors=16, iterations=5),
    ranker=CatBoostParams(iterations=80),
)


@dataclass(frozen=True)
class Trained:
    """A shop with a model registered in MLflow."""

    settings: Settings
    result: TrainResult
    registered: Registered


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, redis_server: RunningService, mlflow_server: str) -> Trained:
    settings = Settings(
        home=tmp_path_factory.mktemp("training"),
        project="small",
        redis_port=redis_server.port,
        redis_timeout_ms=1000,
        mlflow_tracking_uri=mlflow_server,
    )
    write_dataset(load_dataset("simulator", settings, n_events=60_000, end=datetime(2026, 3, 1, tzinfo=UTC)), settings)
    backfill(settings)
    apply(settings)
    # 323 users cannot tell a model of another seed from one 5 % worse: the interval alone is as wide as that.
    override_path(settings).write_text("ndcg_margin_share = 0.15\n", "utf-8")
    result = train(settings, SMALL, "hash-of-the-data")
    return Trained(settings, result, register_training(settings, result))


@pytest.fixture(autouse=True)
def online(trained: Trained) -> Iterator[None]:
    """Other test files flush the shared Redis: fill it again where needed."""
    with redis.Redis(HOST, trained.settings.redis_port) as client:
        if not client.exists(watermark_key(trained.settings.project)):
            materialize(trained.settings)
    yield


def test_the_two_stage_model_beats_simple_baselines(trained: Trained) -> None:
    """The interval of the paired gain lies above zero, on a window nothing was learned from."""
    evaluation = trained.result.evaluation
    assert evaluation.paired("popularity_7d")[1] > 0
    assert evaluation.auc.mean() > 0.85
    assert 0.0 < evaluation.flat()["warm.two_stage.diversity_at_10"] < 1.0
    assert evaluation.window.start_us == trained.result.split.test.start_us
    assert all(w.end_us <= evaluation.window.start_us for w in trained.result.split.rolling)


def test_training_again_gives_the_same_bundle(trained: Trained, tmp_path: Path) -> None:
    """Same seed and data, same `bundle_id`."""
    home = tmp_path / "again"
    shutil.copytree(trained.settings.home, home)
    shutil.rmtree(home / "small" / "bundles")
    again = train(replace(trained.settings, home=home), SMALL, "hash-of-the-data")
    assert again.bundle.bundle_id == trained.result.bundle.bundle_id


def test_moving_the_data_by_weeks_changes_no_figure(trained: Trained, tmp_path: Path) -> None:
    """Features are differences of times: the same shop ten weeks later trains to the same model (decision 3)."""
    later = replace(trained.settings, home=tmp_path / "later")
    write_dataset(load_dataset("simulator", later, n_events=60_000, end=datetime(2026, 5, 10, tzinfo=UTC)), later)
    backfill(later)
    moved = train(later, SMALL, "hash-of-the-data")
    assert moved.evaluation.flat() == trained.result.evaluation.flat()
    ranker = "ranker.cbm"
    assert (moved.directory / ranker).read_bytes() == (trained.result.directory / ranker).read_bytes()


def test_training_frame_and_cascade_see_the_same_numbers(trained: Trained) -> None:
    """Feast's point-in-time join and the serving code's assembly give the same float32, bit for bit."""
    window = trained.result.split.test
    reader = AsOfReader(trained.settings, window.start_us)
    table = offline_item_table(reader, window.start_us)
    recommender = trained.result.bundle.recommender
    log = Log.of(
        read_events(trained.settings, columns=["user_id", "item_id", "event_type", "event_timestamp", "received_at"])
    )
    for user_id in [*list(log.targets(window, "purchase"))[:20], "nobody"]:
        user = reader.user(user_id, window.start_us)
        found = recommender.draft(user, table, window.start_us, k=20).candidates.items
        items = found if len(found) else np.arange(50, dtype=np.int32)  # a stranger has no candidates
        item_ids = [table.ids[i] for i in items]
        pairs = reader.pairs(user_id, item_ids, window.start_us)
        matrix = recommender.matrix(user, table, items, pairs, np.empty((len(items), 0), np.float32), window.start_us)
        moment = pd.Timestamp(window.start_us, unit="us", tz="UTC")
        entities = pd.DataFrame({"user_id": user_id, "item_id": item_ids, "event_timestamp": moment})
        frame = training_frame(entities, "ranking_v1", trained.settings)
        names = list(feature_list("ranking_v1"))
        np.testing.assert_array_equal(frame[names].to_numpy(np.float32), matrix[:, : len(names)])


@pytest.mark.parametrize("model", ["two_stage", "own_history", "als"])
def test_lists_in_a_file_are_graded_like_the_model_itself(trained: Trained, tmp_path: Path, model: str) -> None:
    """`larder evaluate` on the lists a training wrote gives the figures of the training, intervals included."""
    evaluation = trained.result.evaluation
    write_slates(tmp_path, evaluation.slates)
    events = project_events(trained.settings)
    reader = AsOfReader(trained.settings, evaluation.window.start_us)
    catalogue = pa.array(offline_item_table(reader, evaluation.window.start_us).ids)

    def graded(name: str, repeats: Literal["keep", "drop"]) -> dict[str, Segment]:
        recs = {model: read_recs(tmp_path / f"{name}.parquet")}
        window, seed = evaluation.window, evaluation.seed
        return grade(events, recs, window, catalogue=catalogue, repeats=repeats, seed=seed).segments

    found = graded(model, "keep")
    found["new_items"] = graded(f"{model}-new-items", "drop")["warm"]
    expected = {row["segment"]: row for row in evaluation.table() if row["model"] == model}
    assert set(found) == set(expected) == {"warm", "new_items", "cold"}
    for name, segment in found.items():
        assert segment.users == expected[name]["users"]
        for metric in ("ndcg@10", "recall@20", "map@10"):
            one, row = segment.figures[model][metric], expected[name]
            assert one.value == row[metric], (name, metric)
            assert (one.low, one.high) == pytest.approx((row[f"{metric}_low"], row[f"{metric}_high"]), abs=1e-12)
    assert found["warm"].figures[model]["coverage@10"].value == evaluation.coverage[model]


def test_mlflow_has_everything(trained: Trained) -> None:
    """Parameters, figures, plots and the bundle are with the run, and the version names the bundle."""
    from training.tracking import client

    mlflow = client(trained.settings)
    run = mlflow.get_run(trained.registered.run_id)
    assert run.data.params["data_hash"] == "hash-of-the-data"
    assert run.data.metrics["gain_over_own_history"] == pytest.approx(
        trained.result.evaluation.paired("own_history")[0]
    )
    files = {f.path for folder in ("bundle", "plots") for f in mlflow.list_artifacts(trained.registered.run_id, folder)}
    assert {"bundle/manifest.json", "bundle/ranker.cbm", "plots/models.png", "plots/calibration.png"} <= files
    version = Registry(trained.settings).version(None)
    assert version.bundle_id == trained.result.bundle.bundle_id


def test_gate_promote_and_roll_back(trained: Trained) -> None:
    """The alias moves on a passing verdict only; rolling back returns to the version before."""
    settings = trained.settings
    plane = ControlPlane(settings)
    promotion = plane.promote("1", why="first")
    assert promotion.plan is not None, promotion.verdict.lines()
    assert promotion.unpublished == []
    assert plane.registry.version("1").aliases == ("champion",)
    assert plane.registry.version("1").verdict == "passed"

    second = register_training(settings, _retrained(trained))
    assert plane.promote(second.version, why="second").plan is not None
    plan, failed = plane.rollback(why="test")
    assert (plan.stable.model_version, plan.epoch, failed) == ("1", 3, [])
    assert load_plan(settings.plan_path, signing_key(settings)) == plan
    with redis.Redis(HOST, settings.redis_port) as client:
        published = client.get(plan_key(settings.project))
    assert published is not None and decode_plan(published, signing_key(settings)) == plan
    assert plane.registry.version("1").aliases == ("champion",)
    actions = [entry.action for entry in plane.store.ledger()]
    assert actions == ["rollback", "promote", "verdict", "promote", "verdict"]


def test_a_changed_artefact_is_refused(trained: Trained) -> None:
    """A version whose stored bundle was changed fails on integrity and moves nothing."""
    settings = replace(trained.settings, home=trained.settings.home.parent / "tampered")
    shutil.copytree(trained.settings.home, settings.home, dirs_exist_ok=True)
    model = settings.bundles_dir / trained.result.bundle.bundle_id / "ranker.cbm"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(BadInputError, match="sha256"):
        load_bundle(model.parent)
    plane = ControlPlane(settings)
    before = plane.store.plan()
    verdict = plane.judge(plane.registry.version("1"))
    assert not verdict.passed and "sha256" in verdict.checks[0].explanation
    assert plane.store.plan() == before


def _retrained(trained: Trained) -> TrainResult:
    """Train another model: other seed, other bundle."""
    return train(replace(trained.settings, seed=5), SMALL, "hash-of-the-data")
