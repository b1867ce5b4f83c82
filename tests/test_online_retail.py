"""The Online Retail adapter: every line is an event or in quarantine with a reason."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo.adapters.online_retail import load
from feature_repo.adapters.titles import OTHER, categories_of
from feature_repo.datasets import Dataset, load_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings

MORNING = datetime(2011, 1, 3, 9, 30)  # noqa: DTZ001 - the publisher's times have no zone
LINE = {
    "InvoiceNo": "1001",
    "StockCode": "85123A",
    "Description": "WHITE LAMP",
    "Quantity": 6,
    "InvoiceDate": MORNING,
    "UnitPrice": 2.55,
    "CustomerID": 17850.0,
    "Country": "United Kingdom",
}
SECOND_USER = LINE | {"InvoiceNo": "1002", "CustomerID": 13047.0}
NOT_A_NUMBER = float("nan")


def load_lines(tmp_path: Path, *lines: dict) -> Dataset:
    path = tmp_path / "lines.parquet"
    pq.write_table(pa.Table.from_pylist(list(lines)), path)
    return load(path)


def test_a_line_becomes_a_purchase_in_pence(tmp_path):
    dataset = load_lines(tmp_path, LINE | {"StockCode": " 85123a "}, SECOND_USER)
    event, _ = dataset.events.to_pylist()
    at = MORNING.replace(tzinfo=UTC)
    assert event == {
        "event_id": "1001-1",
        "user_id": "17850",
        "item_id": "85123A",
        "event_type": "purchase",
        "value": 1530.0,
        "quantity": 6,
        "event_timestamp": at,
        "received_at": at,
        "session_id": "1001",
        "request_id": None,
        "rank": None,
        "context": None,
        "category": OTHER,
        "price": 255,
    }


def test_a_cancellation_carries_positive_numbers(tmp_path):
    cancel = LINE | {"InvoiceNo": "C1003", "Quantity": -6}
    events = load_lines(tmp_path, LINE, SECOND_USER, cancel).events.to_pylist()
    (event,) = [event for event in events if event["event_type"] == "cancel"]
    assert (event["event_id"], event["quantity"], event["value"]) == ("C1003-1", 6, 1530.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"CustomerID": None}, "no_customer"),
        ({"CustomerID": NOT_A_NUMBER}, "no_customer"),
        ({"StockCode": "POST"}, "non_product_code"),
        ({"StockCode": "BANK CHARGES"}, "non_product_code"),
        ({"StockCode": "m"}, "non_product_code"),
        ({"UnitPrice": 0.0}, "zero_price"),
        ({"UnitPrice": 0.001}, "zero_price"),
        ({"UnitPrice": -3.0}, "negative"),
        ({"UnitPrice": NOT_A_NUMBER}, "not_finite"),
        ({"UnitPrice": 1e300}, "too_large"),
        ({"Quantity": -(2**63)}, "too_large"),
        ({"UnitPrice": 1e13, "Quantity": 999_999_999}, "too_large"),
        ({"CustomerID": 1e300}, "no_customer"),
        ({"Quantity": -5}, "not_a_sale"),
        ({"Quantity": 0}, "not_a_sale"),
        ({"InvoiceNo": "C1", "Quantity": 5}, "not_a_sale"),
        ({"InvoiceNo": "A563185"}, "not_a_sale"),
        ({"InvoiceNo": None}, "missing_field"),
        ({"InvoiceDate": None}, "missing_field"),
        ({"InvoiceDate": datetime(1950, 1, 1)}, "bad_time"),  # noqa: DTZ001 - the publisher's times have no zone
    ],
)
def test_a_line_that_is_no_event_is_quarantined_with_its_row(tmp_path, changes, reason):
    broken = LINE | {"InvoiceNo": "1009"} | changes
    dataset = load_lines(tmp_path, LINE, broken, SECOND_USER)
    (row,) = dataset.quarantine.to_pylist()
    assert (row["row"], row["reason"]) == (1, reason)
    assert json.loads(row["raw"], parse_constant=pytest.fail)  # the line itself, readable
    assert dataset.events.num_rows == 2


def test_equal_lines_of_an_invoice_are_both_kept(tmp_path):
    dataset = load_lines(tmp_path, LINE, LINE, SECOND_USER)
    assert dataset.events["event_id"].to_pylist() == ["1001-1", "1001-2", "1002-1"]


def test_the_catalogue_knows_nothing_of_later_days(tmp_path):
    later = {"InvoiceDate": datetime(2011, 9, 1), "UnitPrice": 3.0}  # noqa: DTZ001 - the publisher's times have no zone
    dataset = load_lines(
        tmp_path,
        LINE | {"StockCode": "10000", "Description": "OLD THING"},
        LINE | {"Description": "wrong?"},
        LINE,
        SECOND_USER | later,
    )
    old, lamp = dataset.items.to_pylist()
    assert (old["item_id"], old["available"]) == ("10000", True)
    assert (lamp["title"], lamp["price"], lamp["available"]) == ("WHITE LAMP", 255, True)
    assert lamp["created_at"] == MORNING.replace(tzinfo=UTC)


def test_unusable_files_are_refused_in_words(tmp_path):
    with pytest.raises(NotFoundError, match=r"archive\.ics\.uci\.edu.*DATA_DIR"):
        load_dataset("online_retail", Settings(data_dir=tmp_path))
    path = tmp_path / "x.parquet"
    path.write_bytes(b"InvoiceNo,StockCode\n")
    with pytest.raises(BadInputError, match="Parquet"):
        load(path)
    table = pa.Table.from_pylist([LINE])
    for broken, words in (
        (table.drop(["UnitPrice", "Quantity"]), "lacks the columns Quantity, UnitPrice"),
        (table.slice(0, 0), "no rows"),
        (table.set_column(3, "Quantity", pa.array(["many"])), "Quantity"),
        (table, "at least two users"),
        (table.set_column(6, "CustomerID", pa.nulls(1)), r"at least two users|no_customer"),
    ):
        pq.write_table(broken, path)
        with pytest.raises(BadInputError, match=words):
            load(path)


def test_a_category_is_the_head_noun_if_enough_titles_share_it():
    titles = [f"GLASS T{'X' * i} LAMP WITH STARS" for i in range(20)] + [
        "RED LAMPS, SET OF 3",
        "FOX UNDER LAMP POST",
        None,
    ]
    assert categories_of(titles) == ["LAMP"] * 22 + [OTHER]
    assert categories_of(["LAMP"] * 3) == [OTHER] * 3


@pytest.fixture(scope="module")
def online_retail() -> Dataset:
    settings = Settings.load()
    if not (settings.data_dir / "online_retail").is_dir():
        pytest.skip("the real data are not on this machine (DATA_DIR)")
    return load_dataset("online_retail", settings)


def test_on_the_real_data_every_line_is_accounted_for(online_retail):
    rows = online_retail.quarantine["row"].to_pylist()
    assert online_retail.events.num_rows + len(rows) == 541_909
    assert len(set(rows)) == len(rows)
    assert online_retail.quarantined == {"no_customer": 135_080, "non_product_code": 1_920, "zero_price": 33}
    kinds = Counter(online_retail.events["event_type"].to_pylist())
    assert kinds == {"purchase": 396_337, "cancel": 8_539}
    assert pc.count_distinct(online_retail.events["event_id"]).as_py() == online_retail.events.num_rows


def test_on_the_real_data_the_catalogue_covers_the_events_and_most_items_have_a_category(online_retail):
    items = online_retail.items
    assert set(online_retail.events["item_id"].to_pylist()) == set(items["item_id"].to_pylist())
    sizes = Counter(items["category"].to_pylist())
    assert 40 <= len(sizes) <= 120
    assert sizes[OTHER] < 0.2 * items.num_rows
    assert items["title"].null_count == items["price"].null_count == items["created_at"].null_count == 0
