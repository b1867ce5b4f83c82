"""The vector index: recall against exact search, equal bytes, exact scores, and small catalogues left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.rows import null_rows
from feature_repo.views import ITEM_STATS
from serving.candidates import vector_index
from serving.candidates.contract import top_k
from serving.candidates.factors import ItemFactors
from serving.candidates.load import load_generator
from serving.candidates.vector_index import VectorIndex, cluster, with_index
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from tests.generator_contract import learnable_shop, user_with
from tests.learnable_shop import NOW_US
from tests.test_item_models import EventType, recent
from training.generators import als as als_fit
from training.generators.als import Als
from training.line_up import save_generators

N, F, K = 20_000, 16, 100


def factors(n: int = N) -> Any:
    """Vectors around some centres, of very different length, as ALS makes them."""
    rng = np.random.default_rng(4)
    around = rng.normal(size=(50, F))[rng.integers(0, 50, n)] + 0.7 * rng.normal(size=(n, F))
    return (around * rng.lognormal(0, 0.6, (n, 1))).astype(np.float32)


def users(vectors: Any, n: int = 50) -> Any:
    return vectors[np.random.default_rng(5).integers(0, len(vectors), (n, 5))].mean(axis=1)


def model(n: int = N) -> ItemFactors:
    vectors = factors(n)
    centroids, lists = cluster(vectors, seed=1)
    ids = Vocabulary([f"i{i:06d}" for i in range(n)])
    return with_index(ItemFactors(ids, vectors, 1.0, 4.0, 180.0, centroids=centroids, lists=lists))


def table_of(ids: list[str]) -> ItemTable:
    return build_item_table([CatalogEntry(i) for i in ids], null_rows(ITEM_STATS, len(ids)), NOW_US)


def test_recall_against_exact_search() -> None:
    vectors = factors()
    index = VectorIndex(vectors, *cluster(vectors, seed=1))
    found = [
        len(set(index.search(user, K).tolist()) & set(top_k(vectors @ user, K).tolist())) / K for user in users(vectors)
    ]
    assert np.mean(found) > 0.9


def test_a_search_is_best_first_and_looks_into_a_part_of_the_lists() -> None:
    vectors = factors()
    index = VectorIndex(vectors, *cluster(vectors, seed=1))
    (user,) = users(vectors, 1)
    found = index.search(user, N)
    assert K < len(found) < N / 2
    assert (np.diff(vectors[found] @ user) <= 1e-4).all()


def test_equal_inputs_give_equal_lists_and_answers() -> None:
    vectors = factors()
    first, again = cluster(vectors, seed=1), cluster(vectors.copy(), seed=1)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    one, two = VectorIndex(vectors, *first), VectorIndex(vectors, *again)
    for user in users(vectors):
        np.testing.assert_array_equal(one.search(user, K), two.search(user, K))


def test_a_bundle_brings_the_index_back(tmp_path: Path) -> None:
    one = model(3000)
    (entry,) = save_generators((one,), tmp_path)
    loaded: Any = load_generator(entry, tmp_path)
    assert loaded.index is not None
    assert "index" not in entry["params"]
    table = table_of(list(one.vocabulary.ids))
    user = recent(("i000003", EventType.purchase), ("i000400", EventType.view))
    before, after = one.query(user, table, NOW_US), loaded.query(user, table, NOW_US)
    np.testing.assert_array_equal(before.top(50), after.top(50))
    items = np.arange(3000, dtype=np.int32)
    np.testing.assert_array_equal(before.scores(items), after.scores(items))


def test_answers_with_an_index_are_those_without_it_but_for_what_it_misses() -> None:
    one = model()
    exact = replace(one, index=None)
    # The user took the last item of the table, where an item that is not there must not be mistaken for it.
    # The table lacks a tenth of the items, knows others, and is in another order.
    ids = ["other", *(i for i in one.vocabulary.ids[::-1] if int(i[1:]) % 10)]
    table = table_of(ids)
    user = recent(("i000001", EventType.purchase), ("i000400", EventType.view))
    found, wanted = one.query(user, table, NOW_US), exact.query(user, table, NOW_US)
    items = np.arange(len(table), dtype=np.int32)
    np.testing.assert_allclose(found.scores(items), wanted.scores(items), rtol=1e-4, atol=1e-5)
    top = found.top(K)
    assert len(set(top.tolist())) == len(top)
    assert (
        len(set(top.tolist()) & set(wanted.top(K).tolist())) > 0.8 * K
    )  # a tenth of what is found is not in the table
    assert (np.diff(found.scores(top)) <= 0).all()
    assert found.top(10).tolist() == top[: len(found.top(10))].tolist()
    assert found.top(0).tolist() == []
    everything = found.top(len(table))  # longer than an index is good for: exact
    assert len(everything) == (found.scores(items) > 0).sum()


def test_a_score_does_not_depend_on_the_other_items() -> None:
    one = model(3000)
    query = one.query(recent(("i000003", EventType.view)), table_of(list(one.vocabulary.ids)), NOW_US)
    together = query.scores(np.arange(3000, dtype=np.int32))
    for item in (0, 7, 2999):
        assert query.scores(np.array([item], np.int32))[0] == together[item]


def test_small_catalogues_are_searched_exactly_and_large_ones_get_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, past = Als(factors=8, iterations=2), learnable_shop().past()
    assert vector_index.EXACT_BELOW == 50_000
    small = fit.fit(past)
    assert small.index is None
    assert small.lists.size == 0
    monkeypatch.setattr(als_fit, "EXACT_BELOW", 10)
    large = fit.fit(past)
    assert large.index is not None
    assert len(large.lists) == len(large.factors)
    nobody = large.query(user_with(learnable_shop().shop.user("newcomer").recent), past.table, NOW_US)
    assert nobody.top(10).tolist() == []
