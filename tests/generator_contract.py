"""The contract of every candidate generator as a class: a new one's test subclasses it and states a floor.

    class TestAls(GeneratorContract):
        fit = Als(factors=8)
        ndcg_floor = 0.45

Everything runs on what serving loads: the generator is fitted on the learnable shop, saved as into a bundle, and
loaded again.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from feature_repo.rows import NO_RECENT_EVENTS, RecentEvents, Rows, UserRows, null_rows
from feature_repo.views import DAY_US, ITEM_STATS, USER_CATEGORY, USER_STATS
from serving.candidates.contract import CandidateGenerator
from serving.candidates.load import load_generator
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.recommender import Policy, Recommender
from tests.learnable_shop import NEWCOMER, NOW_US, LearnableShop, items_of, make_learnable_shop, taste_of
from training.baselines import FilledGenerator
from training.generators.contract import GeneratorFit
from training.line_up import fit_line_up, save_generators
from training.metrics import per_user


@cache
def learnable_shop() -> LearnableShop:
    return make_learnable_shop()


@cache
def fitted(fit: GeneratorFit) -> CandidateGenerator:
    return fit_line_up((fit,), learnable_shop().past())[0]


def saved(generator: CandidateGenerator) -> tuple[CandidateGenerator, dict[str, Any], dict[str, bytes]]:
    """A generator as serving loads it, its manifest entry and the bytes of its files."""
    with tempfile.TemporaryDirectory() as name:
        (entry,) = save_generators((generator,), Path(name))
        files = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
        return load_generator(entry, Path(name)), entry, files


@cache
def loaded(fit: GeneratorFit) -> CandidateGenerator:
    return saved(fitted(fit))[0]


def user_with(recent: RecentEvents) -> UserRows:
    return UserRows("u", null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), recent)


def scores_of(one: CandidateGenerator, user: UserRows, table: ItemTable) -> Any:
    return one.query(user, table, NOW_US).scores(np.arange(len(table), dtype=np.int32))


def table_of(which: list[int]) -> ItemTable:
    """The shop's table with some of its items only."""
    shop = learnable_shop().shop
    stats = shop.stats[ITEM_STATS.name]
    rows = Rows(ITEM_STATS, stats.ints[which], stats.floats[which], stats.present[which])
    chosen = [shop.catalog[i] for i in which]
    entries = [CatalogEntry(c.item_id, c.title, c.category, c.price, c.created_at, c.available) for c in chosen]
    return build_item_table(entries, rows, NOW_US)


