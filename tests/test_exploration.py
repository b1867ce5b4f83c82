"""Exploration: what is logged is what is drawn, nothing else moves, filters hold, and every arm draws alike."""

from __future__ import annotations

import doctest
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare

from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from serving.cascade import exploration
from serving.cascade.exploration import (
    DRAWN,
    EXPLORATIONS,
    POOLS,
    Exploration,
    ExploredSlot,
    Exploring,
    explore,
    propensities_of,
    require_sound,
    thompson_propensities,
)
from serving.cascade.rerank import NewItems, is_new
from serving.exploration import before_exploration, exploration_of
from serving.impressions import read_impressions, read_shadow
from tests.running_api import RunningApi, open_shop, publish, rollout_plan, wait_until
from tests.test_cascade import NOW_US, ShopReader, recommender, small_shop
from tests.test_rerank import with_policy
from tests.tiny_bundle import make_bundle

QUICK = examples(max_examples=80, deadline=None)
RULES = st.builds(
    Exploration,
    kind=st.sampled_from(["epsilon", "thompson"]),
    ranks=st.sets(st.integers(1, 12), min_size=1, max_size=4).map(lambda ranks: tuple(sorted(ranks))),
    epsilon=st.floats(0.01, 0.99),
    pool_size=st.integers(1, 30),
    prior=st.floats(1.0, 500.0),
)


def test_doctests() -> None:
    assert doctest.testmod(exploration, raise_on_error=False).failed == 0


@QUICK
@given(RULES, st.integers(0, 40), st.integers(1, 15), st.data())
def test_draws_are_as_logged_and_nothing_else_moves(rule: Exploration, n: int, k: int, data: Any) -> None:
    ranked = data.draw(st.permutations(range(n)).map(lambda order: np.array(order, np.intp)))
    eligible = data.draw(st.none() | hnp.arrays(np.bool_, n))
    probability = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0.0, 1.0)))
    evidence = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0.0, 1e6)))
    shown = ranked[:k]
    exploring = Exploring(rule, data.draw(st.text(max_size=20)))
    out, drawn = explore(shown, ranked, eligible, probability, evidence, exploring)
    assert len(set(out.tolist())) == len(out) == len(shown)
    moved = {one.rank for one in drawn if one.taken}
    assert all((out[i] == shown[i]) == (i + 1 not in moved) for i in range(len(shown)))
    pooled = [arm for one in drawn for arm in one.arms[1:].tolist()]
    assert len(set(pooled)) == len(pooled) <= rule.pool_size
    assert not set(pooled) & set(shown.tolist())
    assert eligible is None or all(eligible[arm] for arm in pooled)
    for one in drawn:
        assert one.rank in rule.ranks
        assert one.arms[0] == shown[one.rank - 1]
        assert out[one.rank - 1] == one.arms[one.taken]
        assert one.propensities.sum() == pytest.approx(1.0, abs=1e-9)
        # Nobody's chance is below a share of epsilon, so weights are bounded.
        least = min(rule.epsilon / len(one.arms), 1.0 - rule.epsilon if rule.kind == "epsilon" else 1.0)
        assert one.propensities.min() >= least * 0.999
    again = explore(shown, ranked, eligible, probability, evidence, exploring)
    assert again[0].tolist() == out.tolist()


@pytest.mark.parametrize("kind", ["epsilon", "thompson"])
def test_items_are_drawn_as_often_as_their_propensity_says(kind: Any) -> None:
    rule = Exploration(kind, ranks=(2, 4), epsilon=0.3, pool_size=7)
    ranked = np.arange(20, dtype=np.intp)
    probability, evidence = np.linspace(0.06, 0.02, 20), np.linspace(0.0, 400.0, 20)[::-1].copy()
    counts: dict[int, Counter[int]] = {2: Counter(), 4: Counter()}
    n = 6_000
    for i in range(n):
        _, drawn = explore(ranked[:10], ranked, None, probability, evidence, Exploring(rule, f"request-{i}"))
        for one in drawn:
            counts[one.rank][int(one.arms[one.taken])] += 1
    for one in drawn:
        seen = np.array([counts[one.rank][int(arm)] for arm in one.arms])
        assert chisquare(seen, one.propensities * n).pvalue > 1e-4
    assert [one.rank for one in drawn] == [2, 4]
    assert [len(one.arms) for one in drawn] == [5, 4]


