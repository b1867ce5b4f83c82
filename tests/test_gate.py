"""The gate on a small shop, with a real Redis, a real MLflow server and real models: good, bad and hostile ones."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis

import deployment.compose_bundle
import deployment.gate_worker
from deployment.gate_worker import GateWorker
from deployment.promotion import ControlPlane
from deployment.register_model import register_model
from deployment.registry import Registry, Version
from deployment.sealed_verdict import open_verdict
from deployment.verdict import Verdict
from deployment.verdict_files import verdict_path
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.materialize import materialize
from feature_repo.online_keys import watermark_key
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.bundle import load_bundle, read_manifest
from serving.cascade.ranker import FirstColumns
from serving.signature import signing_key
from tests.gated_shop import CONFIG, GatedShop, make_gated_shop
from training.candidate_frame import candidate_frame, training_cuts
from training.tracking import client

#: Hostile and damaged artefacts against real processes, on a trained shop: minutes.
pytestmark = pytest.mark.faults

KEPT = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, redis_server: RunningService, mlflow_server: str) -> GatedShop:
    return make_gated_shop(
        Settings(
            home=tmp_path_factory.mktemp("gate"),
            project="gated",
            redis_port=redis_server.port,
            redis_timeout_ms=1000,
            mlflow_tracking_uri=mlflow_server,
        )
    )


@pytest.fixture(autouse=True)
def around(shop: GatedShop) -> Iterator[None]:
    """Fill the shared Redis again if another file flushed it; a worker's short waits are its process' own."""
    with redis.Redis(HOST, shop.settings.redis_port) as connection:
        if not connection.exists(watermark_key(shop.settings.project)):
            materialize(shop.settings)
    before = {name: os.environ.get(name) for name in KEPT}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def frame(shop: GatedShop) -> pd.DataFrame:
    """What a data scientist trains on."""
    return pd.concat(
        [candidate_frame(cut, settings=shop.settings, config=CONFIG) for cut in training_cuts(shop.settings)]
    )


def columns(frame: pd.DataFrame) -> list[str]:
    return list(frame.columns[frame.columns.get_loc("group") + 1 :])


def lightgbm_text(frame: pd.DataFrame, names: list[str], label: Any, path: Path) -> Path:
    import lightgbm

    params = {"objective": "binary", "num_leaves": 15, "num_threads": 2, "verbosity": -1, "seed": 1}
    lightgbm.train(params, lightgbm.Dataset(frame[names], label), 40).save_model(str(path))
    return path


def logged(shop: GatedShop, path: Path, service: str = "ranking_v1") -> str:
    """Log a file with a run and register it; return the version."""
    mlflow = client(shop.settings)
    run = mlflow.create_run("0").info.run_id
    mlflow.log_artifact(run, str(path))
    return register_model(shop.settings, Registry(shop.settings), run, service)


@pytest.fixture(scope="module")
def worker(shop: GatedShop) -> Iterator[GateWorker]:
    """One for all: its child process is started once."""
    with closing(GateWorker(shop.settings)) as made:
        yield made


def judge(worker: GateWorker, number: str) -> Verdict:
    return worker.judge(worker.version(number))


def stopped_by(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.result == "fail"}


@pytest.fixture(scope="module")
def good(shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """A good ranker that the worker found by itself."""
    path = tmp_path_factory.mktemp("good") / "ranker.txt"
    number = logged(shop, lightgbm_text(frame, columns(frame), frame["label"], path))
    looked = worker.run_once()
    assert [one.version for one in looked.verdicts] == [number] and not looked.problem
    return looked.verdicts[0]


def test_a_good_ranker_is_composed_and_let_through(shop: GatedShop, worker: GateWorker, good: Verdict) -> None:
    """Composed with the champion's generators, judged once, and the verdict is in MLflow."""
    verdict, number = good, good.version
    assert verdict.passed, verdict.lines()
    assert worker.run_once().verdicts == (), "judged once"

    bundle = load_bundle(shop.settings.bundles_dir / verdict.bundle_id)
    champion = shop.result.bundle
    assert bundle.manifest["composed_with"] == champion.bundle_id
    assert bundle.manifest["generators"] == champion.manifest["generators"]
    assert bundle.recommender.policy == champion.recommender.policy
    assert (verdict.champion_version, verdict.feature_service_hash) == ("1", service_hash("ranking_v1"))
    names = {check.name for check in verdict.checks}
    assert {"ndcg_against_champion", "auc", "auc_under_noise", "latency_p95", "memory", "feature_list"} <= names

    version = Registry(shop.settings).version(number)
    assert (version.verdict, version.bundle_id, version.plain) == ("passed", verdict.bundle_id, True)
    assert version.reason == f"passed all {len(verdict.checks)} checks"
    assert open_verdict(verdict_path(shop.settings, number).read_bytes(), signing_key(shop.settings)) == verdict
    files = {one.path for one in client(shop.settings).list_artifacts(version.run_id, "verdict")}
    assert files == {f"verdict/v{number}.{kind}" for kind in ("json", "txt", "html", "signed.json")}


