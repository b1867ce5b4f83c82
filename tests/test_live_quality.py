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
        verdicts = [
            (line.rank, oracle.done[id(one), line.item_id].get("verdict")) for one in lists for line in one.items
        ]
        tp = sum(verdict == "confirm" and rank <= 5 for rank, verdict in verdicts)
        fp = sum(verdict == "reject" and rank <= 5 for rank, verdict in verdicts)
        confirmed = sum(verdict == "confirm" for _, verdict in verdicts)
        scored = [
            (line, oracle.done[id(one), line.item_id]) for one in mature if one.level == "full" for line in one.items
        ]
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


def test_feedback_that_nobody_could_check_is_settled_by_the_join(settings: Settings) -> None:
    shop, at = AnsweredShop(settings), NOW_US - 2 * DAY_US
    shop.show("r1", "ann", ["i1", "i2", "i3"], at)
    shop.show("r2", "bob", ["i1", "i2"], at)
    shop.show("old", "ann", ["i1"], at - 20 * DAY_US)
    for n, (user, item, request, verdict, rank) in enumerate((
        ("ann", "i1", "r1", "confirm", None), ("ann", "i1", "r1", "reject", None), ("ann", "i1", "r1", "confirm", 1),
        ("ann", "i2", "r1", "reject", 3), ("ann", "i9", "r1", "confirm", None), ("ann", "i1", "r2", "confirm", None),
        ("ann", "i1", "elsewhere", "confirm", None), ("bob", "i2", "r2", "confirm", None),
        ("bob", "i2", "r2", "reject", None),
    )):  # fmt: skip
        shop.did(user, item, verdict, at + (n + 1) * MINUTE_US, request, rank=rank)
    shop.did("bob", "i1", "confirm", NOW_US - MINUTE_US, "r2")
    for user, item in (("ann", "i1"), ("bob", "i2")):  # one id by mistake: each has their own list
        shop.show("shared", user, [item], at)
        shop.did(user, "i2", "confirm", at + 60 * MINUTE_US, "shared")
    shop.write()
    report = measure(settings, NOW_US, Extent(since_us=at - DAY_US))
    of = {fate: report.events(fate, kinds=("confirm", "reject")) for fate in
          ("settled", "not_shown", "other_user", "no_record", "too_late")}  # fmt: skip
    assert of == {"settled": 7, "not_shown": 2, "other_user": 1, "no_record": 1, "too_late": 1}
    unchecked = sum(one.events for one in report.settled if not one.claimed and one.fate == "settled")
    assert unchecked == 5, "the API had not known these lists"
    assert sum(one.rank_differs for one in report.settled) == 1
    confirmed = figures(report).figures["confirmed"]
    # The last verdict holds: ann's i1 confirmed, i2 rejected; bob's i2 rejected, and confirmed in the other list.
    assert (confirmed.numerator, confirmed.denominator) == (2.0, 4.0)


def test_young_lists_and_unfinished_windows_are_told(settings: Settings) -> None:
    shop = AnsweredShop(settings)
    for n, age in enumerate((5 * MINUTE_US, 60 * MINUTE_US, 30 * 60 * MINUTE_US)):
        shop.show(f"r{n}", f"u{n}", ["i1", "i2"], NOW_US - age)
        shop.did(f"u{n}", "i1", "purchase", NOW_US - age + MINUTE_US, f"r{n}")
    shop.write()
    report = measure(settings, NOW_US)
    assert report.requests == 2
    assert sorted(report.left_out.values()) == [1, 1]
    assert figures(report).figures["conversion"].denominator == 1.0, "a window that is open would count too little"
    assert report.events("no_record", kinds=("purchase",)) == 0, "a young list is a list"
    assert measure(settings, NOW_US, Extent(wait_us=0)).requests == 3
    with pytest.raises(NotFoundError, match="3 answers are too young"):
        measure(settings, NOW_US, Extent(wait_us=5 * DAY_US))
    with pytest.raises(BadInputError, match="type of event"):
        measure(settings, NOW_US, Extent(target="'; DROP TABLE lines; --"))


def test_nothing_served_is_said(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="nothing was served"):
        measure(settings, NOW_US)


def test_a_shop_without_any_event_is_measured(settings: Settings) -> None:
    shop = AnsweredShop(settings)
    shop.show("r1", "ann", ["i1"])
    shop.show("r2", "bob", ["i1"], served_bundle=None, model_version=None, level="popularity")
    shop.show("r3", "cat", [])
    shop.write()
    report = measure(settings, NOW_US)
    ctr = figures(report).figures["ctr"]
    assert (ctr.value, ctr.denominator) == (0.0, 1.0)
    assert math.isnan(ctr.high), "one user says nothing of others"
    assert "ndcg" not in figures(report).figures
    assert "predicted" not in figures(report, bundle="").figures, "a share of purchases is no probability"


def moments(y: Any, x: Any) -> Sums:
    return Sums(len(x), *(float(v) for v in (y.sum(), x.sum(), (y * y).sum(), (x * y).sum(), (x * x).sum())))


@pytest.mark.parametrize(
    ("users", "rate", "alike", "loyal"),
    [(60, 0.1, 4.0, 0.0), (300, 0.03, 10.0, 0.0), (300, 0.1, 3.0, 0.6), (30, 0.4, 2.0, 0.0)],
)
def test_intervals_cover_though_a_users_lists_are_alike(users: int, rate: float, alike: float, loyal: float) -> None:
    """A user's items share a rate (beta with `alike` pseudo-counts); `loyal` users see more and click more."""
    rng, rounds = np.random.default_rng(7), 800

    def drawn(many: int) -> tuple[Any, Any]:
        p = rng.beta(rate * alike, (1 - rate) * alike, many)
        return p, 5.0 * rng.geometric(0.3 * (1 - loyal * (p > rate)))

    p, x = drawn(1_000_000)
    truth = float((p * x).sum() / x.sum())
    covered = naive = 0
    for _ in range(rounds):
        p, x = drawn(users)
        estimate = moments(rng.binomial(x.astype(int), p).astype(float), x).estimate("share")
        covered += estimate.low <= truth <= estimate.high
        value = estimate.value
        naive += abs(value - truth) <= 1.96 * math.sqrt(value * (1 - value) / x.sum())
    assert 0.915 <= covered / rounds <= 0.985
    assert naive / rounds < 0.85, "as if every item shown were a draw of its own"


def test_intervals_of_extremes_stay_in_range() -> None:
    ones = np.ones(20)
    assert moments(0 * ones, 10 * ones).estimate("share").low == 0.0
    assert 0.1 < moments(0 * ones, 10 * ones).estimate("share").high < 0.25, "20 users, not 200 draws"
    assert moments(10 * ones, 10 * ones).estimate("share").low > 0.75
    quotient = moments(0 * ones, ones).estimate("quotient")
    assert (quotient.low, round(quotient.high, 3)) == (0.0, 0.184)
    assert math.isnan(replace(moments(ones, ones), x=0.0).value)
