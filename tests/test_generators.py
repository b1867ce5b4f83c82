"""Every candidate generator under the contract of tests/generator_contract.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.candidates.history import OwnHistory
from serving.candidates.popularity import CategoryPopularity, Popularity, RatedPopularity
from tests.generator_contract import GeneratorContract, learnable_shop
from tests.learnable_shop import NOW_US
from training.generators.als import Als
from training.generators.als_similar import AlsSimilar
from training.generators.content import Content
from training.generators.contract import Past, Ready
from training.generators.contrastive import Contrastive
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.fallback import WithFallback
from training.generators.last_events import LastEvents
from training.generators.new_items import NewItems
from training.generators.next_basket import NextBasket
from training.generators.segment_popularity import SegmentPopularity
from training.generators.svd import Svd

ALS = Als(factors=8, iterations=10)
#: As small as the shop.
SMALL_TOWERS = Contrastive(
    dimensions=12, text_dimensions=16, hidden=16, horizon_days=7.0, step_days=3.0, history=16, batch=64, negatives=16,
    steps=80, learning_rate=0.02,
)  # fmt: skip


class TestPopularAllTime(GeneratorContract):
    fit = Ready(Popularity("all"), 60)
    ndcg_floor = 0.18
    personal = False


class TestPopularLately(GeneratorContract):
    fit = Ready(Popularity("7d"), 60)
    ndcg_floor = 0.15
    personal = False


class TestCategoryPopularity(GeneratorContract):
    fit = Ready(CategoryPopularity("30d"), 60)
    ndcg_floor = 0.6


class TestSegmentPopularity(GeneratorContract):
    fit = SegmentPopularity(min_users=5)
    ndcg_floor = 0.6


class TestRatedPopularity(GeneratorContract):
    fit = Ready(RatedPopularity(), 60)
    ndcg_floor = 0.15
    personal = False


class TestOwnHistory(GeneratorContract):
    fit = Ready(OwnHistory(), 120)
    ndcg_floor = 0.6


class TestAlsLog(GeneratorContract):
    fit = ALS
    ndcg_floor = 0.65


class TestAlsLinear(GeneratorContract):
    fit = replace(ALS, confidence="linear")
    ndcg_floor = 0.65


class TestAlsBinary(GeneratorContract):
    fit = replace(ALS, confidence="binary")
    ndcg_floor = 0.65


class TestEase(GeneratorContract):
    fit = Ease(regularization=20.0)
    ndcg_floor = 0.65


class TestNextBasket(GeneratorContract):
    fit = NextBasket(regularization=20.0, horizon_days=7.0, step_days=3.0)
    ndcg_floor = 0.65


class TestCooccurrence(GeneratorContract):
    fit = Cooccurrence()
    ndcg_floor = 0.65


class TestCooccurrenceWithFallback(GeneratorContract):
    fit = WithFallback()
    ndcg_floor = 0.65


class TestAlsSimilar(GeneratorContract):
    fit = AlsSimilar(als=ALS)
    ndcg_floor = 0.6


class TestLastEvents(GeneratorContract):
    fit = LastEvents()
    ndcg_floor = 0.6


class TestSvd(GeneratorContract):
    fit = Svd(factors=8)
    ndcg_floor = 0.6


class TestContent(GeneratorContract):
    fit = Content()
    ndcg_floor = 0.6


class TestContrastive(GeneratorContract):
    fit = SMALL_TOWERS
    ndcg_floor = 0.65


class TestNewItems(GeneratorContract):
    fit = NewItems(als=ALS, ridge=1.0)
    ndcg_floor = 0.75
    new_items_only = True


def test_a_past_that_holds_the_future_is_refused() -> None:
    past = learnable_shop().past()
    with pytest.raises(ValueError, match="cut it with"):
        Past(learnable_shop().log, past.table, NOW_US, 0, 1)


def test_what_a_generator_builds_on_is_fitted_once() -> None:
    past = learnable_shop().past()
    assert past.fit(ALS) is past.fit(replace(ALS))
    assert past.fit(ALS) is not past.fit(replace(ALS, alpha=9.0))
