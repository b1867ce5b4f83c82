"""The contrastive model: training sees what serving sees, new items have a place, large catalogues are searched."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.errors import BadInputError
from feature_repo.rows import RecentEvents, null_rows
from feature_repo.views import DAY_US, ITEM_STATS
from serving.candidates.contract import top_k
from serving.candidates.contrastive import WINDOWS, Contrastive, Tower
from serving.candidates.history import weight_per_item
from serving.candidates.text import TextEncoder, unit_rows
from serving.candidates.vector_index import cluster, with_index
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from tests.generator_contract import learnable_shop, loaded, scores_of, user_with
from tests.learnable_shop import NOW_US, items_of
from tests.test_generators import SMALL_TOWERS
from training.generators import contrastive as training
from training.generators.contract import Past
from training.item_vectors import write_item_vectors
from training.line_up import default_line_up, line_up_of

END_US = NOW_US + 8 * DAY_US


@cache
def coded() -> Any:
    """The log of the shop a week later, and its moment at NOW_US."""
    shop = learnable_shop()
    later = Past(shop.log, shop.shop.table(), END_US, 0, 1)
    log = training._Coded.of(later, 1000)
    return log, log.moment(NOW_US, END_US, 1.0, replace(SMALL_TOWERS, history=60))


def test_training_pools_a_user_as_serving_does() -> None:
    log, moment = coded()
    table = learnable_shop().shop.table()
    users = np.unique(learnable_shop().log.user.astype(str))
    known = sorted({u for u in users if learnable_shop().shop.user(u).known} & set(learnable_shop().targets))
    assert len(moment.history) == len(known)
    for row, user in enumerate(known):
        recent = learnable_shop().shop.user(user).recent
        for pool, days in enumerate(SMALL_TOWERS.half_life_days):
            items, total = weight_per_item(recent, table, NOW_US, days)
            served = dict(zip([table.ids[i] for i in items], np.sqrt(total) / np.sqrt(total).sum(), strict=True))
            learned = {
                log.items[item]: weight
                for item, weight in zip(moment.history[row], moment.weight[row, :, pool], strict=True)
                if item < len(log.items)
            }
            assert learned == pytest.approx(served, rel=1e-4)


def test_training_sees_the_popularity_that_serving_sees() -> None:
    log, moment = coded()
    table = learnable_shop().shop.table()
    at = table.lookup(log.items)
    for column, window in enumerate(WINDOWS):
        np.testing.assert_allclose(moment.popularity[:, column], np.log1p(table.popularity(window)[at]), rtol=1e-4)


def test_baskets_are_what_was_taken_after_the_cut() -> None:
    log, moment = coded()
    everything = learnable_shop().log
    after = (everything.time_us >= NOW_US) & (everything.time_us < END_US) & (everything.event_type == "purchase")
    pairs = set(zip(everything.user[after], everything.item[after], strict=True))
    assert moment.baskets.nnz == len(pairs)
    assert {log.items[i] for i in moment.baskets.indices} == {item for _, item in pairs}
    fresh = log.moment(NOW_US, END_US, 1.0, replace(SMALL_TOWERS, new_only=True))
    before = set(zip(everything.user[~after], everything.item[~after], strict=True))
    assert 0 < fresh.baskets.nnz == len(pairs - {p for p in before if p in pairs and _seen(p)}) < len(pairs)


def _seen(pair: tuple[str, str]) -> bool:
    log = learnable_shop().log.before(NOW_US)
    return bool(((log.user == pair[0]) & (log.item == pair[1])).any())


def test_a_batch_hides_what_is_no_negative_and_knows_its_chances() -> None:
    log, moment = coded()
    n = len(log.items)
    batch = moment.batch(40, 2000, n, np.random.default_rng(1))
    shown = np.concatenate([batch.positive, batch.negative])
    assert not batch.hidden[np.arange(40), np.arange(40)].any()
    # The chances of all items together are 1; every item is among 2000 uniform ones.
    chance = dict(zip(shown.tolist(), np.exp(batch.log_q).tolist(), strict=True))
    assert sum(chance.values()) == pytest.approx(1.0, rel=1e-5)
    drawn = np.bincount(
        np.concatenate(
            [
                np.concatenate([one.positive, one.negative])
                for one in (moment.batch(40, 10, n, np.random.default_rng(seed)) for seed in range(300))
            ]
        ),
        minlength=n,
    )
    expected = np.zeros(n)
    few = moment.batch(40, 10, n, np.random.default_rng(0))
    expected[np.concatenate([few.positive, few.negative])] = np.exp(few.log_q)
    known = expected > 0
    assert np.corrcoef(drawn[known] / drawn.sum(), expected[known])[0, 1] > 0.95


def test_an_item_that_enters_the_catalogue_later_has_a_place_by_its_words() -> None:
    one, user = loaded(SMALL_TOWERS), learnable_shop().shop.user("u002")  # of taste 1
    entries = [
        CatalogEntry("later", "Goat brie rind", "cheese"),
        CatalogEntry("other", "Mint pot", "tea"),
        CatalogEntry("mute"),
    ]
    table = apply_changes(learnable_shop().shop.table(), entries, null_rows(ITEM_STATS, 3), NOW_US)
    found = dict(zip(table.ids, scores_of(one, user, table), strict=True))
    assert found["later"] > found["other"] > 0.0
    assert found["mute"] == 0.0
    renamed = apply_changes(table, [CatalogEntry("mute", "Feta blue", "cheese")], null_rows(ITEM_STATS, 1), NOW_US)
    assert scores_of(one, user, renamed)[renamed.index["mute"]] > 0.0
    # Who took nothing but the new item is placed by it.
    stranger = user_with(RecentEvents(["later"], np.array([3], np.int8), np.array([NOW_US])))
    top = one.query(stranger, table, NOW_US).top(5)
    assert {table.category[i] for i in top} == {"cheese"}


def test_more_vectors_of_items_are_learned_from(tmp_path: Path) -> None:
    past = learnable_shop().past()
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(4, 6))
    ids = [item for kind in range(4) for item in items_of(kind)]
    path = tmp_path / "pictures.npz"
    write_item_vectors(path, ids, np.array([taste[int(item[1])] for item in ids], np.float32))
    mute = replace(past.table, titles=("",) * len(past.table), category=("",) * len(past.table))
    blind = Past(past.log, mute, NOW_US, 0, 1)
    settings = replace(SMALL_TOWERS, vectors=str(path), drop_own=0.9, steps=120)
    fitted = settings.fit(blind)
    kinds = np.array([int(item[1]) for item in fitted.vocabulary.ids])
    alike = fitted.vectors @ fitted.vectors.T
    same = kinds[:, None] == kinds[None, :]
    assert alike[same].mean() > alike[~same].mean() + 0.3
    assert fitted.item_tower.hidden.shape[0] == 6  # no word was said, so pictures are all there is
    with pytest.raises(BadInputError, match="larder items encode"):
        replace(settings, vectors=str(tmp_path / "none.npz")).fit(blind)


def test_without_jax_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(BadInputError, match=r"larder\[contrastive\]"):
        SMALL_TOWERS.fit(learnable_shop().past())
    with pytest.raises(BadInputError, match=r"larder\[contrastive\]"):
        line_up_of("contrastive")  # before anything was fitted


def test_line_ups_by_name() -> None:
    names = [one.name for one in line_up_of("contrastive", "vectors.npz")]
    assert names == [*(one.name for one in default_line_up()), "contrastive"]
    assert [one.name for one in line_up_of("sequence")][-1] == "recent"
    with pytest.raises(BadInputError, match="no line-up 'best'"):
        line_up_of("best")
    with pytest.raises(BadInputError, match="takes no item vectors"):
        line_up_of("default", "vectors.npz")


def test_a_shop_without_baskets_is_refused() -> None:
    past = learnable_shop().past()
    with pytest.raises(BadInputError, match="nothing to learn from"):
        replace(SMALL_TOWERS, horizon_days=9000.0).fit(past)


N, F = 20_000, 16


def large() -> tuple[Contrastive, ItemTable]:
    rng = np.random.default_rng(2)
    vectors = unit_rows(rng.normal(size=(40, F))[rng.integers(0, 40, N)] + 0.5 * rng.normal(size=(N, F)))
    ids = [f"i{n:05d}" for n in range(N)]
    model = Contrastive(
        TextEncoder(np.array(["tea"]), np.ones(1, np.float32), np.ones((1, 1), np.float32)),
        Tower(np.ones((1, 4), np.float32), np.zeros(4, np.float32), np.ones((4, F + 1), np.float32)),
        Tower(np.zeros((F, 4), np.float32), np.zeros(4, np.float32), np.zeros((4, F), np.float32)),
        Vocabulary(ids),
        vectors,
        rng.normal(0.0, 0.3, N).astype(np.float32),
        np.array([30.0], np.float32),
        np.array([0.1, 0.2, 0.3], np.float32),
        0.1,
    )
    entries = [*(CatalogEntry(i) for i in ids), CatalogEntry("new", "Tea")]
    return model, build_item_table(entries, null_rows(ITEM_STATS, N + 1), NOW_US)


def test_a_large_catalogue_is_searched_and_scored_exactly() -> None:
    model, table = large()
    centroids, lists = cluster(model.searched, seed=1)
    indexed = with_index(replace(model, centroids=centroids, lists=lists))
    assert indexed.index is not None
    everything, found = np.arange(N + 1, dtype=np.int32), []
    for n in range(20):
        user = user_with(
            RecentEvents([f"i{n * 7 + j:05d}" for j in range(3)], np.full(3, 3, np.int8), np.full(3, NOW_US - DAY_US))
        )
        exact, near = model.query(user, table, NOW_US), indexed.query(user, table, NOW_US)
        np.testing.assert_allclose(near.scores(everything), exact.scores(everything), rtol=1e-5)
        top = near.top(100)
        assert (np.diff(near.scores(top)) <= 0).all()
        found.append(len(set(top.tolist()) & set(top_k(exact.scores(everything), 100).tolist())) / 100)
        assert near.top(2000).tolist() == top_k(near.scores(everything), 2000).tolist()
    assert np.mean(found) > 0.9
