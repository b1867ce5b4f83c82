"""Parts of the service by themselves: the impression log, the guard before Redis, table updates, events on entry."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import UnavailableError
from feature_repo.event_rules import REASONS
from feature_repo.events import EVENT_SCHEMA
from feature_repo.rows import Rows, null_rows
from feature_repo.views import DAY_US, ITEM_STATS
from serving.background import BackgroundWork
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.recommender import RankedItem
from serving.event_entry import RefusedEvent, prepare_event
from serving.impression_log import ImpressionLog
from serving.impressions import Impressions
from serving.redis_client import RedisGuard
from serving.schemas import checked_id

NOW_US = 1_790_000_000_000_000


def record(n: int, time_us: int = NOW_US) -> Impressions:
    items = [RankedItem("i1", 1, 0.5, "history")]
    return Impressions(f"r{n}", time_us, "u", "stable", "b", "1", "full", 20, items, 1, 2, 0.1, [])


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(directory.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def test_stopping_writes_everything_that_was_queued(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = ImpressionLog(tmp_path, dropped.append)
    log.start()
    for n in range(5000):
        log.append(record(n, NOW_US + (n % 2) * DAY_US))
    log.stop()
    assert not dropped
    assert sorted(line["request_id"] for line in lines_of(tmp_path)) == sorted(f"r{n}" for n in range(5000))
    days = sorted(path.name for path in tmp_path.iterdir())
    assert days == ["2026-09-21", "2026-09-22"]
    assert lines_of(tmp_path)[0] == {
        "request_id": "r0", "time_us": NOW_US, "user_id": "u", "assigned_arm": "stable", "served_bundle": "b",
        "model_version": "1", "level": "full", "k": 20,
        "items": [{"item_id": "i1", "rank": 1, "score": 0.5, "source": "history", "slot": None}], "user_seq": 1,
        "recent_seq": 2,
        "feature_age_s": 0.1, "reasons": [], "seen": None, "latency_ms": None, "failure": None, "epoch": 0,
        "propensities": None, "explored": None,
    }  # fmt: skip


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = ImpressionLog(tmp_path, dropped.append, length=10)
    start = time.monotonic()
    for n in range(25):  # nobody takes them up yet
        log.append(record(n))
    assert time.monotonic() - start < 0.5
    assert sum(dropped) == 15
    log.start()
    log.stop()
    assert len(lines_of(tmp_path)) == 10


def test_what_the_disk_refuses_is_counted_and_the_log_goes_on(tmp_path: Path) -> None:
    dropped: list[int] = []
    directory = tmp_path / "log"
    directory.write_text("a file where the directory should be")
    log = ImpressionLog(directory, dropped.append)
    log.start()
    log.append(record(1))
    deadline = time.monotonic() + 10
    while not dropped and time.monotonic() < deadline:
        time.sleep(0.05)
    directory.unlink()
    log.append(record(2))
    log.stop()
    assert dropped == [1]
    assert [line["request_id"] for line in lines_of(directory)] == ["r2"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_guard_stops_asking_after_failures_and_tries_again() -> None:
    clock, asked = Clock(), []
    guard = RedisGuard(0.05, failures=3, pause_s=1.0, clock=clock)

    async def fail() -> None:
        asked.append(clock.now)
        raise OSError("refused")

    async def work() -> int:
        asked.append(clock.now)
        return 7

    for _ in range(10):
        with pytest.raises(UnavailableError):
            await guard.call(fail)
    assert len(asked) == 3
    clock.now = 1.5
    for _ in range(10):
        with pytest.raises(UnavailableError):
            await guard.call(fail)
    assert len(asked) == 4, "one try a second"
    assert guard.failing
    clock.now = 3.0
    assert [await guard.call(work), await guard.call(work)] == [7, 7]
    assert not guard.failing


async def test_the_guard_bounds_a_call() -> None:
    guard = RedisGuard(0.02)
    start = time.monotonic()
    with pytest.raises(UnavailableError):
        await guard.call(lambda: asyncio.sleep(5))
    assert time.monotonic() - start < 1


ids = st.sampled_from([f"i{n}" for n in range(12)])
states = st.dictionaries(
    ids,
    st.tuples(
        st.sampled_from([None, "bread", "tea"]), st.none() | st.integers(1, 99), st.booleans(), st.integers(0, 9)
    ),
)


def parts(state: dict[str, Any]) -> tuple[list[CatalogEntry], Rows]:
    catalog = [CatalogEntry(i, f"t{price}", cat, price, None, av) for i, (cat, price, av, _) in state.items()]
    ints = np.zeros((len(state), len(ITEM_STATS.ints)), np.int64)
    ints[:, 0] = NOW_US
    ints[:, 2:] = np.array([n for *_, n in state.values()], np.int64).reshape(-1, 1)
    floats = np.tile(ints[:, 2:3].astype(float), (1, len(ITEM_STATS.floats)))
    return catalog, Rows(ITEM_STATS, ints, floats, ints[:, 2] > 0)


def as_dict(table: ItemTable) -> dict[str, Any]:
    return {
        item: (
            table.titles[i], table.category[i], table.category_names[table.category_code[i]], bool(table.available[i]),
            *(None if np.isnan(column[i]) else float(column[i]) for column in table.columns.values()),
        )
        for item, i in table.index.items()
    }  # fmt: skip


@given(states, st.lists(states, max_size=4))
@settings(max_examples=60, deadline=None)
def test_changes_lead_to_the_same_table_as_loading_everything(first: Any, later: list[Any]) -> None:
    table, state = build_item_table(*parts(first), NOW_US), dict(first)
    for change in later:
        before, known = as_dict(table), set(table.ids)
        following = apply_changes(table, *parts(change), NOW_US + 1)
        state |= change
        assert as_dict(table) == before, "the last table stays as it was"
        assert following.ids[: len(table)] == table.ids, "items keep their index"
        assert (following.ids is table.ids) == (set(change) <= known)
        assert as_dict(following) == as_dict(build_item_table(*parts(state), NOW_US))
        table = following


SHOP = build_item_table(
    [CatalogEntry("tea", "Tea", "drinks", 250), CatalogEntry("odd")], null_rows(ITEM_STATS, 2), NOW_US
)


def prepared(**fields: Any) -> dict[str, Any]:
    return prepare_event({"user_id": "u", "item_id": "tea", "event_type": "view"} | fields, SHOP, NOW_US, "made-up")


def test_an_event_is_completed_with_what_the_shop_knows_now() -> None:
    assert prepared() == {
        "event_id": "made-up", "user_id": "u", "item_id": "tea", "event_type": "view", "event_timestamp": NOW_US,
        "received_at": NOW_US, "category": "drinks", "price": 250,
    }  # fmt: skip
    assert prepared(event_type="purchase", quantity=3)["value"] == 750.0
    assert prepared(event_type="purchase", quantity=3, price=200)["value"] == 600.0
    assert prepared(event_type="purchase", value=5)["value"] == 5
    assert "value" not in prepared(event_type="cart", quantity=3)
    assert not {"category", "price"} & set(prepared(item_id="odd"))
    assert not {"category", "price", "value"} & set(prepared(item_id="unknown", event_type="purchase"))


def test_times_are_clamped_to_the_receipt() -> None:
    assert prepared(event_timestamp="2026-09-21T00:00:00+02:00")["event_timestamp"] == 1_789_941_600_000_000
    ahead = "2026-09-21T14:14:50Z"  # 90 s ahead of NOW_US
    assert prepared(event_timestamp=ahead)["event_timestamp"] == NOW_US
    with pytest.raises(RefusedEvent, match="future_time"):
        prepared(event_timestamp="2026-09-21T15:00:00Z")


def test_ids_are_normalised() -> None:
    assert prepared(user_id="e\u0301")["user_id"] == "\u00e9"
    assert checked_id("e\u0301") == "\u00e9"


@pytest.mark.parametrize("last", ["\x00", "\ud800", "a"])
def test_every_letter_of_an_id_is_looked_at(last: str) -> None:
    text = "\u03b1\u0313\u0300\u0345" * 40 + last  # 161 letters that are 41 in NFC
    if last == "a":
        assert checked_id(text) == prepared(user_id=text)["user_id"]
        return
    with pytest.raises(ValueError, match="id"):
        checked_id(text)
    with pytest.raises(RefusedEvent, match="bad_id"):
        prepared(user_id=text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
fields = st.sampled_from([*EVENT_SCHEMA.names, "other"])
right = {"user_id": "u", "item_id": "tea", "event_type": "purchase"}


@given(st.dictionaries(fields, json_values, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_right_event_or_refused_with_a_known_reason(changes: dict[str, Any]) -> None:
    try:
        event = prepare_event(right | changes, SHOP, NOW_US, "made-up")
    except RefusedEvent as refusal:
        assert str(refusal).partition(":")[0] in REASONS
        return
    assert set(event) <= set(EVENT_SCHEMA.names)
    assert event["event_timestamp"] <= event["received_at"] == NOW_US


@given(st.text(max_size=140) | st.text("a\u0301\u0323\x00 \ud800", max_size=400))
@settings(max_examples=200, deadline=None)
def test_the_edge_and_the_event_rules_agree_on_ids(text: str) -> None:
    try:
        prepare_event(right | {"user_id": text}, SHOP, NOW_US, "made-up")
    except RefusedEvent:
        with pytest.raises(ValueError, match="id"):
            checked_id(text)
    else:
        assert checked_id(text)
        assert checked_id(text).encode(), "no lone surrogate comes through"


async def test_background_work_ends_although_a_cancellation_is_lost() -> None:
    """A client that swallows one cancellation (Python 3.11's wait_for does) cannot keep the service from ending."""
    begun, lost = asyncio.Event(), 0

    async def swallow() -> None:
        nonlocal lost
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost += 1
            if lost > 1:
                raise

    work = BackgroundWork("swallow", 0.0, swallow, {})
    work.start()
    await begun.wait()
    async with asyncio.timeout(5):
        await work.stop()
    assert lost >= 1
