"""From registration to an end, on real processes under load: the better model wins, each bad one is stopped in time.

Redis, MLflow, ingest, API, gate and controller are processes of their own; simulated people ask all the time, click by
the simulator's truth, and none of them may meet an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from deployment.promotion import ControlPlane
from deployment.register_model import register_model
from deployment.registry import Registry
from deployment.rollout.profile_file import profile_path
from deployment.thresholds import override_path
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from larder.services.ports import any_free_port
from larder.services.process import Service
from larder.services.stack import Stack, project_service, settings_env
from larder.story.prepare import Clock, prepare_champion, prepare_features, train_and_register
from larder.story.rollout_teller import Ended, RolloutTeller, judge_again, open_gate, shoppers, start_controller
from larder.story.weighted import register_weighted
from tests.misbehaving_candidate import FILE
from training.tracking import log_evaluation

#: Everything that a rollout needs, and nine of them: some minutes.
pytestmark = pytest.mark.faults
EVENTS = 60_000
RATE = 40.0
#: The demonstration's profile with a larger first step, which concludes sooner at this rate, and narrower margins: what
#: misbehaves only after a while must not be through by then.
PROFILES = """\
[demo.margins]
error = 0.06
fallback = 0.08
slow = 0.15
non_finite = 0.06
empty = 0.06
[[demo.steps]]
weight = 3000
requests = 60
minutes = 0.1
[[demo.steps]]
weight = 5000
requests = 120
minutes = 0.1
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A shop with a small champion, served, with a controller that judges and rolls out."""
    settings = Settings(
        home=tmp_path_factory.mktemp("end_to_end"), project="simulator", redis_port=any_free_port(),
        mlflow_port=any_free_port(), api_port=any_free_port(), admin_port=any_free_port(),
        redis_timeout_ms=1000, canary_timeout_ms=500,
    )  # fmt: skip
    clock = Clock()
    with Stack(settings) as stack:
        data_hash = prepare_features(stack.settings, "simulator", clock, {"n_events": EVENTS})
        profile_path(stack.settings).write_text(PROFILES, "utf-8")
        # So few users say little: these floors would be a matter of luck.
        floors = "slice_drop = 0.2\nbaseline_gain = -0.05\naverage_precision = -0.05\nndcg_margin_share = 0.2\n"
        override_path(stack.settings).write_text(floors, "utf-8")
        prepare_champion(stack, data_hash, clock, windows=1, retrain=False, sample=True)
        stack.start(project_service(stack.settings, "ingest", ["ingest", "run"], ready=lambda _port: True))
        stack.start(api(stack.settings))
        start_controller(stack)
        yield stack


def api(settings: Settings) -> Service:
    def ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    return Service(
        name=f"api-{settings.project}",
        command=lambda port: [sys.executable, "-m", "tests.serving_entry", "serve", "--port", str(port)],
        ready=ready,
        port=settings.api_port,
        env=settings_env(settings),
    )


@pytest.fixture
def behave(stack: Stack) -> Iterator[Path]:
    """The file that says how candidates behave; they are well where there is none."""
    path = stack.settings.root / FILE
    yield path
    path.unlink(missing_ok=True)


def rolled_out(stack: Stack, weight: float, *, gate_is_open: bool = False) -> tuple[Ended, list[str]]:
    """Register the champion's ranker, weighted, while people ask; return how it ended and what the ledger said."""
    settings, said = stack.settings, list[str]()
    teller = RolloutTeller(settings, said.append)
    with shoppers(stack, RATE) as met:
        version = register_weighted(settings, settings.bundles_dir / teller.champion, weight)
        if gate_is_open:
            assert teller.follow(version).state == "rejected"
            with open_gate(settings):
                judge_again(settings, version, "test")
        ended = teller.follow(version, longest_s=300.0)
    nobody_noticed(met)
    return ended, said


def nobody_noticed(met: dict[str, float]) -> None:
    assert met["visits"] > 5
    assert (met["server_errors"], met["failed"]) == (0, 0), met