class GeneratorContract:
    """Subclass as `Test...` and set what is declared here."""

    fit: ClassVar[GeneratorFit]
    #: nDCG@10 over the shop's users; a random list reaches .14, popularity .20.
    ndcg_floor: ClassVar[float]
    #: Answers follow the user's own events, also those after the fit.
    personal: ClassVar[bool] = True
    #: Brings only items that nobody had taken at the fit; the floor is about those.
    new_items_only: ClassVar[bool] = False

    @pytest.fixture
    def generator(self) -> CandidateGenerator:
        return loaded(self.fit)

    @pytest.mark.parametrize(
        "recent",
        [
            NO_RECENT_EVENTS,
            RecentEvents(["unknown"], np.array([1], np.int8), np.array([NOW_US])),
            RecentEvents(["t0-01", "unknown"], np.array([6, 3], np.int8), np.array([NOW_US, NOW_US + DAY_US])),
            RecentEvents(["t0-01"] * 200, np.full(200, 3, np.int8), np.full(200, NOW_US - 9000 * DAY_US)),
        ],
        ids=["empty", "unknown item", "from the future", "ages ago"],
    )
    @pytest.mark.parametrize("size", ["shop", "other items", "one item", "no item"])
    def test_any_user_and_any_catalogue(self, generator: CandidateGenerator, recent: RecentEvents, size: str) -> None:
        table = learnable_shop().shop.table()
        if size != "shop":
            n = {"other items": 60, "one item": 1, "no item": 0}[size]
            table = build_item_table([CatalogEntry(f"other {i}") for i in range(n)], null_rows(ITEM_STATS, n), NOW_US)
        query = generator.query(user_with(recent), table, NOW_US)
        top = query.top(1000)  # far more than the catalogue has
        assert len(set(top.tolist())) == len(top) <= len(table)
        scores = query.scores(np.arange(len(table), dtype=np.int32))
        assert scores.shape == (len(table),)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert (scores[top] > 0).all()
        assert len(top) == (scores > 0).sum()
        assert (np.diff(scores[top]) <= 0).all()
        assert query.top(3).tolist() == top[:3].tolist()
        assert query.top(0).tolist() == []

    @pytest.mark.parametrize("user", ["u003", NEWCOMER])
    def test_saving_and_loading_changes_nothing(self, user: str) -> None:
        table, rows = learnable_shop().shop.table(), learnable_shop().shop.user(user)
        before, after = fitted(self.fit).query(rows, table, NOW_US), loaded(self.fit).query(rows, table, NOW_US)
        everything = np.arange(len(table), dtype=np.int32)
        np.testing.assert_array_equal(after.scores(everything), before.scores(everything))
        np.testing.assert_array_equal(after.top(20), before.top(20))

    def test_fitting_again_writes_the_same_bytes(self) -> None:
        first, again = saved(fitted(self.fit)), saved(fit_line_up((self.fit,), learnable_shop().past())[0])
        assert first[1:] == again[1:]

    def test_events_after_the_fit_change_nothing(self) -> None:
        closed = fit_line_up((self.fit,), learnable_shop().without_later_events().past())[0]
        assert saved(fitted(self.fit))[1:] == saved(closed)[1:]

    def test_asking_again_gives_the_same(self, generator: CandidateGenerator) -> None:
        table, shop = learnable_shop().shop.table(), learnable_shop().shop
        first = scores_of(generator, shop.user("u003"), table)
        scores_of(generator, shop.user("u004"), table_of([5, 3]))  # somebody else, in another shop
        np.testing.assert_array_equal(scores_of(generator, shop.user("u003"), table), first)

    def test_a_grown_table_keeps_the_order_of_known_items(self, generator: CandidateGenerator) -> None:
        rows = learnable_shop().shop.user("u003")
        first = list(range(30))
        before = scores_of(generator, rows, table_of(first))
        after = scores_of(generator, rows, learnable_shop().shop.table())[:30]
        # Scores may be relative to the whole catalogue: the order may not change.
        assert np.argsort(-before, kind="stable").tolist() == np.argsort(-after, kind="stable").tolist()

    def test_scores_do_not_depend_on_where_items_stand(self, generator: CandidateGenerator) -> None:
        rows, table = learnable_shop().shop.user("u003"), learnable_shop().shop.table()
        order = np.random.default_rng(1).permutation(len(table))
        shuffled = scores_of(generator, rows, table_of(order.tolist()))
        np.testing.assert_allclose(shuffled, scores_of(generator, rows, table)[order], rtol=1e-6, atol=1e-7)

    def test_fresh_events_change_the_answers_of_personal_ones_only(self, generator: CandidateGenerator) -> None:
        table, taste = learnable_shop().shop.table(), items_of(3)
        before = scores_of(generator, learnable_shop().shop.user("u000"), table)  # of taste 0
        after = scores_of(generator, learnable_shop().user_after("u000", taste * 9), table)
        gain = (after - before)[[taste_of(i) == 3 for i in table.ids]].sum()
        assert gain > 0 if self.personal else (after == before).all()

    def test_somebody_new_is_answered_after_their_first_events(self, generator: CandidateGenerator) -> None:
        table = learnable_shop().shop.table()
        top = generator.query(learnable_shop().user_after(NEWCOMER, items_of(2)[:3]), table, NOW_US).top(3)
        assert len(top)
        if self.personal:
            assert {taste_of(table.ids[i]) for i in top} == {2}

    def test_what_was_seen_is_filtered(self, generator: CandidateGenerator) -> None:
        shop = learnable_shop().shop
        user, table = shop.user("u003"), shop.table()
        one = Recommender((generator,), None, "ranking_v1", Policy("drop", 100, (100,)))  # type: ignore[arg-type]
        candidates = set(one.draft(user, table, NOW_US, k=10).item_ids)
        assert not candidates & set(user.recent.item_ids)
        everything = {table.ids[i] for i in generator.query(user, table, NOW_US).top(100)}
        assert candidates == everything - set(user.recent.item_ids)

    def test_brings_new_items_only_where_it_says_so(self, generator: CandidateGenerator) -> None:
        shop, table = learnable_shop(), learnable_shop().shop.table()
        taken = set(shop.log.before(NOW_US).item)
        top = [table.ids[i] for i in generator.query(shop.shop.user("u003"), table, NOW_US).top(100)]
        assert top
        if self.new_items_only:
            assert not set(top) & taken

    def test_ndcg_floor(self, generator: CandidateGenerator) -> None:
        shop, table = learnable_shop(), learnable_shop().shop.table()
        targets = shop.new_targets if self.new_items_only else shop.targets
        alone = FilledGenerator(generator, None)
        slates = {user: alone(shop.shop.user(user), table, NOW_US) for user in targets}
        assert per_user(slates, targets)["ndcg@10"].mean() >= self.ndcg_floor