def test_the_same_figures_as_training(shop: GatedShop) -> None:
    """The gate's AUC and nDCG of the champion are those its training reported: one protocol."""
    verdict = open_verdict(verdict_path(shop.settings, "1").read_bytes(), signing_key(shop.settings))
    found = {check.name: check.value for check in verdict.checks}
    assert found["auc"] == pytest.approx(shop.result.evaluation.auc.mean(), abs=1e-12)
    gain = shop.result.evaluation.paired("popularity_7d")[0]
    assert found["ndcg_over_popularity_7d"] == pytest.approx(gain, abs=1e-12)


def test_xgboost_and_the_service_alone(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """UBJSON is served as JSON; a ranker of `training_frame`'s columns alone gets those alone."""
    import xgboost

    names = list(feature_list("ranking_v1"))
    model = xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=2).fit(frame[names], frame["label"])
    model.get_booster().save_model(tmp_path / "ranker.ubj")
    verdict = judge(worker, logged(shop, tmp_path / "ranker.ubj"))
    assert not stopped_by(verdict) & {"security", "feature_list", "non_finite_outputs"}, verdict.lines()
    bundle = load_bundle(shop.settings.bundles_dir / verdict.bundle_id)
    assert bundle.manifest["ranker"] == {"kind": "xgboost", "columns": len(names)}
    assert isinstance(bundle.recommender.ranker, FirstColumns)
    matrix = np.zeros((2, len(bundle.recommender.columns)), np.float32)
    assert bundle.recommender.ranker.contributions(matrix).shape == (2, matrix.shape[1] + 1)
    with pytest.raises(BadInputError, match="columns"):
        bundle.recommender.ranker.score(matrix[:, :-1])


@pytest.mark.parametrize("kind", ["permuted", "no names"])
def test_a_wrong_feature_list_is_stopped(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path, kind: str
) -> None:
    """By the feature list, before anything is measured; missing and extra columns: test_verdict.py."""
    path = lightgbm_text(frame, columns(frame)[::-1], frame["label"], tmp_path / "ranker.txt")
    if kind == "no names":
        names = " ".join(f"Column_{i}" for i in range(len(columns(frame))))
        lines = path.read_text().splitlines()
        path.write_text("\n".join(f"feature_names={names}" if one.startswith("feature_n") else one for one in lines))
    verdict = judge(worker, logged(shop, path))
    assert stopped_by(verdict) == {"feature_list"} and len(verdict.checks) == 1


