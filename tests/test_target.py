"""A data set says what its models predict, and whether people take an item again: a shop of ratings, end to end."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import Dataset, load_dataset, make_dataset, write_dataset
from feature_repo.event_log import read_report
from feature_repo.events import EVENT_SCHEMA
from feature_repo.rows import Rows, null_rows
from feature_repo.settings import Settings
from feature_repo.store import apply
from feature_repo.views import ITEM_STATS
from larder.commands.evaluate import _usual
from serving.cascade.items import CatalogEntry, build_item_table
from tests.tiny_bundle import small_line_up
from training.rankers.catboost_ranker import CatBoostParams
from training.train import TrainConfig, train


def ratings(settings: Settings) -> Dataset:
    """The simulator's views as ratings, one of each user and item."""
    shop = load_dataset("simulator", settings, n_events=25_000, end=datetime(2026, 3, 1, tzinfo=UTC))
    views = shop.events.filter(pc.equal(shop.events["event_type"], "view")).to_pandas()
    first = views.drop_duplicates(["user_id", "item_id"]).assign(event_type="rating", value=4.0)
    events = pa.Table.from_pandas(first, schema=EVENT_SCHEMA, preserve_index=False)
    return make_dataset("films", events, shop.items, shop.quarantine, target="rating", repeats="drop")


def test_where_nobody_takes_an_item_again_no_list_holds_what_was_taken(settings: Settings) -> None:
    write_dataset(ratings(settings), settings)
    report = read_report(settings)
    assert (report.target, report.repeats) == ("rating", "drop")
    backfill(settings)
    apply(settings)
    config = TrainConfig(
        target=report.target,
        repeats=report.repeats,
        windows=1,
        line_up=small_line_up(factors=8, iterations=3),
        ranker=CatBoostParams(iterations=30),
    )
    result = train(settings, config, "hash")
    cut = result.split.test.start_us
    reader = AsOfReader(settings, cut)
    for segment, models in result.evaluation.slates.items():
        assert len(models) > 4, segment
        for model, lists in models.items():
            for user, slate in lists.items():
                assert not set(slate) & set(reader.user(user, cut).recent.item_ids), (segment, model, user)
    assert result.bundle.recommender.policy.repeats == "drop"
    assert result.bundle.manifest["target"] == "rating"


def test_lists_are_graded_by_what_the_data_set_says(settings: Settings) -> None:
    assert _usual(settings) == ("purchase", "keep"), "nothing imported: the lists of live events"
    write_dataset(ratings(settings), settings)
    assert _usual(settings) == ("rating", "drop")


def test_a_report_of_before_has_the_usual_target(settings: Settings) -> None:
    report = write_dataset(ratings(settings), settings)
    old = {name: value for name, value in asdict(report).items() if name not in ("target", "repeats")}
    (settings.root / "dataset.json").write_text(json.dumps(old))
    assert read_report(settings) == replace(report, target="purchase", repeats="keep")


def test_popularity_counts_ratings_only_where_nothing_was_ever_bought() -> None:
    def table(**counts: list[int]) -> list[float]:
        rows = null_rows(ITEM_STATS, 3)
        ints = np.zeros_like(rows.ints)
        for name, values in counts.items():
            ints[:, ITEM_STATS.ints.index(name)] = values
        stats = Rows(ITEM_STATS, ints, np.zeros_like(rows.floats), np.ones(3, bool))
        found = build_item_table([CatalogEntry(f"i{n}") for n in range(3)], stats, 1)
        assert found.popularity("30d").tolist() == ([0, 0, 0] if "item_purchases" in counts else counts["item_ratings"])
        return found.popularity("all").tolist()

    assert table(item_ratings=[1, 5, 0]) == [1, 5, 0]
    assert table(item_ratings=[1, 5, 0], item_purchases=[0, 0, 2]) == [0, 0, 2]
