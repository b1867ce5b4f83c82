"""`candidate_frame`: the rows training learns from, for everybody; nothing of after the label window is in them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import Dataset, load_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_log import write_dataset
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from serving.cascade.features import retrieval_columns
from tests.test_cli import larder
from tests.tiny_bundle import small_line_up
from training.baselines import baselines
from training.candidate_frame import candidate_frame
from training.candidate_rows import candidate_rows
from training.generators.contract import Past
from training.line_up import fit_line_up
from training.metrics import per_user
from training.offline_table import offline_item_table
from training.split import Window
from training.train import TrainConfig, read_log

CUT = datetime(2025, 12, 1, tzinfo=UTC)
LENGTH = timedelta(days=6)
CONFIG = TrainConfig(line_up=small_line_up(factors=8, iterations=3))


def shop(home: Path, dataset: Dataset | None = None) -> Settings:
    settings = Settings(home=home, project="frames")
    write_dataset(
        dataset or load_dataset("simulator", settings, n_events=15_000, end=CUT + timedelta(days=30)), settings
    )
    backfill(settings)
    return settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return shop(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def frame(settings: Settings) -> pd.DataFrame:
    return candidate_frame(CUT, settings=settings, label_window=LENGTH, config=CONFIG)


def test_the_frame_is_what_training_learns_from(settings: Settings, frame: pd.DataFrame) -> None:
    cut = round(CUT.timestamp() * 1e6)
    window = Window(cut, cut + LENGTH // timedelta(microseconds=1))
    log, reader = read_log(settings), AsOfReader(settings, cut)
    table = offline_item_table(reader, cut)
    generators = fit_line_up(CONFIG.line_up, Past(log.before(cut), table, cut, settings.seed, settings.threads))
    targets = log.targets(window, "purchase")
    _, rows, _ = candidate_rows(
        settings, reader, table, generators, CONFIG.policy, window, targets,
        service="ranking_v1", sampling=CONFIG.sampling, seed=[settings.seed, 1],
    )  # fmt: skip
    names = [*feature_list("ranking_v1"), *retrieval_columns([g.name for g in generators])]
    assert list(frame.columns) == ["user_id", "item_id", "event_timestamp", "label", "weight", "group", *names]
    np.testing.assert_array_equal(frame[names].to_numpy(np.float32), rows.matrix)
    assert (frame[names].dtypes == np.float32).all()
    for name, values in (("label", rows.label), ("weight", rows.weight), ("group", rows.group)):
        np.testing.assert_array_equal(frame[name], values)


def test_labels_are_what_users_took_in_the_window(settings: Settings, frame: pd.DataFrame) -> None:
    cut = round(CUT.timestamp() * 1e6)
    targets = read_log(settings).targets(Window(cut, cut + LENGTH // timedelta(microseconds=1)), "purchase")
    assert list(dict.fromkeys(frame["user_id"])) == list(targets)
    known = set(offline_item_table(AsOfReader(settings, cut), cut).ids)
    taken = frame[frame["label"] == 1]
    wanted = {(user, item) for user, items in targets.items() for item in items & known}
    found = set(zip(taken["user_id"], taken["item_id"], strict=True))
    assert found <= wanted
    assert len(found) > len(wanted) / 2  # what no generator brought is nobody's to rank
    rest = set(zip(frame["user_id"], frame["item_id"], strict=True)) - found
    assert not rest & wanted
    assert (frame["event_timestamp"] == pd.Timestamp(CUT)).all()
    assert not frame.duplicated(["user_id", "item_id"]).any()


def test_moving_the_future_changes_nothing(tmp_path: Path, frame: pd.DataFrame) -> None:
    """Events of after the label window are moved to other times, items and users."""
    made = load_dataset("simulator", Settings(home=tmp_path), n_events=15_000, end=CUT + timedelta(days=30))
    times = made.events["event_timestamp"]
    end = pa.scalar(CUT + LENGTH, times.type)
    before, after = made.events.filter(pc.less(times, end)), made.events.filter(pc.greater_equal(times, end))
    later = pc.add(after["event_timestamp"], pa.scalar(timedelta(days=3), pa.duration("us")))
    other = after.drop_columns(["item_id"]).append_column("item_id", after["item_id"].take(
        pa.array(np.random.default_rng(1).permutation(after.num_rows))
    )).select(after.schema.names)  # fmt: skip
    for name in ("event_timestamp", "received_at"):
        other = other.set_column(other.schema.names.index(name), other.schema.field(name), later)
    changed = pa.concat_tables([before, other.slice(0, after.num_rows // 2).cast(before.schema)])
    moved = shop(tmp_path / "moved", replace(made, events=changed))
    found = candidate_frame(CUT, settings=moved, label_window=LENGTH, config=CONFIG)
    pd.testing.assert_frame_equal(found, frame, check_exact=True)


def test_other_negatives_and_another_service(settings: Settings, frame: pd.DataFrame) -> None:
    config = replace(CONFIG, line_up=small_line_up(factors=4, iterations=1))
    found = candidate_frame(CUT, "purchase_v1", settings=settings, label_window=LENGTH, config=config, number=2)
    assert list(found.columns[6 : 6 + len(feature_list("purchase_v1"))]) == list(feature_list("purchase_v1"))
    assert set(found["item_id"][found["label"] == 0]) != set(frame["item_id"][frame["label"] == 0])
    both = found.merge(frame, on=["user_id", "item_id"], suffixes=("", "_before"))
    assert both["label"].sum() > 0
    assert both["label"].equals(both["label_before"])


@pytest.mark.parametrize(
    ("cut", "length", "says"),
    [
        (CUT.replace(tzinfo=None), LENGTH, "time zone"),
        (CUT - timedelta(days=400), LENGTH, "leaves a past of 0.0 days"),
        (CUT + timedelta(days=400), LENGTH, "leaves no whole label window"),
        (CUT + timedelta(days=400), None, "leaves no whole label window"),
        (CUT, timedelta(0), "longer than 0"),
        (CUT, timedelta(seconds=1), "nothing to learn from"),
    ],
)
def test_cuts_that_leave_nothing_are_refused(
    settings: Settings, cut: datetime, length: timedelta | None, says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        candidate_frame(cut, settings=settings, label_window=length, config=CONFIG)


def test_an_unknown_service_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no feature service"):
        candidate_frame(CUT, "other", settings=Settings(home=tmp_path))


def test_the_command_writes_the_frame_once(settings: Settings, frame: pd.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    command = ("--home", str(settings.home), "--project", settings.project, "features", "candidates")
    done = larder(*command, "--cut", "2025-12-01T00:00Z", "--label-days", "6", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"written to {out}" in done.stdout
    found = pd.read_parquet(out)
    assert list(found.columns) == list(frame.columns)
    # Generators are those of `larder train`, so other candidates: rows that both have, state features alone.
    service = list(found.columns[:3]) + list(feature_list("ranking_v1"))
    keys = ["user_id", "item_id"]
    shared = found[keys].merge(frame[keys])
    assert len(shared) > len(frame) / 4
    taken = [shared.merge(one[service], on=keys) for one in (found, frame)]
    pd.testing.assert_frame_equal(taken[0], taken[1], check_exact=True, check_dtype=False)
    again = larder(*command, "--cut", "2025-12-01T00:00Z", "--out", str(out))
    assert again.returncode != 0
    assert "--overwrite" in again.stderr
    assert "time with its zone" in larder(*command, "--cut", "soon", "--out", str(tmp_path / "no.parquet")).stderr


def test_a_leak_would_be_seen(settings: Settings) -> None:
    """The canary: features that know the label window raise the metric at once, so a leak could not hide in it."""
    cut = round(CUT.timestamp() * 1e6)
    end = cut + LENGTH // timedelta(microseconds=1)
    targets = read_log(settings).targets(Window(cut, end), "purchase")
    before = AsOfReader(settings, cut)
    known = {user: wanted for user, wanted in targets.items() if before.user(user, cut).known}
    reached = {}
    for name, as_of in (("honest", cut), ("leaking", end)):
        reader = AsOfReader(settings, as_of)
        table = offline_item_table(reader, as_of)
        model = baselines(())["own_history"]
        slates = {user: model(reader.user(user, as_of), table, as_of)[:10] for user in known}
        reached[name] = per_user(slates, known)["ndcg@10"].mean()
    assert reached["leaking"] > reached["honest"] + 0.2