def test_random_scores_are_stopped_by_quality(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """A model of shuffled labels ranks at random."""
    label = np.random.default_rng(1).permutation(frame["label"].to_numpy())
    verdict = judge(worker, logged(shop, lightgbm_text(frame, columns(frame), label, tmp_path / "ranker.txt")))
    assert "auc" in stopped_by(verdict)
    assert Registry(shop.settings).version(verdict.version).verdict == "failed"


def test_nan_scores_are_stopped_by_outputs(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """A model whose leaves are NaN never reaches a list."""
    path = lightgbm_text(frame, columns(frame), frame["label"], tmp_path / "ranker.txt")
    lines = [
        f"leaf_value={' '.join(['nan'] * len(line.split()))}" if line.startswith("leaf_value=") else line
        for line in path.read_text().splitlines()
        if not line.startswith("tree_sizes=")
    ]
    path.write_text("\n".join(lines) + "\n")
    assert stopped_by(judge(worker, logged(shop, path))) == {"non_finite_outputs"}


def test_a_model_of_another_kind_ends_in_a_verdict_and_data_that_cannot_be_read_in_none(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three scores a row fit nowhere, and no check foresaw that; without the project's events nothing is judged."""
    import catboost

    names = columns(frame)
    model = catboost.CatBoostClassifier(loss_function="MultiClass", iterations=5, verbose=0, allow_writing_files=False)
    model.fit(frame[names], np.arange(len(frame)) % 3)
    model.save_model(str(tmp_path / "ranker.cbm"))
    number = logged(shop, tmp_path / "ranker.cbm")

    def away(*_: Any) -> None:
        raise KeyError("event_type")

    with monkeypatch.context() as patch:
        patch.setattr(deployment.compose_bundle, "validation_rows", away)
        looked = worker.run_once()
    assert looked.verdicts == () and looked.waiting[0][0] == number and "validation rows" in looked.waiting[0][1]
    (verdict,) = worker.run_once().verdicts
    assert stopped_by(verdict) == {"error_in_composing"} and not verdict.bundle_id
    assert re.match(r"\w+Error: .+", verdict.checks[0].explanation)


class _Canary:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "loader module",
        "code folder",
        "traversal",
        "huge",
    ],
)
def test_hostile_artefacts_run_nothing(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path, kind: str
) -> None:
    """Registered by plain MLflow, each is refused by the security check, and the canary was not touched."""
    canary, folder = tmp_path / "canary", tmp_path / "model"
    folder.mkdir()
    lightgbm_text(frame, columns(frame), frame["label"], folder / "model.txt")
    loader, data, code = "mlflow.lightgbm", "model.txt", ""
    if kind == "pickle":
        (folder / "python_model.pkl").write_bytes(pickle.dumps(_Canary(canary)))
    elif kind == "loader module":
        loader = "evil"
    elif kind == "code folder":
        (folder / "code").mkdir()
        (folder / "code" / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
        code = "    code: code\n"
    elif kind == "traversal":
        data = "../../../../etc/passwd"
    else:
        with (folder / "model.txt").open("ab") as out:
            out.write(b"\0" * (3 << 20))
        (shop.settings.root / "thresholds.toml").write_text(
            (shop.settings.root / "thresholds.toml").read_text() + "model_mb = 2\n"
        )
    mlmodel = f"flavors:\n  python_function:\n    loader_module: {loader}\n    data: {data}\n{code}"
    (folder / "MLmodel").write_text(mlmodel)
    mlflow = client(shop.settings)
    run = mlflow.create_run("0")
    mlflow.log_artifacts(run.info.run_id, str(folder), "model")
    tags = {"larder.feature_service": "ranking_v1"}
    source = f"{run.info.artifact_uri}/model"
    number = mlflow.create_model_version(shop.settings.model_name, source, run.info.run_id, tags=tags).version
    verdict = judge(worker, str(number))
    assert stopped_by(verdict) == {"security"} and len(verdict.checks) == 1
    assert not verdict.bundle_id and not canary.exists()
    if kind == "huge":
        text = (shop.settings.root / "thresholds.toml").read_text()
        (shop.settings.root / "thresholds.toml").write_text(text.replace("model_mb = 2\n", ""))
        assert "bytes" in verdict.checks[0].explanation


def test_a_judged_ranker_serves_by_its_bundle(shop: GatedShop, good: Verdict) -> None:
    """Promotion commits the bundle the verdict names, and rolling back works as with any other."""
    plane = ControlPlane(shop.settings)
    promotion = plane.promote(good.version, why="test")
    assert promotion.plan is not None, promotion.verdict.lines()
    assert promotion.plan.stable.bundle_id == promotion.verdict.bundle_id == good.bundle_id
    assert read_manifest(shop.settings.bundles_dir / good.bundle_id)["composed_with"] == shop.result.bundle.bundle_id
    plan, _ = plane.rollback(why="test")
    assert plan.stable.bundle_id == shop.result.bundle.bundle_id


def test_an_artefact_changed_after_its_verdict_changes_nothing(
    shop: GatedShop, worker: GateWorker, good: Verdict, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """What was judged is what serves: the content store's copy, by its hash. Judged again, the change is seen."""
    stored = shop.settings.bundles_dir / good.bundle_id
    before = (stored / "ranker.txt").read_bytes()
    lightgbm_text(frame, columns(frame), 1 - frame["label"], tmp_path / "ranker.txt")
    registry = Registry(shop.settings)
    client(shop.settings).log_artifact(good.run_id, str(tmp_path / "ranker.txt"))
    assert registry.fetch_bundle(registry.version(good.version)) == stored
    assert (stored / "ranker.txt").read_bytes() == before
    assert load_bundle(stored).bundle_id == good.bundle_id
    again = judge(worker, good.version)
    assert stopped_by(again) == {"security"} and "sha256" in again.checks[0].explanation


@pytest.mark.parametrize(
    ("tags", "said"), [({}, "no feature service"), ({"larder.feature_service": "x"}, "no feature")]
)
def test_a_version_without_a_feature_service(shop: GatedShop, worker: GateWorker, tags: Any, said: str) -> None:
    """Nobody guesses what a model was trained on."""
    mlflow = client(shop.settings)
    run = mlflow.create_run("0").info
    number = mlflow.create_model_version(shop.settings.model_name, run.artifact_uri, run.run_id, tags=tags).version
    verdict = judge(worker, str(number))
    assert stopped_by(verdict) == {"feature_list"} and said in verdict.checks[0].explanation


@pytest.mark.parametrize("bundle_id", ["../../elsewhere", "/etc", "0" * 31])
def test_a_bundle_id_that_is_none(shop: GatedShop, worker: GateWorker, bundle_id: str) -> None:
    """A tag is what anybody may write: it names no directory of ours."""
    version = Version("9", "run", bundle_id, "", ())
    with pytest.raises(BadInputError, match="not a bundle id"):
        Registry(shop.settings).fetch_bundle(version)


def test_a_bundle_that_is_not_what_it_says_is_not_kept(shop: GatedShop, tmp_path: Path) -> None:
    """A download that does not verify never enters the content store."""
    settings = replace(shop.settings, home=tmp_path)
    first = Registry(settings).version("1")
    with pytest.raises(BadInputError, match="names bundle"):
        Registry(settings).fetch_bundle(replace(first, bundle_id="0" * 32))
    assert list(settings.bundles_dir.iterdir()) == []
    assert Registry(settings).fetch_bundle(first).name == first.bundle_id


def test_a_ranker_without_a_champion_waits(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """There is nothing to compose it with: no verdict, and the reason says what to do."""
    bare = replace(shop.settings, home=tmp_path / "bare", project="bare")
    mlflow = client(bare)
    run = mlflow.create_run("0").info.run_id
    mlflow.log_artifact(run, str(lightgbm_text(frame, columns(frame), frame["label"], tmp_path / "ranker.txt")))
    number = register_model(bare, Registry(bare), run, "ranking_v1")
    with closing(GateWorker(bare)) as alone:
        looked = alone.run_once()
    assert looked.verdicts == () and looked.waiting[0][0] == number and "larder train" in looked.waiting[0][1]
    with pytest.raises(NotFoundError, match="no run"):
        register_model(bare, Registry(bare), "f" * 32, "ranking_v1")
    with pytest.raises(NotFoundError, match="feature service"):
        register_model(bare, Registry(bare), run, "ranking_v9")


def test_a_verdict_survives_a_lost_connection(
    shop: GatedShop, worker: GateWorker, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow goes away before the verdict is in: it is handed in at the next look, and nothing is measured twice."""
    path = lightgbm_text(frame, columns(frame)[::-1], frame["label"], tmp_path / "ranker.txt")
    number = logged(shop, path)
    write = Registry.write_verdict

    def lost(self: Registry, *args: Any) -> None:
        from feature_repo.errors import UnavailableError

        raise UnavailableError("gone")

    monkeypatch.setattr(Registry, "write_verdict", lost)
    assert worker.run_once().problem == "gone"
    assert Registry(shop.settings).version(number).verdict == ""
    monkeypatch.setattr(Registry, "write_verdict", write)
    monkeypatch.setattr(deployment.gate_worker, "gate", None)
    looked = worker.run_once()
    assert [one.version for one in looked.verdicts] == [number]
    assert Registry(shop.settings).version(number).verdict == "failed"