def test_thompson_draws_what_is_little_known_and_may_be_good() -> None:
    chances = thompson_propensities(
        np.array([0.05, 0.04, 0.04, 0.001]), np.array([5_000.0, 5_000.0, 5.0, 5_000.0]), 50.0, 0.04
    )
    assert chances[2] > 0.25 > 0.1 > chances[1] > chances[3]
    assert chances[3] == pytest.approx(0.01)
    assert chances.sum() == pytest.approx(1.0)


def slates(rule: Exploration, request_id: str, user: str = "u00003", k: int = 10, **wish: Any) -> tuple[Any, Any, Any]:
    one, reader = with_policy(recommender(40), new_items=NewItems(0, 8, 4, 3650.0)), ShopReader()
    draft = one.draft(reader.user(user, NOW_US), small_shop().table(), NOW_US, k=k, **wish)
    pairs = reader.pairs(user, draft.item_ids, NOW_US)
    return draft, one.finish(draft, pairs), one.finish(draft, pairs, Exploring(rule, request_id))


@pytest.mark.parametrize("kind", ["epsilon", "thompson"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_slate_is_the_models_but_for_its_draws_and_filters_hold(kind: Any, pool: Any) -> None:
    rule = Exploration(kind, ranks=(3, 6), epsilon=0.9, pool=pool)
    hidden = [item.item_id for item in slates(rule, "r")[1].items[:4]]
    moved = 0
    for number in range(40):
        draft, plain, found = slates(rule, f"r{number}", exclude=hidden, repeats="drop")
        shown = [item.item_id for item in found.items]
        assert before_exploration(found.items, found.explored) == [
            replace(item, source="") if found.items[i].slot else item for i, item in enumerate(plain.items)
        ]
        assert len(set(shown)) == len(shown) == len(plain.items)
        assert not set(shown) & {*hidden, *draft.user.recent.item_ids}
        assert [item.slot for item in found.items] == [
            "explored" if any(one.rank == i and one.taken for one in found.explored) else None
            for i in range(1, len(shown) + 1)
        ]
        assert {one.rank for one in found.explored} <= {3, 6}
        table = draft.table
        if pool == "new":
            arms = [item for one in found.explored for item in one.item_ids[1:]]
            assert is_new(table, table.lookup(arms), NOW_US, NewItems(0, 8, 4, 3650.0)).all()
        # What the log says of the list: rows of the matrix, and propensities of each rank.
        assert [draft.item_ids[i] for i in found.ranked] == shown[: len(found.ranked)]
        require_sound(found.explored, shown)
        chances = propensities_of(len(shown), found.explored)
        assert all(chance == 1.0 for i, chance in enumerate(chances, 1) if i not in {3, 6})
        moved += sum(item.slot is not None for item in found.items)
    assert moved > 20


def test_without_exploration_a_slate_is_as_it_was() -> None:
    _, plain, _ = slates(Exploration("epsilon"), "r")
    assert plain.explored == ()
    assert all(item.slot is None for item in plain.items)
    # A stranger's list is popularity: nothing is drawn.
    _, plain, found = slates(Exploration("epsilon", epsilon=0.99), "r", user="nobody")
    assert plain.items == found.items
    assert found.explored == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "ucb"},
        {"pool": "all"},
        {"ranks": ()},
        {"ranks": (0,)},
        {"ranks": (5, 5)},
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"pool_size": 0},
        {"prior": -1.0},
    ],
)
def test_what_cannot_be_explored_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        Exploration(**wrong)


def test_settings_declare_it() -> None:
    assert exploration_of(Settings()) is None
    declared = Settings(exploration="thompson", exploration_ranks="3, 7", exploration_epsilon=0.2)
    assert exploration_of(declared) == Exploration("thompson", (3, 7), 0.2)
    for wrong in ({"exploration_ranks": "third"}, {"exploration": "always"}, {"exploration_pool": "x"}):
        with pytest.raises(BadInputError):
            exploration_of(Settings(**wrong))
    assert EXPLORATIONS[0] == Settings().exploration


