"""`larder evaluate` as people use it: files in, tables, JSON, a page and an MLflow run out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.errors import BadInputError, LarderError, UnavailableError
from feature_repo.settings import Settings
from larder.cli import app
from larder.session import Session
from training.grading import grade
from training.rec_files import project_events, read_event_file, read_recs
from training.split import Window, last_share
from training.tracking import client

EVENTS = [
    ("u1", "a", "purchase", "2026-01-01"), ("u2", "b", "purchase", "2026-01-02"), ("u9", "c", "view", "2026-01-03"),
    ("u1", "a", "purchase", "2026-02-01"), ("u1", "b", "purchase", "2026-02-02"), ("u2", "c", "purchase", "2026-02-03"),
    ("u3", "a", "purchase", "2026-02-04"), ("u2", "a", "view", "2026-02-05"),
]  # fmt: skip
GOOD = [("u1", "a", 1), ("u1", "b", 2), ("u2", "c", 1), ("u3", "a", 1)]
BAD = [("u1", "c", 1), ("u1", "b", 2), ("u8", "a", 1)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    pd.DataFrame(EVENTS, columns=["user_id", "item_id", "event_type", "event_timestamp"]).to_csv(
        tmp_path / "events.csv", index=False
    )
    for name, rows in {"good": GOOD, "bad": BAD}.items():
        pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


@pytest.fixture
def own(settings: Settings) -> Settings:
    """Settings that name no MLflow server."""
    return replace(settings, mlflow_tracking_uri="")


def evaluate(settings: Settings, *arguments: Any) -> Result:
    session = Session()
    session.settings = settings
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], obj=session)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def of(shop: Path, *more: Any) -> list[Any]:
    recs = ["--recs", f"good={shop / 'good.csv'}", "--recs", shop / "bad.csv"]
    return ["--events", shop / "events.csv", "--from", "2026-02-01", *recs, *more]


def figures(settings: Settings, name: str) -> dict[str, float]:
    document = json.loads((settings.results_dir / f"evaluate-{name}.json").read_text("utf-8"))
    assert document["missed"] == []
    found: dict[str, float] = document["figures"]
    return found


def test_two_models_on_the_same_users(shop: Path, own: Settings) -> None:
    """Figures by hand: u1 and u2 are warm, u3 is cold; u8 takes nothing; the last event is a view."""
    shown = evaluate(own, *of(shop)).stdout
    assert "warm users (2)" in shown and "cold users (1)" in shown
    assert "bad: 1 users with a list take nothing in the window" in shown
    found = figures(own, "good-bad")
    assert found["warm.users"] == 2
    assert found["warm.good.recall_at_5"] == 1.0
    assert found["warm.bad.recall_at_5"] == 0.25  # b of u1's a and b; nothing for u2
    assert found["warm.bad.mrr_at_5"] == 0.25
    assert found["warm.bad.gain_over_good.recall_at_5"] == -0.75
    assert found["warm.bad.gain_over_good.recall_at_5_low"] == -1.0
    assert found["warm.bad.users_with_a_list"] == 1
    assert found["new_items.good.ndcg_at_10"] == 1.0  # without a, which u1 had, b comes first
    assert found["cold.bad.hr_at_20"] == 0.0
    page = (own.results_dir / "evaluate-good-bad.html").read_text("utf-8")
    assert page.count("<img ") == 3
    assert "http" not in page  # self-contained


def test_repeats_can_be_dropped(shop: Path, own: Settings) -> None:
    evaluate(own, *of(shop, "--repeats", "drop", "--name", "dropped", "--against", "bad"))
    found = figures(own, "dropped")
    assert found["warm.good.map_at_5"] == 1.0
    assert found["warm.good.gain_over_bad.recall_at_5"] == 0.5
    assert not any(name.startswith("new_items") for name in found)


def test_a_history_in_a_file_of_its_own(shop: Path, own: Settings) -> None:
    """The same figures as from one file; history that reaches into the window is refused."""
    frame = pd.read_csv(shop / "events.csv")
    frame[:3].to_parquet(shop / "train.parquet")
    frame[3:].to_json(shop / "test.jsonl", orient="records", lines=True)
    evaluate(own, *of(shop))
    arguments = ["--events", shop / "test.jsonl", "--recs", shop / "good.csv", "--recs", shop / "bad.csv"]
    evaluate(own, *arguments, "--train-events", shop / "train.parquet", "--name", "apart")
    assert figures(own, "apart") == figures(own, "good-bad")
    with pytest.raises(BadInputError, match=r"events.csv has 5 events at or after the start of the test window"):
        evaluate(own, *arguments, "--train-events", shop / "events.csv")


def test_the_end_of_the_window_and_another_target(shop: Path, own: Settings) -> None:
    evaluate(own, *of(shop, "--until", "2026-02-02", "--name", "one"))
    assert figures(own, "one")["warm.users"] == 1
    evaluate(own, *of(shop, "--target", "view", "--name", "views"))
    assert figures(own, "views")["warm.users"] == 1


def test_the_projects_own_log(shop: Path, own: Settings, tmp_path: Path) -> None:
    """Without --events the project's log is graded on, cut like trainings cut it."""
    write_dataset(load_dataset("simulator", own, n_events=2_000), own)
    log = project_events(own)
    users = log.user.unique().to_pylist()
    items = log.item.unique().to_pylist()[:20]
    rows = [(user, item, rank) for user in users for rank, item in enumerate(items, start=1)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).to_parquet(tmp_path / "same.parquet")
    evaluate(own, "--recs", tmp_path / "same.parquet", "--test-share", "0.2")
    expected = grade(log, {"same": read_recs(tmp_path / "same.parquet")}, last_share(log.time_us, 0.2))
    found = figures(own, "same")
    assert found["warm.same.ndcg_at_10"] == pytest.approx(
        expected.segments["warm"].figures["same"]["ndcg@10"].value, abs=1e-6
    )


