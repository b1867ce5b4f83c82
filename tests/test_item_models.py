"""Item-to-item in its forms, and the projection: by hand, or against the plain formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_repo.events import EventType
from feature_repo.rows import RecentEvents, null_rows
from feature_repo.views import ITEM_STATS
from serving.candidates.last_events import LastEvents
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import CatalogEntry, build_item_table
from tests.generator_contract import fitted, learnable_shop, scores_of, user_with
from tests.learnable_shop import NOW_US, PER_TASTE, taste_of
from training.generators.als import Als
from training.generators.als_similar import AlsSimilar
from training.generators.contract import Past
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.fallback import WithFallback
from training.generators.neighbours import nearest, nearest_by_cosine
from training.generators.next_basket import NextBasket
from training.generators.svd import Svd
from training.split import Log

ALS = Als(factors=8, iterations=5)


def entries(*texts: tuple[str, str, str]) -> Any:
    made = [CatalogEntry(item, title, category) for item, title, category in texts]
    return build_item_table(made, null_rows(ITEM_STATS, len(made)), NOW_US)


def recent(*events: tuple[str, EventType]) -> Any:
    types = np.array([code for _, code in events], np.int8)
    return user_with(RecentEvents([item for item, _ in events], types, np.arange(len(events)) + NOW_US - 100))


def test_neighbours_by_cosine_are_those_of_the_full_matrix() -> None:
    vectors = np.random.default_rng(2).normal(size=(700, 5)).astype(np.float32)  # more than one block
    vectors[3] = 0.0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    wanted, values = nearest(unit @ unit.T, 20)
    found, cosine = nearest_by_cosine(vectors, 20)
    np.testing.assert_allclose(cosine, values, atol=1e-6)
    assert (found == wanted).mean() > 0.999  # but for ties in the last bit
    assert (found[3] == -1).all()
    assert nearest_by_cosine(vectors[:1], 20)[0].tolist() == [[-1]]


def test_als_neighbours_are_of_the_same_taste() -> None:
    table: Any = fitted(AlsSimilar(als=ALS))
    nearest_items = [(item, table.similar(item, 1)[0][0]) for item in table.vocabulary.ids]
    assert np.mean([taste_of(item) == taste_of(near) for item, near in nearest_items]) > 0.9


@pytest.mark.parametrize("source", [Cooccurrence(), Ease(regularization=20.0), AlsSimilar(als=ALS)])
def test_last_events_go_by_the_table_of_any_item_to_item_model(source: Any) -> None:
    from training.generators.last_events import LastEvents as Fit

    one, table = fitted(Fit(source=source)), learnable_shop().shop.table()
    top = one.query(recent(("t2-00", EventType.view)), table, NOW_US).top(3)
    assert {taste_of(table.ids[i]) for i in top} == {2}


def test_last_events_count_by_their_order() -> None:
    """By hand: a leads to b and c, b leads to c; two items back, each half of the next."""
    table = entries(("a", "", ""), ("b", "", ""), ("c", "", ""), ("d", "", ""))
    near = np.array([[1, 2], [2, -1], [-1, -1], [0, -1]], np.int32)
    value = np.array([[0.8, 0.4], [0.6, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    one = LastEvents(Vocabulary(table.ids), near, value, items=2, decay=0.5)

    def scores(*events: tuple[str, EventType]) -> list[float]:
        return [round(float(score), 3) for score in scores_of(one, recent(*events), table)]

    view, dislike = EventType.view, EventType.dislike
    assert scores(("a", view), ("b", view)) == [0.0, 0.4, 0.8, 0.0]  # b: .5 x .8; c: .6 + .5 x .4
    assert scores(("b", view), ("a", view)) == [0.0, 0.8, 0.7, 0.0]
    assert scores(("b", view), ("a", view), ("a", view)) == [0.0, 0.8, 0.7, 0.0], "an item counts once"
    assert scores(("d", view), ("b", view), ("c", view)) == [0.0, 0.0, 0.3, 0.0], "d is three items back"
    assert scores(("a", view), ("d", dislike)) == [0.0, 0.8, 0.4, 0.0], "what was disliked leads nowhere"


def test_items_without_neighbours_get_them_by_words() -> None:
    """By hand: `x` was taken by nobody; it shares one word of five with a, two of three with c, none with b."""
    catalogue = entries(
        ("a", "Red jar", "jam"),
        ("b", "Tall cup", "tea"),
        ("c", "Plum", "jam"),
        ("x", "Sour plum", "jam"),
        ("y", "", ""),
    )
    took = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b"), ("w", "c")]
    users, items = (np.array(one, object) for one in zip(*took, strict=True))
    log = Log(users, items, np.array(["purchase"] * len(took), object), np.arange(len(took)))
    past = Past(log, catalogue, NOW_US, 0, 1)
    before, after = past.fit(Cooccurrence(depth=2)), WithFallback(source=Cooccurrence(depth=2), weight=0.1).fit(past)
    assert before.similar("c", 9) == before.similar("x", 9) == []
    assert after.similar("a", 9) == before.similar("a", 9) != []
    assert after.similar("x", 9) == [("c", pytest.approx(0.1 * 2 / 3)), ("a", pytest.approx(0.1 * 1 / 5))]
    assert [item for item, _ in after.similar("c", 9)] == ["x", "a"]
    assert after.similar("y", 9) == []


def test_the_fallback_reaches_new_items_of_the_shop() -> None:
    table: Any = fitted(WithFallback())
    new = [f"t{taste}-{PER_TASTE}" for taste in range(4)]
    assert all(taste_of(near) == taste_of(item) for item in new for near, _ in table.similar(item, 3))
    assert all(table.similar(item, 3) for item in new)


def test_svd_projects_on_orthonormal_directions() -> None:
    one: Any = fitted(Svd(factors=8))
    v = one.components.astype(np.float64)
    np.testing.assert_allclose(v.T @ v, np.eye(8), atol=1e-5)
    everything: Any = fitted(Svd(factors=1000))
    user, table = learnable_shop().shop.user("u005"), learnable_shop().shop.table()
    # With all directions kept, a projection gives back the weights: only what was taken has a score.
    taken = set(user.recent.item_ids)
    scores = scores_of(everything, replace(user), table)
    assert {table.ids[i] for i in np.flatnonzero(scores > 1e-4)} == taken


def test_next_basket_learns_what_follows_and_what_comes_back() -> None:
    """Users buy `a`, and a fortnight later `b`; `c` every fortnight; nothing follows `b`."""
    day, length = 86_400_000_000, 14
    events = []
    for user in range(60):
        start = NOW_US - (100 + user % 40) * day
        events += [(f"u{user}", "a", start), (f"u{user}", "b", start + length * day)]
        events += [(f"u{user}", "c", start + n * length * day) for n in range(4)]
    events.sort(key=lambda event: event[2])
    log = Log(
        np.array([e[0] for e in events], object),
        np.array([e[1] for e in events], object),
        np.array(["purchase"] * len(events), object),
        np.array([e[2] for e in events], np.int64),
    )
    past = Past(log, entries(("a", "", ""), ("b", "", ""), ("c", "", "")), NOW_US, 1, 1)
    fit = NextBasket(regularization=5.0, half_life_days=20.0, horizon_days=length, step_days=5.0)
    table: Any = past.fit(fit)
    weight = {
        (item, table.vocabulary.ids[near]): value
        for item, row, values in zip(table.vocabulary.ids, table.neighbours, table.similarity, strict=True)
        for near, value in zip(row, values, strict=True)
        if near >= 0
    }
    assert weight["a", "b"] > 3 * weight.get(("b", "a"), 0.0)
    assert weight["c", "c"] > 3 * weight.get(("b", "b"), 0.0)
    assert weight["a", "b"] > 3 * weight.get(("a", "a"), 0.0)