@pytest.mark.parametrize(
    "lie",
    [
        {"taken": 0},
        {"taken": 9},
        {"rank": 0},
        {"rank": 99},
        {"propensities": [0.5, 0.6]},
        {"propensities": [1.0, 0.0]},
        {"propensities": [float("nan"), 0.5]},
        {"scores": [0.1]},
    ],
)
def test_a_candidate_that_lies_about_its_draws_is_found_out(lie: dict[str, Any]) -> None:
    true = ExploredSlot(2, ["b", "x"], [0.9, 0.1], [0.2, 0.1], 1)
    require_sound([true], ["a", "x"])
    with pytest.raises(ValueError, match="rank"):
        require_sound([replace(true, **lie)], ["a", "x"])


def test_a_record_keeps_what_was_drawn() -> None:
    slot = ExploredSlot(2, ["b", "x"], [0.9, 0.1], [0.2, 0.1], 1)
    assert msgspec.json.decode(msgspec.json.encode(slot), type=ExploredSlot) == slot


def test_every_arm_explores_by_one_policy_the_log_tells_and_the_shadow_compares_models(
    settings: Settings, redis_url: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    shop, stable = open_shop(settings, client)
    # The same model under another name: what differs between the arms is the draw alone, and there must be none.
    canary = make_bundle(settings.bundles_dir, shop, name="another")
    publish(client, settings, rollout_plan(stable, 2, canary=canary, weight=5_000, shadow=canary))
    explored = replace(settings, exploration="epsilon", exploration_ranks="2,4", exploration_epsilon=0.9)
    explored = replace(explored, canary_timeout_ms=2000)
    arms: Counter[str] = Counter()
    with RunningApi(explored) as api:
        wait_until(lambda: "canary" in {api.recommend(user)["arm"] for user in shop.user_ids})
        drawn = 0
        for number, user in enumerate(shop.user_ids):
            answer = api.recommend(user, k=8, request_id=f"x{number}")
            assert answer["items"] == api.recommend(user, k=8, request_id=f"x{number}")["items"]
            places = {item["rank"] for item in answer["items"] if item["slot"] == "explored"}
            assert places <= {2, 4}
            drawn += len(places)
            arms[answer["arm"]] += bool(places)
        explained = api.recommend(shop.user_ids[0], k=8, explain=True, request_id="x0")["items"]
        stranger = api.recommend("nobody", k=8)["items"]
        wait_until(lambda: any(one.error is None for one in read_shadow(settings.shadow_dir)))
        counted = {
            drawn: api.metric(f'larder_explored_places_total{{drawn="{drawn}",kind="epsilon",pool="below"}}')
            for drawn in DRAWN
        }
    assert not any(item["slot"] for item in stranger)
    assert drawn > 20
    assert arms["canary"] and arms["stable"] + arms["baseline"]
    if any(item["slot"] for item in explained) and all("summary" in item for item in explained):
        assert all(item["summary"].startswith("Explored") == (item["slot"] == "explored") for item in explained)
    records = list(read_impressions(settings.impressions_dir))
    assert any(one.explored for one in records if one.served_bundle == canary)
    taken = Counter(slot.taken > 0 for one in records for slot in one.explored or ())
    assert counted == {"same": taken[False], "other": taken[True]}
    for one in records:
        if one.explored is None:
            assert one.propensities is None
            continue
        require_sound(one.explored, [item.item_id for item in one.items])
        assert one.propensities == propensities_of(len(one.items), one.explored)
        assert {item.rank for item in one.items if item.slot} == {slot.rank for slot in one.explored if slot.taken}
    # Stable and shadow are one model: before exploration their lists are the same.
    compared = [one for one in read_shadow(settings.shadow_dir) if one.error is None and one.known]
    assert compared
    assert {one.overlap for one in compared} == {1.0}
    assert {one.rank_correlation for one in compared} == {1.0}
