"""The adapters of MovieLens, REES46 and Complete Journey: every line is an event or in quarantine with a reason."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo.adapters import complete_journey, movielens, rees46
from feature_repo.datasets import Dataset, load_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings

RATINGS = "userId,movieId,rating,timestamp\n"
GOOD_RATINGS = "1,10,4.0,964982703\n2,10,3.5,964982704\n"
MOVIES = """movieId,title,genres
10,"American President, The (1995)",Comedy|Drama|Romance
11,Nobody,(no genres listed)
"""
REES46 = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
VIEW = "2019-10-01 00:00:00 UTC,view,7,21,electronics.audio,sony,35.79,1,s1\n"
PURCHASE = "2019-10-01 00:01:00 UTC,purchase,8,22,,,10.10,2,s2\n"
SALE = {
    "household_id": 1,
    "basket_id": 31198705046.0,
    "product_id": 7.0,
    "quantity": 2.0,
    "sales_value": 2.99,
    "transaction_timestamp": 1483273827.0,
}
OTHER_SALE = SALE | {"household_id": 2, "basket_id": 5.0}
PRODUCTS = [
    {
        "product_id": 7.0,
        "product_category": "BREAD",
        "product_type": "ROLLS",
        "package_size": "6 CT",
        "brand": "Private",
    },
    {"product_id": 9.0, "product_category": "ICE", "product_type": "ICE", "package_size": None, "brand": "National"},
]


def load_movielens(directory: Path, lines: str, movies: str = MOVIES) -> Dataset:
    (directory / "ratings.csv").write_text(RATINGS + lines)
    (directory / "movies.csv").write_text(movies)
    return movielens.load(directory)


def load_rees46(directory: Path, lines: str) -> Dataset:
    (directory / "2019-Oct.csv").write_text(REES46 + lines)
    return rees46.load(directory)


def load_complete_journey(directory: Path, *lines: dict) -> Dataset:
    pq.write_table(pa.Table.from_pylist(list(lines)), directory / "transactions.parquet")
    pq.write_table(pa.Table.from_pylist(PRODUCTS), directory / "products.parquet")
    return complete_journey.load(directory)


def some(event: dict) -> dict:
    return {name: value for name, value in event.items() if value is not None}


def test_a_movielens_rating_and_its_movie(tmp_path: Path) -> None:
    dataset = load_movielens(tmp_path, GOOD_RATINGS)
    at = datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC)
    assert some(dataset.events.to_pylist()[0]) == {
        "event_id": "1-10",
        "user_id": "1",
        "item_id": "10",
        "event_type": "rating",
        "value": 4.0,
        "event_timestamp": at,
        "received_at": at,
        "category": "Comedy",
    }
    (movie,) = dataset.items.to_pylist()  # nobody rated the other one
    assert (movie["title"], movie["created_at"]) == ("American President, The (1995)", at)
    assert (movie["category"], movie["tags"]) == ("Comedy", ["Comedy", "Drama", "Romance"])
    assert (dataset.target, dataset.repeats) == ("rating", "drop")


def test_a_movie_without_genres_has_no_category(tmp_path: Path) -> None:
    items = load_movielens(tmp_path, GOOD_RATINGS + "1,11,3.0,964982800\n1,12,3.0,964982801\n").items.to_pylist()
    assert [(i["item_id"], i["title"], i["category"], i["tags"]) for i in items[1:]] == [
        ("11", "Nobody", None, None),
        ("12", None, None, None),  # rated, but in no catalogue
    ]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("3,10,good,964982703", "bad_type", "ratings.csv line 4, column 'rating': 'good' is not a number"),
        (
            "3,10,4.0,2000-07-30",
            "bad_type",
            "ratings.csv line 4, column 'timestamp': '2000-07-30' is not whole seconds",
        ),
        ("3,10,4.0,-5", "bad_time", "ratings.csv line 4, column 'timestamp': -5"),
        ("3,10,4.0,99999999999999", "bad_time", "ratings.csv line 4, column 'timestamp': 99999999999999"),
        ("3,10,-1,964982703", "negative", "ratings.csv line 4: value -1.0"),
        ("3,10,nan,964982703", "not_finite", "ratings.csv line 4: value nan"),
        (",10,,964982703", "missing_field", "ratings.csv line 4: userId, rating"),
        ("3,10,4.0", "bad_type", "ratings.csv line 4 has 3 cells, the header 4"),
        ("1,10,2.0,964982709", "duplicate", "ratings.csv line 4: '1-10'"),
    ],
)
def test_a_rating_that_is_no_event_is_quarantined(tmp_path: Path, line: str, reason: str, detail: str) -> None:
    dataset = load_movielens(tmp_path, f"{GOOD_RATINGS}{line}\n")
    (row,) = dataset.quarantine.to_pylist()
    assert (row["row"], row["reason"], row["detail"]) == (2, reason, detail)
    assert json.loads(row["raw"], parse_constant=pytest.fail)
    assert dataset.events.num_rows == 2


def test_rees46_views_and_purchases(tmp_path: Path) -> None:
    view, purchase = load_rees46(tmp_path, VIEW + PURCHASE).events.to_pylist()
    assert len(view.pop("event_id")) == 32
    at = datetime(2019, 10, 1, tzinfo=UTC)
    assert some(view) == {
        "user_id": "1",
        "item_id": "7",
        "event_type": "view",
        "event_timestamp": at,
        "received_at": at,
        "session_id": "s1",
        "category": "electronics.audio",
        "price": 3579,
    }
    assert (purchase["value"], purchase["quantity"], purchase["category"]) == (1010.0, 1, "22")


def test_a_rees46_product_is_as_it_first_was(tmp_path: Path) -> None:
    later = VIEW.replace("00:00:00", "00:05:00").replace("35.79", "30.00")
    items = load_rees46(tmp_path, later + VIEW + PURCHASE).items.to_pylist()
    assert [(item["price"], item["tags"]) for item in items] == [(3579, ["sony"]), (1010, None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (VIEW, "duplicate"),
        (VIEW.replace("view", "remove_from_cart"), "bad_event_type"),
        (VIEW.replace("UTC", "CET"), "bad_type"),
        (VIEW.replace("2019-10-01", "2019-13-01"), "bad_type"),
        (VIEW.replace("35.79", "35,79"), "bad_type"),  # a cell too many
        (VIEW.replace("35.79", "cheap"), "bad_type"),
        (VIEW.replace("35.79", "-3"), "negative"),
        (PURCHASE.replace("10.10", "0.00"), "zero_price"),
        (VIEW.replace(",1,s1", ",,s1"), "missing_field"),
    ],
)
def test_a_rees46_line_that_is_no_event_is_quarantined(tmp_path: Path, line: str, reason: str) -> None:
    dataset = load_rees46(tmp_path, VIEW + PURCHASE + line)
    (row,) = dataset.quarantine.to_pylist()
    assert (row["row"], row["reason"]) == (2, reason)
    assert row["detail"].startswith("2019-Oct.csv line 4")
    assert dataset.events.num_rows == 2


def test_rees46_months_are_one_data_set_and_a_line_of_both_counts_once(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "2019-Nov.csv.gz", "wt") as file:
        file.write(REES46 + VIEW + PURCHASE)
    dataset = load_rees46(tmp_path, VIEW)
    assert dataset.events.num_rows == 2
    (row,) = dataset.quarantine.to_pylist()
    assert (row["source"], row["row"], row["reason"]) == ("2019-Oct.csv", 0, "duplicate")


def test_a_complete_journey_line_is_a_purchase_in_cents(tmp_path: Path) -> None:
    dataset = load_complete_journey(tmp_path, SALE, SALE, OTHER_SALE)
    events = dataset.events.to_pylist()
    at = datetime(2017, 1, 1, 12, 30, 27, tzinfo=UTC)
    assert some(events[0]) == {
        "event_id": "31198705046-7",
        "user_id": "1",
        "item_id": "7",
        "event_type": "purchase",
        "value": 299.0,
        "quantity": 2,
        "event_timestamp": at,
        "received_at": at,
        "session_id": "31198705046",
        "category": "BREAD",
        "price": 150,
    }
    assert events[1]["event_id"] == "31198705046-7-2", "two lines of a receipt are two events"
    (item,) = dataset.items.to_pylist()
    assert (item["title"], item["category"], item["tags"], item["price"]) == ("ROLLS 6 CT", "BREAD", ["Private"], 150)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantity": 0.0, "sales_value": 0.0}, "bad_quantity"),
        ({"sales_value": 0.0}, "zero_price"),
        ({"sales_value": 4.4e-16}, "zero_price"),
        ({"quantity": 20_000.0, "sales_value": 60.0}, "zero_price"),
        ({"quantity": -1.0}, "negative"),
        ({"sales_value": -1.0}, "negative"),
        ({"quantity": 1.5}, "not_whole"),
        ({"quantity": 1e300}, "not_whole"),
        ({"sales_value": 1e300}, "bad_type"),
        ({"sales_value": float("nan")}, "bad_type"),
        ({"transaction_timestamp": float("inf")}, "bad_type"),
        ({"transaction_timestamp": -1.0}, "bad_time"),
        ({"household_id": None}, "missing_field"),
    ],
)
def test_a_complete_journey_line_that_is_no_sale_is_quarantined(tmp_path: Path, changes: dict, reason: str) -> None:
    dataset = load_complete_journey(tmp_path, SALE, OTHER_SALE, SALE | {"basket_id": 3.0} | changes)
    (row,) = dataset.quarantine.to_pylist()
    assert (row["row"], row["reason"]) == (2, reason)
    assert json.loads(row["raw"], parse_constant=pytest.fail)["basket_id"] == "3"


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    for name, words in (
        ("movielens", "grouplens"),
        ("rees46", r"rees46\.com"),
        ("complete_journey", "products.parquet"),
    ):
        with pytest.raises(NotFoundError, match=rf"{words}.*DATA_DIR"):
            load_dataset(name, Settings(data_dir=tmp_path))
    with pytest.raises(BadInputError, match=r"movies\.csv lacks the columns genres; it has: movieId, title"):
        load_movielens(tmp_path, GOOD_RATINGS, "movieId,title\n1,x\n")
    with pytest.raises(BadInputError, match=r"ratings\.csv has no rows"):
        load_movielens(tmp_path, "")
    with pytest.raises(BadInputError, match=r"at least two users"):
        load_movielens(tmp_path, "1,10,4.0,964982703\n")


@pytest.fixture(scope="module")
def real() -> Settings:
    settings = Settings.load()
    if not (settings.data_dir / "rees46").is_dir():
        pytest.skip("the real data are not on this machine (DATA_DIR)")
    return settings


@pytest.mark.parametrize(
    ("name", "rows", "quarantined", "kinds"),
    [
        ("movielens", 100_836, {}, {"rating": 100_836}),
        ("rees46", 17_435, {"duplicate": 5, "bad_type": 1}, {"view": 17_051, "purchase": 214, "cart": 164}),
        ("complete_journey", 75_000, {"zero_price": 806, "bad_quantity": 416}, {"purchase": 73_778}),
    ],
)
def test_on_the_real_data_every_line_is_accounted_for(
    real: Settings, name: str, rows: int, quarantined: dict, kinds: dict
) -> None:
    dataset = load_dataset(name, real)
    refused = dataset.quarantine["row"].to_pylist()
    assert dataset.events.num_rows + len(refused) == rows
    assert len(set(refused)) == len(refused)
    assert dataset.quarantined == quarantined
    assert Counter(dataset.events["event_type"].to_pylist()) == kinds
    assert pc.count_distinct(dataset.events["event_id"]).as_py() == dataset.events.num_rows
    assert set(dataset.events["item_id"].to_pylist()) == set(dataset.items["item_id"].to_pylist())
    assert dataset.items["category"].null_count < 0.01 * dataset.items.num_rows
