"""Grading against an independent, slow oracle: dictionaries, one user at a time, the definitions of metrics.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import BadInputError
from training import metrics
from training.grading import Events, Recs, grade
from training.split import Window

WINDOW = Window(100, 200)
USERS = [f"u{i}" for i in range(6)]
ITEMS = [f"i{i}" for i in range(12)]
DEFINITIONS = {
    "ndcg": metrics.ndcg,
    "recall": metrics.recall,
    "precision": metrics.precision,
    "map": metrics.average_precision,
    "mrr": metrics.reciprocal_rank,
    "hr": metrics.hit_rate,
}


class Event(NamedTuple):
    user: str
    item: str
    kind: str
    time: int


EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from(["view", "purchase", "impression"]),
        st.sampled_from([10, 50, 99, 100, 150, 199, 200, 500]),  # the ends of the window among them
    ),
    max_size=40,
)
#: Some users have no list; some of those who have one take nothing.
LISTS = st.dictionaries(
    st.sampled_from([*USERS, "stranger"]), st.lists(st.sampled_from(ITEMS), unique=True, min_size=1)
)


def events_of(events: list[Event]) -> Events:
    columns = list(zip(*events, strict=True)) if events else [(), (), (), ()]
    user, item, kind = (pa.array(column, pa.string()) for column in columns[:3])
    return Events(user, item, kind, np.array(columns[3], np.int64))


def recs_of(lists: dict[str, list[str]], shuffle: int = 0) -> Recs:
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, start=1)]
    rows = [rows[i] for i in np.random.default_rng(shuffle).permutation(len(rows))]
    user, item, rank = zip(*rows, strict=True) if rows else ((), (), ())
    return Recs(pa.array(user, pa.string()), pa.array(item, pa.string()), np.array(rank, np.int64))


def oracle(events: list[Event], lists: dict[str, list[str]], repeats: str) -> dict[str, dict[str, float]]:
    """Segment -> metric -> mean over users, from dictionaries."""
    targets: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if WINDOW.start_us <= event.time < WINDOW.end_us and event.kind == "purchase":
            targets[event.user].add(event.item)
    past = [event for event in events if event.time < WINDOW.start_us]
    warm = {event.user for event in past}
    taken = {(event.user, event.item) for event in past if event.kind != "impression"}
    fresh = {user: {i for i in items if (user, i) not in taken} for user, items in targets.items()}
    left = {user: [i for i in items if (user, i) not in taken] for user, items in lists.items()}
    catalogue = {event.item for event in past} | {item for items in lists.values() for item in items}
    bought = Counter(event.item for event in past if event.kind == "purchase")
    found = {}
    for segment, wanted, slates in (
        ("warm", {u: t for u, t in (targets if repeats == "keep" else fresh).items() if u in warm}, lists),
        ("cold", {u: t for u, t in targets.items() if u not in warm}, lists),
        ("new_items", {u: t for u, t in fresh.items() if u in warm and repeats == "keep"}, left),
    ):
        mine = left if repeats == "drop" else slates
        users = {user: items for user, items in wanted.items() if items}
        if not users:
            continue
        figures: dict[str, float] = {"users": len(users)}
        shown = [mine.get(user, []) for user in users]
        for k in (5, 10, 20):
            for name, define in DEFINITIONS.items():
                figures[f"{name}@{k}"] = float(np.mean([define(mine.get(u, []), t, k) for u, t in users.items()]))
            figures[f"coverage@{k}"] = metrics.coverage(shown, len(catalogue), k)
            if any(shown):
                places = Counter(item for slate in shown for item in slate[:k])
                figures[f"gini@{k}"] = metrics.gini(np.array([places[i] for i in catalogue], float))
                if bought:
                    figures[f"novelty@{k}"] = metrics.novelty(shown, bought, k)
        found[segment] = figures
    return found


@given(EVENTS, LISTS, st.sampled_from(["keep", "drop"]))
def test_equal_to_the_oracle(
    events: list[Event], lists: dict[str, list[str]], repeats: Literal["keep", "drop"]
) -> None:
    expected = oracle(events, lists, repeats)
    try:
        found = grade(events_of(events), {"m": recs_of(lists)}, WINDOW, repeats=repeats, rounds=10)
    except BadInputError:
        assert not [e for e in events if e.kind == "purchase" and WINDOW.start_us <= e.time < WINDOW.end_us]
        return
    assert set(found.segments) == set(expected)
    for name, segment in found.segments.items():
        values = {metric: figure.value for metric, figure in segment.figures["m"].items()}
        tail = {metric for metric in values if metric.startswith("tail_share")}
        assert {"users": segment.users} | values == pytest.approx(expected[name] | {m: values[m] for m in tail})


@given(EVENTS, LISTS, LISTS)
def test_a_gain_is_the_difference_and_reverses_its_sign(
    events: list[Event], one: dict[str, list[str]], two: dict[str, list[str]]
) -> None:
    both = {"one": recs_of(one), "two": recs_of(two)}
    log = events_of([*events, Event("u0", "i0", "purchase", 150)])
    there = grade(log, both, WINDOW, rounds=50)
    back = grade(log, both, WINDOW, rounds=50, against="two")
    for name, segment in there.segments.items():
        for metric, gain in segment.gains["two"].items():
            figures = segment.figures
            assert gain.value == pytest.approx(figures["two"][metric].value - figures["one"][metric].value)
            reverse = back.segments[name].gains["one"][metric]
            assert [-reverse.high, -reverse.low] == pytest.approx([gain.low, gain.high], nan_ok=True)


@given(EVENTS, LISTS, st.integers(1, 5))
def test_order_of_rows_and_what_comes_after_the_window_change_nothing(
    events: list[Event], lists: dict[str, list[str]], shuffle: int
) -> None:
    base = [*events, Event("u0", "i0", "purchase", 150)]
    later = [Event("u1", "i3", "purchase", 200), Event("new", "new item", "purchase", 10_000)]
    one = grade(events_of(base), {"m": recs_of(lists)}, WINDOW, rounds=10)
    two = grade(events_of([*base, *later]), {"m": recs_of(lists, shuffle)}, WINDOW, rounds=10)
    assert one.segments.keys() == two.segments.keys()
    for name, segment in one.segments.items():
        assert repr(segment.figures["m"]) == repr(two.segments[name].figures["m"])  # a NaN is not itself


def test_by_hand() -> None:
    """A warm user with one repeat and one new item, a cold user without a list, an item nobody could know."""
    events = [
        Event("u1", "a", "view", 10),
        Event("u9", "b", "purchase", 20),
        Event("u1", "a", "purchase", 110),
        Event("u1", "unseen", "purchase", 120),
        Event("u2", "b", "purchase", 130),
    ]
    found = grade(events_of(events), {"m": recs_of({"u1": ["a", "b"]})}, WINDOW)
    warm, new, cold = (found.segments[name].figures["m"] for name in ("warm", "new_items", "cold"))
    assert warm["recall@5"].value == 0.5
    assert warm["precision@5"].value == 0.2
    assert warm["ndcg@5"].value == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert (new["recall@5"].value, new["hr@5"].value) == (0.0, 0.0)
    assert (cold["recall@20"].value, found.segments["cold"].answered["m"]) == (0.0, 0)


def test_what_is_not_in_the_catalogue_is_named() -> None:
    log = events_of([Event("u0", "i0", "purchase", 150)])
    with pytest.raises(BadInputError, match=r"m recommends item 'i7' to user 'u0'.*catalogue"):
        grade(log, {"m": recs_of({"u0": ["i0", "i7"]})}, WINDOW, catalogue=pa.array(["i0"]))


def test_a_window_without_targets_says_what_it_has() -> None:
    with pytest.raises(BadInputError, match="no 'purchase' events, but view 1"):
        grade(events_of([Event("u0", "i0", "view", 150)]), {"m": recs_of({"u0": ["i0"]})}, WINDOW)
