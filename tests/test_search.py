"""Search for settings: budget, resuming after a kill, pruning, and the way of the winner into a training."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from typer.testing import CliRunner

from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.errors import BadInputError, ConflictError
from feature_repo.settings import Settings
from larder.cli import app
from larder.session import Session
from training import search_study
from training.line_up import default_line_up
from training.rankers.catboost_ranker import CatBoostParams
from training.sample import sample_of
from training.search import F64, Judge, Step
from training.search_plots import save_search_plot
from training.search_space import SPACE, Choice, Range, defaults
from training.search_study import Budget, SearchStudy, Trial
from training.search_tracking import SearchRuns
from training.settings_file import configured, nested, read_training_settings, settings_text
from training.train import TrainConfig, train

ROOT = Path(__file__).parents[1]
SMALL = TrainConfig(
    windows=1,
    line_up=tuple(one for one in default_line_up() if one.name in ("history", "popular", "similar")),
    ranker=CatBoostParams(iterations=20),
)
SPACE_OF_TWO = {"ranker.depth": Choice((2, 4, 6), 6), "ranker.l2": Range(1.0, 30.0, 5.0)}


class Curve:
    """Stands for a judge: trees of depth 4 are best, every user alike, at once."""

    cuts = (3, 2, 1)

    def __init__(self) -> None:
        self.judged: list[tuple[int, int]] = []

    def judge(self, config: TrainConfig, step: Step = lambda what: None) -> Iterator[F64]:
        assert isinstance(config.ranker, CatBoostParams)
        for cut in self.cuts:
            step(f"cut {cut}")
            self.judged.append((config.ranker.depth, cut))
            yield np.full(5, 0.5 - 0.1 * abs(config.ranker.depth - 4) + 0.001 * np.log(config.ranker.l2))


def study(directory: Path, seed: int = 7, **identity: Any) -> SearchStudy:
    return SearchStudy(directory, identity, SPACE_OF_TWO, seed)


def run(one: SearchStudy, judge: Any, budget: Budget) -> list[Trial]:
    seen: list[Trial] = []
    one.run(judge, SMALL, budget, seen.append)
    return seen


def test_the_budget_holds_the_defaults_come_first_and_bad_trials_end_after_a_cut(tmp_path: Path) -> None:
    judge = Curve()
    one = study(tmp_path)
    seen = run(one, judge, Budget(14))
    assert len(seen) == 14
    assert dict(seen[0].params) == defaults(SPACE_OF_TWO)
    pruned = [trial for trial in seen if trial.pruned]
    assert pruned
    assert all(len(trial.values) == 1 for trial in pruned)
    assert all(len(trial.values) == 3 for trial in seen if not trial.pruned)
    assert len(judge.judged) == sum(len(trial.values) for trial in seen), "pruned cuts were computed"
    found = one.found()
    assert found.best.params["ranker.depth"] == 4
    assert found.gain[0] == pytest.approx(found.best.value - seen[0].value)
    assert found.gain[0] >= 0.19
    assert set(found.importance) == set(SPACE_OF_TWO)
    assert save_search_plot(tmp_path / "plot.png", found).read_bytes().startswith(b"\x89PNG")


def test_the_same_study_goes_on_and_another_protocol_begins_anew(tmp_path: Path) -> None:
    run(study(tmp_path, users=1), Curve(), Budget(3))
    later = study(tmp_path, users=1)
    assert [trial.number for trial in run(later, Curve(), Budget(5))] == [3, 4]
    assert run(study(tmp_path, users=1), Curve(), Budget(5)) == []
    assert study(tmp_path, users=2).trials() == ()
    assert len({trial.params["ranker.l2"] for trial in later.trials()}) == 5, "a resumed study repeats its draws"


def test_the_minutes_hold_within_a_trial_and_what_it_was_at_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(search_study.time, "monotonic", lambda: now[0])

    class Slow(Curve):
        def judge(self, config: TrainConfig, step: Step = lambda what: None) -> Iterator[F64]:
            for values in super().judge(config, step):
                now[0] += 25.0
                yield values

    one = study(tmp_path)
    assert len(run(one, Slow(), Budget(9, minutes=2.0))) == 1  # 75 s each: the second is cut short at 125 s
    cut_short = one._study.get_trials()[1].params
    assert dict(run(study(tmp_path), Curve(), Budget(2))[0].params) == cut_short


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    one = study(tmp_path)
    with one._alone(), pytest.raises(ConflictError, match="another search"):
        run(study(tmp_path), Curve(), Budget(1))


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BadInputError, match=r"larder\[search\]"):
        study(tmp_path)


@given(
    st.fixed_dictionaries({name: st.sampled_from(getattr(one, "values", (0.05, 0.2))) for name, one in SPACE.items()})
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_every_point_of_the_space_is_a_training_and_survives_the_file(tmp_path_factory: Any, flat: Any) -> None:
    config = configured(TrainConfig(), nested(flat))
    path = tmp_path_factory.mktemp("file") / "best.yaml"
    path.write_text(settings_text(nested(flat), "of a test"), "utf-8")
    assert configured(TrainConfig(), read_training_settings(path)) == config
    names = {one.name for one in config.line_up}
    assert ("als_60d" in names) == flat["generators.als_60d"]


def test_the_defaults_of_the_space_are_those_of_a_training() -> None:
    assert configured(TrainConfig(), nested(defaults(SPACE))) == TrainConfig()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target": "view"}, "no setting 'target'"),
        ({"windows": "eight"}, "windows must be of type int"),
        ({"fusion": "best"}, "fusion must be one of 'learned', 'reciprocal'"),
        ({"ranker": {"trees": 5}}, "no setting ranker.trees"),
        ({"ranker": {"kind": "forest"}}, "no ranker 'forest'"),
        ({"generators": {"alz": False}}, "no generator 'alz'"),
        ({"generators": {"als": {"factors": 1.5}}}, "generators.als.factors must be of type int"),
        ({"generators": {one.name: False for one in default_line_up()}}, "every generator is left out"),
    ],
)
def test_what_a_file_cannot_set_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said.replace("(", r"\(")):
        configured(TrainConfig(), values)


def test_a_wrong_file_is_said_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    words = ["--home", str(tmp_path), "train", "--dataset", "simulator", "--settings", str(path)]
    for text, said in (("ranker: {depht: 6}", "no setting ranker.depht"), ("- 1", "by name"), ("a: [", "no YAML")):
        path.write_text(text, "utf-8")
        with pytest.raises(BadInputError, match=said):
            CliRunner().invoke(app, words, obj=Session(), catch_exceptions=False)
    assert [one.name for one in tmp_path.iterdir()] == ["best.yaml"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("search"), project="searched")
    write_dataset(load_dataset("simulator", settings, n_events=9_000), settings)
    backfill(settings)
    return settings


def test_a_judge_fits_generators_once_per_cut_and_never_sees_the_final_one(shop: Settings) -> None:
    judge = Judge(shop, SMALL, cuts=2)
    first = list(judge.judge(SMALL))
    assert len(first) == 2
    assert all(0.0 < one.mean() < 1.0 for one in first)
    fitted = {id(one.past.fit(SMALL.line_up[-1])) for one in judge._known.values()}
    other = replace(SMALL, ranker=CatBoostParams(iterations=20, depth=3))
    again = list(judge.judge(other))
    assert {id(one.past.fit(SMALL.line_up[-1])) for one in judge._known.values()} == fitted
    assert any((a != b).any() for a, b in zip(first, again, strict=True))
    assert [a.tolist() for a in judge.judge(SMALL)] == [a.tolist() for a in first], "not deterministic"
    last = max(window.end_us for window in judge._rolling)
    assert last < int(judge.log.time_us.max()), "the test window is among the cuts"


def test_a_killed_search_goes_on_with_the_trial_it_was_at(tmp_path: Path) -> None:
    child = (
        "import sys, time; from pathlib import Path; from tests.test_search import *\n"
        "class Hangs(Curve):\n"
        "    def judge(self, config, step=None):\n"
        "        for values in super().judge(config):\n"
        "            yield values\n"
        "            if len(self.judged) == 7: Path(sys.argv[1], 'hangs').touch(); time.sleep(600)\n"
        "run(study(Path(sys.argv[1])), Hangs(), Budget(9))\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", child, str(tmp_path)], cwd=ROOT)
    give_up = time.monotonic() + 120.0
    while not (tmp_path / "hangs").exists() and killed.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / "hangs").exists()
    one = study(tmp_path)
    before = one.trials()
    cut_short = one._study.get_trials()[-1].params
    assert cut_short
    seen = run(one, Curve(), Budget(len(before) + 2))
    assert one.trials()[: len(before)] == before
    assert dict(seen[0].params) == cut_short
    assert len(seen) == 2


def test_trials_are_runs_nested_in_one_that_goes_on(tmp_path: Path, mlflow_server: str) -> None:
    settings = Settings(home=tmp_path, project="nested", mlflow_tracking_uri=mlflow_server)
    one = study(tmp_path)
    runs = SearchRuns(settings, one.name, {"cuts": 3}, None)
    one.run(Curve(), SMALL, Budget(2), runs.log_trial)  # type: ignore[arg-type]
    later = SearchRuns(settings, one.name, {"cuts": 3}, runs.run_id)
    one.run(Curve(), SMALL, Budget(3), later.log_trial)  # type: ignore[arg-type]
    later.log_result(one.found(), [save_search_plot(tmp_path / "search.png", one.found())])
    assert later.run_id == runs.run_id
    mlflow = MlflowClient(mlflow_server)
    children = mlflow.search_runs([runs.experiment], f"tags.mlflow.parentRunId = '{runs.run_id}'")
    assert {child.info.run_name for child in children} == {"trial-00000", "trial-00001", "trial-00002"}
    assert all("mean_ndcg_at_10" in child.data.metrics and "ranker.depth" in child.data.params for child in children)
    parent = mlflow.get_run(runs.run_id)
    assert (parent.info.status, parent.data.metrics["trials"]) == ("FINISHED", 3.0)
    assert [file.path for file in mlflow.list_artifacts(runs.run_id, "search")] == ["search/search.png"]
    forgotten = SearchRuns(settings, one.name, {}, "0" * 32)  # another server: a new run
    assert forgotten.run_id != runs.run_id


@pytest.mark.faults  # the whole line-up, twice: half a minute
def test_the_command_searches_and_its_winner_trains(
    shop: Settings, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": str(shop.home), "MLFLOW_TRACKING_URI": mlflow_server, "THREADS": "1"}.items():
        monkeypatch.setenv(f"LARDER_{name}", value)
    words = ["-p", shop.project, "search", "--cuts", "1", "--windows", "1", "--users", "20", "--trials", "2"]
    said = CliRunner().invoke(app, words, obj=Session(), catch_exceptions=False)
    assert said.exit_code == 0
    assert "0 trials done, going on to 2" in said.stdout
    assert "paired gain over the defaults" in said.stdout
    mlflow = MlflowClient(mlflow_server)
    experiment = mlflow.get_experiment_by_name("larder").experiment_id
    runs = mlflow.search_runs([experiment], f"tags.mlflow.runName LIKE '{shop.project}-search-%'")
    assert len(runs) == 1
    children = mlflow.search_runs([experiment], f"tags.mlflow.parentRunId = '{runs[0].info.run_id}'")
    assert len(children) == 2
    assert all("ndcg_at_10" in child.data.metrics and "ranker.depth" in child.data.params for child in children)
    kept = {one.path for one in mlflow.list_artifacts(runs[0].info.run_id, "search")}
    assert kept == {"search/best.yaml", "search/search.png"}
    assert f"train --settings {shop.root / 'search' / 'best.yaml'}" in said.stdout
    config = configured(TrainConfig(), read_training_settings(shop.root / "search" / "best.yaml"))
    result = train(shop, sample_of(config), "hash-of-the-data")
    assert result.bundle.manifest["config"]["ranker"]["depth"] == config.ranker.depth


def test_a_dead_mlflow_is_said_and_the_study_kept(tmp_path: Path) -> None:
    from feature_repo.errors import UnavailableError

    settings = Settings(home=tmp_path, project="searched", mlflow_tracking_uri="http://127.0.0.1:7549")
    with pytest.raises(UnavailableError, match="the same command goes on"):
        SearchRuns(settings, "a" * 12, {}, None)
