"""`larder data describe`: the figures are those of the events, and nothing in the data can break the page."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo.adapters.assemble import catalogue
from feature_repo.datasets import Dataset, load_dataset, make_dataset, read_events, write_dataset
from feature_repo.errors import NotFoundError
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.settings import Settings
from larder.describing.figures import PRICE_BINS, Description, describe
from larder.describing.page import data_page, summary
from larder.describing.pictures import pictures

START = datetime(2026, 1, 5, 10, tzinfo=UTC)  # a Monday
HOSTILE = "<script>alert(1)</script> $\\frac{$ 日本"


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="shop")


def shop(*rows: tuple[str, str, str, timedelta, int | None], category: str = "tea") -> Dataset:
    """Events of (user, item, type, time since START, price)."""
    events = [
        {
            "event_id": str(number),
            "user_id": user,
            "item_id": item,
            "event_type": kind,
            "event_timestamp": START + after,
            "received_at": START + after,
            "category": category,
            "price": price,
        }
        for number, (user, item, kind, after, price) in enumerate(rows)
    ]
    table = pa.Table.from_pylist(events, schema=EVENT_SCHEMA)
    known = pa.Table.from_pylist([], schema=ITEM_SCHEMA)
    refused = {"source": "s", "row": 0, "reason": category, "detail": category, "raw": "{}"}
    quarantine = pa.Table.from_pylist([refused] * 3, schema=QUARANTINE_SCHEMA)
    return make_dataset("tiny", table, catalogue(table, known), quarantine)


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TINY = (
    ("anna", "a", "view", 0 * HOUR, 100),
    ("anna", "a", "cart", HOUR, 100),
    ("anna", "a", "purchase", 2 * HOUR, 100),
    ("ben", "a", "view", DAY, 2500),
    ("ben", "b", "purchase", DAY, None),  # never seen: no part of the funnel after a view
    ("ben", "b", "view", 2 * DAY, None),
    ("cleo", "b", "view", 3 * DAY, 2500),
)


def test_the_figures_by_hand(home: Settings) -> None:
    write_dataset(shop(*TINY), home)
    found = describe(home)
    assert (found.events, found.users, found.items, found.catalogue) == (7, 3, 2, 2)
    assert found.kinds == {"view": 4, "cart": 1, "purchase": 2}
    assert [found.hours[hour] for hour in (10, 11, 12)] == [5, 1, 1]
    assert found.weekdays == [3, 2, 1, 1, 0, 0, 0]
    assert found.funnel == {"view": 4, "cart": 1, "purchase": 2}
    assert found.funnel_after == {"view": 4, "cart": 1, "purchase": 1}
    assert found.step == "day"
    assert [(p.events, p.users, p.new_users, p.items, p.new_items) for p in found.periods] == [
        (3, 1, 1, 1, 1),
        (2, 1, 1, 2, 1),
        (1, 1, 0, 1, 0),
        (1, 1, 1, 1, 0),
    ]
    assert found.categories == [("tea", 7, 2)]
    assert list(found.prices.values()) == [3, 2]
    assert list(found.prices) == pytest.approx([100, 10 ** (16 / PRICE_BINS)])  # 25.00 lies in the bar from 15.85
    assert found.per_user.bars == {1: 1, 2: 2}
    assert found.per_item.quantiles == {"min": 3, "p50": 3.5, "p90": 3.9, "p99": 3.99, "max": 4}
    assert found.quarantine == {"tea": 3}


def test_the_funnel_counts_a_step_only_after_the_ones_before_it(home: Settings) -> None:
    steps = {
        "anna": ("view", "cart", "purchase"),
        "ben": ("cart", "view", "purchase"),
        "cleo": ("view", "purchase", "cart"),
    }
    rows = [(user, "a", kind, at * HOUR, 1) for user, kinds in steps.items() for at, kind in enumerate(kinds)]
    write_dataset(shop(*rows), home)
    assert describe(home).funnel == {"view": 3, "cart": 3, "purchase": 3}
    assert describe(home).funnel_after == {"view": 3, "cart": 2, "purchase": 1}


def test_the_figures_are_those_of_the_events(home: Settings) -> None:
    """Every split of the simulator's events adds up, and equals counting the rows one by one."""
    write_dataset(load_dataset("simulator", home, n_events=5_000), home)
    found = describe(home)
    events = read_events(home).to_pylist()
    assert (
        found.events == len(events) == sum(found.hours) == sum(found.weekdays) == sum(p.events for p in found.periods)
    )
    assert found.hours == [Counter(e["event_timestamp"].hour for e in events)[hour] for hour in range(24)]
    assert found.kinds == Counter(e["event_type"] for e in events)
    for name, key in (("users", "user_id"), ("items", "item_id")):
        counts = Counter(e[key] for e in events)
        assert sum(getattr(p, f"new_{name}") for p in found.periods) == len(counts) == getattr(found, name)
        lengths = getattr(found, f"per_{key.partition('_')[0]}")
        assert sum(lengths.bars.values()) == len(counts)
        assert lengths.quantiles["max"] == max(counts.values())
    seen = {(e["user_id"], e["item_id"]) for e in events if e["event_type"] == "view"}
    assert found.funnel["view"] == len(seen)
    assert sum(found.prices.values()) == sum(bool(e["price"]) for e in events)


def page_of(found: Description) -> str:
    return data_page(found, pictures(found))


def test_names_in_the_data_cannot_break_the_page(home: Settings) -> None:
    write_dataset(shop(*TINY, category=HOSTILE), home)
    page = page_of(replace(describe(home), data_set=HOSTILE, project=HOSTILE))
    assert "<script" not in page
    assert page.count(escape(HOSTILE)) >= 4
    images = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    assert len(images) == 8
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert not re.search(r"(?:src|href)='(?!data:)", page), "the page needs nothing else"


def test_a_shop_with_purchases_only_and_without_prices_is_described(home: Settings) -> None:
    purchases = [(f"u{i}", "a", "purchase", i * 40 * DAY, None) for i in range(30)]
    write_dataset(shop(*purchases), home)
    found = describe(home)
    assert (found.step, found.prices, found.price_quantiles) == ("month", {}, {})
    page = page_of(found)
    assert "From view to purchase" not in page
    assert "Prices" not in page
    assert "funnel" not in dict(summary(found))


def test_a_project_without_events_is_said_to_have_none(home: Settings) -> None:
    with pytest.raises(NotFoundError, match="'shop' has no events"):
        describe(home)


def test_the_page_on_own_data_works_as_pasted(tmp_path: Path) -> None:
    """Its commands, in an empty directory: import, describe; the figures it promises."""
    page = (Path(__file__).parent.parent / "docs" / "own-data.md").read_text("utf-8")
    make, look = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[:2]
    commands = re.sub(r"^larder ", f"{sys.executable} -m larder.cli ", make + look, flags=re.MULTILINE)
    run = ["/bin/bash", "-euc", commands]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 events accepted" in done.stdout
    assert "1 rows in quarantine" in done.stdout
    assert (tmp_path / ".larder" / "results" / "data-myshop.html").is_file()
    quarantine = pa.parquet.read_table(tmp_path / ".larder" / "myshop" / "quarantine" / "myshop.parquet")
    (detail,) = quarantine["detail"].to_pylist()
    assert detail in page
