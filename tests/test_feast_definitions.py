"""Feast's objects and configuration: complete, as the layouts say, and usable by Feast's own command line and API."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService
from feast.repo_config import load_repo_config
from feast.repo_operations import get_repo_files
from feast.value_type import ValueType

from feature_repo import feature_definitions
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError
from feature_repo.materialize import materialize
from feature_repo.request_features import INPUTS
from feature_repo.services import FEATURE_LISTS
from feature_repo.settings import Settings
from feature_repo.store import REPOSITORY, apply, feast_environment, open_store, repo_config
from feature_repo.training_frame import training_frame
from feature_repo.views import CATALOG_VIEW, FOLD_VIEWS, RECENT_VIEW
from larder.commands.features import markdown
from tests.event_tables import event, event_table, item_table, purchase, write_log


@pytest.fixture
def offline(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="shop")


def test_feast_imports_only_the_file_with_its_objects() -> None:
    assert [path.name for path in get_repo_files(REPOSITORY)] == ["feature_definitions.py"]


def test_the_registry_holds_every_view_column_and_service(offline: Settings) -> None:
    store = apply(offline)
    views = {view.name: view for view in store.list_feature_views()}
    assert sorted(views) == sorted([*(v.name for v in FOLD_VIEWS), RECENT_VIEW, CATALOG_VIEW])
    assert all(view.ttl == timedelta(0) for view in views.values())
    for layout in FOLD_VIEWS:
        view = views[layout.name]
        assert [f.name for f in view.features] == [c.name for c in layout.columns]
        assert tuple(view.join_keys) == layout.entities
        assert view.tags["layout_hash"] == f"{layout.layout_hash:016x}"
        assert view.tags.get("max_age_us") == (layout.max_age_us and str(layout.max_age_us))
    assert {entity.value_type for entity in store.list_entities()} == {ValueType.STRING}
    services = {s.name: s for s in store.list_feature_services()}
    for name, features in FEATURE_LISTS.items():
        (projection,) = services[name].feature_view_projections
        assert tuple(f.name for f in projection.features) == features
    assert set(services) == set(FEATURE_LISTS)
    (on_demand,) = store.list_on_demand_feature_views()
    sources = on_demand.source_feature_view_projections.values()
    assert {f.name for projection in sources for f in projection.features} == set(INPUTS), "and no other column"


def test_applying_twice_is_the_same_and_what_is_gone_is_removed(offline: Settings) -> None:
    store = apply(offline)
    store.apply([FeatureService(name="old", features=[feature_definitions.user_stats])], partial=True)
    assert "old" in {s.name for s in open_store(offline).list_feature_services()}
    for _ in range(2):
        store = apply(offline)
        assert {s.name for s in store.list_feature_services()} == set(FEATURE_LISTS)


def test_feasts_own_command_line_works(offline: Settings) -> None:
    environment = os.environ | feast_environment(offline)
    offline.root.mkdir(parents=True)
    feast = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "-c", str(REPOSITORY)]
    done = subprocess.run([*feast, "apply"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    store = open_store(offline)
    assert {s.name for s in store.list_feature_services()} == set(FEATURE_LISTS)
    assert len(store.list_feature_views()) == len(FOLD_VIEWS) + 2


def test_the_yaml_file_and_the_settings_make_one_configuration(
    offline: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in feast_environment(offline).items():
        monkeypatch.setenv(name, value)
    loaded = load_repo_config(REPOSITORY, REPOSITORY / "feature_store.yaml")
    assert loaded == repo_config(offline)
    assert loaded.online_store.port == offline.redis_port
    assert Path(loaded.offline_store.path) == offline.offline_dir.resolve()
    assert loaded.registry.path == offline.registry_uri
    assert loaded.entity_key_serialization_version == 3


def test_a_project_name_feast_cannot_take_is_explained(offline: Settings) -> None:
    with pytest.raises(BadInputError, match="project name 'my-shop' cannot be used with Feast"):
        open_store(Settings(home=offline.home, project="my-shop"))


def test_feasts_online_answer_is_the_training_frame_of_that_moment(settings: Settings) -> None:
    """The same on-demand view over Redis and over Parquet gives the same bits."""
    start = datetime.now(UTC) - timedelta(days=2)
    events = [
        purchase("u", "i", 0, session_id="a"),
        purchase("u", "i", 20, session_id="b"),
        event("u", "j", "view", 21, category="books", price=90, request_id="r"),
        event("v", "i", "impression", 22.5),
    ]
    moved = [
        e | {name: start + (e[name] - events[0][name]) for name in ("event_timestamp", "received_at")} for e in events
    ]
    items = item_table({"i": "toys", "j": "books"}, created_at=start - timedelta(days=9))
    write_log(settings, event_table(moved), items)
    backfill(settings)
    store = apply(settings)
    materialize(settings)
    now = datetime.now(UTC)
    asked = [("u", "i", "toys"), ("u", "j", "books"), ("v", "i", "toys"), ("cold", "j", "books"), ("u", "x", None)]
    keys = pd.DataFrame(asked, columns=["user_id", "item_id", "category"])
    now_us = (now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    answer = store.get_online_features(
        features=store.get_feature_service("ranking_v1"),
        entity_rows=[{"user_id": u, "item_id": i, "category": c or "", "now_us": now_us} for u, i, c in asked],
    ).to_dict()
    frame = training_frame(keys[["user_id", "item_id"]].assign(event_timestamp=now), "ranking_v1", settings)
    for name in FEATURE_LISTS["ranking_v1"]:
        online = np.array(answer[name], np.float32)
        np.testing.assert_array_equal(online, frame[name].to_numpy(), err_msg=name)


def test_the_page_of_features_names_everything() -> None:
    page = markdown()
    names = [c.name for view in FOLD_VIEWS for c in view.columns] + [
        n for names in FEATURE_LISTS.values() for n in names
    ]
    assert all(f"`{name}`" in page for name in [*names, *FEATURE_LISTS])