def champion(stack: Stack) -> str:
    plan = ControlPlane(stack.settings).store.plan()
    assert plan is not None
    return plan.stable.model_version


def test_a_better_model_becomes_the_champion_by_itself(stack: Stack) -> None:
    said = list[str]()
    teller = RolloutTeller(stack.settings, said.append)
    version, _ = train_and_register(stack.settings, "0" * 64, Clock(), windows=2)
    with shoppers(stack, RATE) as met:
        ended = teller.follow(version, longest_s=300.0)
    assert ended.state == "champion", said
    assert champion(stack) == version
    assert [word for word in ("verdict", "rollout_start", "rollout_step", "promote") if word in " ".join(said)] == [
        "verdict", "rollout_start", "rollout_step", "promote",
    ]  # fmt: skip
    nobody_noticed(met)


@pytest.mark.parametrize(
    ("kind", "weight", "state", "reason"),
    [
        ("slow", 1.01, "shadow", "shadow"),
        ("failing", 1.02, "shadow", "shadow"),
        ("hanging", 1.03, "shadow", "shadow"),
        ("late slow", 1.04, "canary", "worse than the baseline"),
        ("late failing", 1.05, "canary", "worse than the baseline at error"),
        ("late dying", 1.06, "canary", "worse than the baseline"),
    ],
)
def test_what_passes_the_gate_and_misbehaves_goes_back(
    stack: Stack, behave: Path, kind: str, weight: float, state: str, reason: str
) -> None:
    behave.write_text(kind, "utf-8")
    before = champion(stack)
    ended, said = rolled_out(stack, weight)
    assert ended.state == "rolled_back", said
    assert reason in ended.why
    reached = {one.state for one in RolloutTeller(stack.settings).status().history}
    assert ("canary" in reached) == (state == "canary"), said
    assert champion(stack) == before


def test_what_people_click_less_goes_back(stack: Stack) -> None:
    """The gate stops it offline; where somebody opens the gate, the canary does by clicks."""
    before = champion(stack)
    ended, said = rolled_out(stack, -1.0, gate_is_open=True)
    assert ended.state == "rolled_back", said
    assert "click" in ended.why or "ctr" in ended.why
    assert champion(stack) == before


@pytest.mark.parametrize(("what", "check"), [("nan", "finite"), ("features", "feature")])
def test_what_is_no_good_model_stops_at_the_gate(stack: Stack, tmp_path: Path, what: str, check: str) -> None:
    """Scores that are no numbers, and a wrong feature list: users never meet them, not even as a shadow."""
    settings, said = stack.settings, list[str]()
    before, teller = champion(stack), RolloutTeller(stack.settings, said.append)
    _, run_id = log_evaluation(settings, what, {}, {}, [bad_file(tmp_path, what)])
    with shoppers(stack, RATE) as met:
        version = register_model(settings, Registry(settings), run_id, "ranking_v1")
        ended = teller.follow(version)
    assert ended.state == "rejected"
    assert "rollout_start" not in " ".join(said)
    assert check in " ".join(said)
    assert champion(stack) == before
    nobody_noticed(met)


def bad_file(directory: Path, what: str) -> Path:
    """Train a small CatBoost on noise: on other features, or with leaves that are no numbers."""
    from catboost import CatBoostClassifier

    names = list(feature_list("ranking_v1"))
    names = names[::-1] if what == "features" else names
    rng = np.random.default_rng(5)
    matrix = rng.random((300, len(names))).astype(np.float32)
    model = CatBoostClassifier(iterations=5, depth=2, verbose=False, allow_writing_files=False)
    from catboost import Pool

    model.fit(Pool(matrix, matrix[:, 0] > 0.5, feature_names=names))
    if what == "nan":
        model.set_leaf_values(np.full(len(model.get_leaf_values()), np.nan))
    path = directory / "ranker.cbm"
    model.save_model(str(path))
    return path