def test_everything_is_in_mlflow(shop: Path, mlflow_settings: Settings) -> None:
    """Logged without being asked where a server is configured: metrics, how it was made, JSON and page."""
    shown = evaluate(mlflow_settings, *of(shop)).stdout
    run_id = shown.strip().rpartition("/")[2]
    mlflow = client(mlflow_settings)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(figures(mlflow_settings, "good-bad"), abs=1e-6)
    assert run.data.params["repeats"] == "keep"
    assert run.data.params["lists_of_good"].endswith("good.csv")
    assert {file.path for file in mlflow.list_artifacts(run_id)} == {"evaluate-good-bad.json", "evaluate-good-bad.html"}
    assert "MLflow" not in evaluate(mlflow_settings, *of(shop, "--no-mlflow")).stdout


def test_a_dead_mlflow_keeps_the_files(shop: Path, settings: Settings) -> None:
    with pytest.raises(UnavailableError, match=r"did not take the evaluation.*files are kept"):
        evaluate(settings, *of(shop, "--mlflow"))
    assert figures(settings, "good-bad")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "ugly"], "--against must be one of good, bad, not 'ugly'"),
        (["--recs", "good=other.csv"], "--recs names 'good' twice"),
        (["--recs", "a b=other.csv"], "a model's name in --recs NAME=FILE must be up to 100 letters"),
        (["--k", "7"], "--k must be one of 5, 10, 20, not 7"),
        (["--from", "soon"], "--from must be a date or time (ISO 8601), not 'soon'"),
        (["--until", "2020-01-01"], "the test window from 2026-02-01 00:00:00 UTC to 2020-01-01 00:00:00 UTC is empty"),
        (["--target", "like"], "the test window has no 'like' events, but purchase 4, view 1"),
        (["--catalogue", "good.csv"], "bad recommends item 'c' to user 'u1'"),
    ],
)
def test_errors_say_what_is_wrong(shop: Path, own: Settings, arguments: list[str], message: str) -> None:
    arguments = [str(shop / text) if text == "good.csv" else text for text in arguments]
    (shop / "good.csv").write_text("user_id,item_id,rank\nu1,a,1\nu1,b,2\n")
    with pytest.raises(LarderError) as caught:
        evaluate(own, *of(shop), *arguments)
    assert str(caught.value).startswith(message)


def test_real_lists_of_real_shoppers(settings: Settings, tmp_path: Path) -> None:
    """Online Retail: the most bought items for everybody reach about what the literature's popularity does."""
    dataset = load_dataset("online_retail", settings)
    dataset.events.select(["user_id", "item_id", "event_type", "event_timestamp"]).to_pandas().to_parquet(
        tmp_path / "events.parquet"
    )
    events = read_event_file(tmp_path / "events.parquet")
    window = last_share(events.time_us, 0.1)
    before = events.where(events.time_us < window.start_us)
    top = pd.Series(before.item.to_pylist()).value_counts().index[:20]
    users = set(events.user.to_pylist())
    rows = [(user, item, rank) for user in users for rank, item in enumerate(top, start=1)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).to_parquet(tmp_path / "popular.parquet")
    found = grade(events, {"popular": read_recs(tmp_path / "popular.parquet")}, Window(window.start_us, window.end_us))
    warm = found.segments["warm"].figures["popular"]
    assert warm["ndcg@10"].value == pytest.approx(0.073, abs=0.01)
    assert warm["coverage@10"].value < 0.01
    assert warm["gini@10"].value > 0.99
    assert warm["tail_share@10"].value == 0.0
