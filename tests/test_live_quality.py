"""Live quality: the join against a slow oracle, what feedback is believed, intervals that cover, and the report."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from monitoring.live_quality.measure import Extent, measure
from monitoring.live_quality.ratio import Sums
from monitoring.live_quality.report import Group, QualityReport
from serving.impressions import ImpressionRecord
from tests.answered_shop import ITEMS, NOW_US, AnsweredShop, random_shop
from training.metrics import coverage, ndcg, novelty, reciprocal_rank, tail_share

MINUTE_US = 60_000_000
SINCE = NOW_US - 3 * DAY_US


def us(when: Any) -> int:
    return round(when.timestamp() * 1e6)


class Oracle:
    """The same figures by plain loops, for all lists of a bundle."""

    def __init__(self, shop: AnsweredShop, window: int = DAY_US) -> None:
        self.by_id: dict[str, list[ImpressionRecord]] = defaultdict(list)
        for one in shop.lists:
            self.by_id[one.request_id].append(one)
        self.done: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
        self.fates: dict[tuple[str, str], int] = defaultdict(int)
        for event in shop.events:
            at = us(event["event_timestamp"])
            found, fate = self.list_of(shop, event, at, window)
            if event["request_id"] is not None and us(event["received_at"]) // 1000 >= SINCE // 1000:
                self.fates[event["event_type"], fate] += 1
            if fate == "settled":
                kind = event["event_type"]
                key = "verdict" if kind in ("confirm", "reject") else kind
                self.done[id(found), event["item_id"]][key] = kind  # in seq order: the last verdict holds

    def list_of(self, shop: AnsweredShop, event: dict[str, Any], at: int, window: int) -> tuple[Any, str]:
        if event["request_id"] is None:
            shown = [
                one for one in shop.lists
                if one.user_id == event["user_id"] and one.time_us <= at <= one.time_us + window
                and event["item_id"] in [line.item_id for line in one.items]
            ]  # fmt: skip
            return (max(shown, key=lambda one: one.time_us), "settled") if shown else (None, "none")
        named = [one for one in self.by_id[event["request_id"]] if one.time_us >= SINCE - DAY_US]
        mine = [one for one in named if one.user_id == event["user_id"]]
        having = [one for one in mine if event["item_id"] in [line.item_id for line in one.items]]
        if not having:
            return None, "no_record" if not named else "other_user" if not mine else "not_shown"
        newest = max(having, key=lambda one: one.time_us)
        in_time = newest.time_us - 300 * 1_000_000 <= at <= newest.time_us + window
        return newest, "settled" if in_time else "too_late"

    def did(self, one: ImpressionRecord, kind: str) -> set[str]:
        return {line.item_id for line in one.items if kind in self.done[id(one), line.item_id].values()}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_are_those_of_a_slow_oracle(settings: Settings, seed: int) -> None:
    shop = random_shop(settings, seed)
    report = measure(settings, NOW_US, Extent(since_us=SINCE))
    oracle = Oracle(shop)
    found = defaultdict(int)
    for one in report.settled:
        found[one.kind, one.fate] += one.events
    assert dict(found) == dict(oracle.fates)
    seen = Counter(dict.fromkeys(ITEMS[:6], 4) | {ITEMS[6]: 16})  # the history of `write`
    seen.update(e["item_id"] for e in shop.events if us(e["received_at"]) < SINCE and e["event_type"] != "impression")
    seen = dict(sorted(seen.items()))
    for group in report.of("all"):
        lists = [one for one in shop.lists if (one.served_bundle, one.assigned_arm) == (group.bundle_id, group.arm)
                 and SINCE <= one.time_us < NOW_US - 10 * MINUTE_US]  # fmt: skip
        mature = [one for one in lists if one.time_us < NOW_US - DAY_US]
        slates = [[line.item_id for line in one.items] for one in lists]
        clicks = [oracle.did(one, "view") for one in lists]
        clicked = [(slate, some) for slate, some in zip(slates, clicks, strict=True) if some]
        verdicts = [(line.rank, oracle.done[id(one), line.item_id].get("verdict")) for one in lists for line in one.items]
        tp = sum(verdict == "confirm" and rank <= 5 for rank, verdict in verdicts)
        fp = sum(verdict == "reject" and rank <= 5 for rank, verdict in verdicts)
        confirmed = sum(verdict == "confirm" for _, verdict in verdicts)
        scored = [(line, oracle.done[id(one), line.item_id]) for one in mature if one.level == "full" for line in one.items]
        expected = {
            "ctr": sum(map(len, clicks)) / sum(map(len, slates)),
            "click_rate": len(clicked) / len(lists),
            "ndcg": np.mean([ndcg(slate, some, 10) for slate, some in clicked]),
            "mrr": np.mean([reciprocal_rank(slate, some, 99) for slate, some in clicked]),
            "conversion": np.mean([bool(oracle.did(one, "purchase")) for one in mature]),
            "cart_rate": np.mean([bool(oracle.did(one, "cart")) for one in mature]),
            "precision": tp / (tp + fp),
            "recall": tp / confirmed,
            "f1": 2 * tp / (tp + fp + confirmed),
            "predicted": np.mean([line.score for line, _ in scored]),
            "observed": np.mean(["purchase" in done for _, done in scored]),
            "novelty_bits": novelty(slates, seen, 99),
            "popular_share": 1 - tail_share(slates, seen, 99),
        }
        values = {name: group.figures[name].value for name in expected}
        assert values == pytest.approx(expected, rel=1e-9), group.arm
        assert group.coverage == coverage(slates, len(ITEMS), 99)
        assert (group.requests, group.shown) == (len(lists), sum(map(len, slates)))
    assert sum(group.requests for group in report.of("all")) == report.requests
    parts = [sum(group.shown for group in report.of(segment)) for segment in ("warm", "cold", "new")]
    assert sum(parts) == sum(group.shown for group in report.of("all"))


def figures(report: QualityReport, segment: str = "all", bundle: str = "b1") -> Group:
    (group,) = (one for one in report.of(segment) if one.bundle_id == bundle)
    return group
