"""Any CSV or Parquet by a YAML mapping: what it can say, what it refuses with file, line and column."""

from __future__ import annotations

import gzip
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.adapters.mapped_files import load
from feature_repo.datasets import Dataset, load_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings

ROOT = Path(__file__).parent.parent
MAPPING = """\
name: shop
events:
  - file: orders.csv
    fields:
      user_id: client
      item_id: sku
      event_type: {column: action, values: {buy: purchase, look: view}}
      event_timestamp: {column: at, zone: Europe/Berlin}
      price: {column: price, unit: major}
      quantity: pieces
items:
  file: products.csv
  fields:
    item_id: sku
    title: name
    category: group
    price: {column: price, unit: major}
"""
ORDERS = "client,sku,action,at,price,pieces\n"
GOOD = "anna,a1,look,2026-01-05 10:00,2.50,\nben,a1,buy,2026-01-05T11:00:00Z,2.50,3\n"
PRODUCTS = "sku,name,group,price\na1,Tea,DRINKS,2.40\nb2,Cup,DISHES,7\n"


def import_(directory: Path, orders: str = GOOD, mapping: str = MAPPING, products: str = PRODUCTS) -> Dataset:
    (directory / "shop.yaml").write_text(mapping)
    (directory / "orders.csv").write_text(ORDERS + orders)
    (directory / "products.csv").write_text(products)
    return load(directory / "shop.yaml", directory)


def test_columns_become_events_and_items(tmp_path: Path) -> None:
    dataset = import_(tmp_path)
    look, buy = dataset.events.to_pylist()
    assert look["event_timestamp"] == datetime(2026, 1, 5, 9, tzinfo=UTC), "Berlin is an hour ahead"
    assert (look["event_type"], look["price"], look["value"], look["quantity"]) == ("view", 250, None, None)
    assert (buy["event_timestamp"], buy["event_type"]) == (datetime(2026, 1, 5, 11, tzinfo=UTC), "purchase")
    assert (buy["value"], buy["quantity"], buy["category"]) == (750.0, 3, "DRINKS")
    tea, cup = dataset.items.to_pylist()
    assert (tea["title"], tea["price"], tea["created_at"]) == ("Tea", 240, look["event_timestamp"])
    assert cup["created_at"] == buy["event_timestamp"], "nobody had it before: as far as we can tell it is new"


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('cleo,a1,buy,2026-01-05 12:00,"12,5",1', "bad_type", "line 4, column 'price': '12,5' is not a number"),
        ("cleo,a1,buy,2026-01-05 12:00,1_0,1", "bad_type", "line 4, column 'price': '1_0' is not a number"),
        ("cleo,a1,buy,2026-01-05 12:00,nan,1", "bad_type", "line 4, column 'price': 'nan' is not a number"),
        ("cleo,a1,buy,5.1.2026,1,1", "bad_type", "line 4, column 'at': '5.1.2026' is not an ISO 8601 time"),
        ("cleo,a1,steal,2026-01-05 12:00,1,1", "bad_event_type", "line 4, column 'action': 'steal' is not among the"),
        (",a1,buy,2026-01-05 12:00,1,1", "missing_field", "line 4, column 'client' is empty"),
        ("cleo,a1,buy,2026-01-05 12:00,1,0", "bad_quantity", "line 4: 0"),
        ("cleo,a1,buy,2026-01-05 12:00,1,1.5", "not_whole", "line 4: quantity 1.5"),
        ("cleo,a1,buy,2026-01-05 12:00,-1,1", "negative", "line 4: value -100.0"),
        ("cleo,a1,buy,2126-01-05 12:00,1,1", "future_time", "line 4: event_timestamp 2126"),
        ("cleo,a1,buy", "bad_type", "line 4 has 3 cells, the header 6"),
        ("", "missing_field", "line 4, column 'client' is empty"),
    ],
)
def test_a_line_that_is_no_event_is_quarantined_with_file_line_and_column(
    tmp_path: Path, line: str, reason: str, detail: str
) -> None:
    dataset = import_(tmp_path, f"{GOOD}{line}\n")
    (row,) = dataset.quarantine.to_pylist()
    assert (row["source"], row["row"], row["reason"]) == ("orders.csv", 2, reason)
    assert row["detail"].startswith(f"orders.csv {detail}")
    assert dataset.events.num_rows == 2


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    lines = '"an\nna",a1,look,2026-01-05 10:00,1,\nben,"a\n1",look,2026-01-05 10:00,1,\ncleo,a1,look,now,1,\n'
    dataset = import_(tmp_path, GOOD + lines)
    assert dataset.quarantine["row"].to_pylist() == [2, 3, 4]
    assert [detail.partition(":")[0].partition(",")[0] for detail in dataset.quarantine["detail"].to_pylist()] == [
        "orders.csv line 4",
        "orders.csv line 6",
        "orders.csv line 8",
    ]


def test_bytes_that_are_no_text_are_quarantined_unless_the_encoding_is_named(tmp_path: Path) -> None:
    import_(tmp_path)
    (tmp_path / "orders.csv").write_bytes((ORDERS + GOOD + "zoé,a1,look,2026-01-05 10:00,1,\n").encode("cp1252"))
    (row,) = load(tmp_path / "shop.yaml", tmp_path).quarantine.to_pylist()
    assert (row["row"], row["reason"]) == (2, "bad_type")
    assert "orders.csv line 4 column 'client'" in row["detail"]
    mapping = MAPPING.replace("file: orders.csv\n", "file: orders.csv\n    encoding: cp1252\n")
    (tmp_path / "shop.yaml").write_text(mapping)
    assert "zoé" in load(tmp_path / "shop.yaml", tmp_path).events["user_id"].to_pylist()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    price: {column", "    prize: {column", "shop.yaml line 9: unknown key 'prize'; did you mean 'price'?"),
        ("unit: major", "unit: mayor", "shop.yaml line 9: unit: Input should be 'minor' or 'major', not 'mayor'"),
        ("buy: purchase", "buy: buy", "shop.yaml line 7: buy: Input should be 'impression'"),
        ("Europe/Berlin", "Mars", "shop.yaml line 8: zone: 'Mars' is no time zone"),
        (
            "zone: Europe/Berlin",
            "format: '%d.%m.%Y'",
            "shop.yaml line 8: event_timestamp: a pattern without %z needs a",
        ),
        ("zone: Europe/Berlin", "format: german", "shop.yaml line 8: format: it must be iso, epoch_s"),
        ("      user_id: client\n", "", "shop.yaml line 4: user_id is missing"),
        (
            "item_id: sku\n      event",
            "item_id: {constant: a, column: b}\n      event",
            "line 6: item_id: name exactly one",
        ),
        (
            "user_id: client",
            "user_id: cleint",
            "shop.yaml line 5: orders.csv has no column 'cleint'; did you mean 'client'",
        ),
        ("file: products", "file: nothing", "shop.yaml line 12: there is no file"),
        ("name: shop", "name: ../shop", "shop.yaml line 1: name: "),
        ("  - file: orders", "\t- file: orders", "shop.yaml is not YAML"),
        ("    fields:\n      user_id", "    delimiter: ab\n    fields:\n      user_id", "shop.yaml line 4: delimiter"),
    ],
)
def test_a_mapping_that_is_wrong_is_refused_with_its_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in MAPPING
    with pytest.raises((BadInputError, NotFoundError)) as caught:
        import_(tmp_path, mapping=MAPPING.replace(old, new, 1))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c3,Pot,DISHES,cheap", "products.csv line 4, column 'price': 'cheap' is not a number"),
        ("c3,Pot,DISHES,-1", "products.csv line 4: price -100.0"),
        (",Pot,DISHES,1", "products.csv line 4, column 'sku' is empty"),
        ("c3,Pot", "products.csv line 4 has 2 cells"),
    ],
)
def test_a_catalogue_with_a_wrong_line_is_refused(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(BadInputError) as caught:
        import_(tmp_path, products=f"{PRODUCTS}{line}\nd4,,,cheap\n")
    assert words in str(caught.value)
    assert "(and 1 more lines of products.csv)" in str(caught.value)


def test_values_of_all_kinds(tmp_path: Path) -> None:
    """Pattern times, epoch ms, decimal commas, words for nothing, several columns, tags, flags, Parquet, .gz."""
    (tmp_path / "m.yaml").write_text("""\
name: all_kinds
target: view
repeats: drop
events:
  - file: a.csv.gz
    delimiter: ";"
    decimal: ","
    empty: [NULL, "-"]
    fields:
      event_id: {join: [n, who], separator: "/"}
      user_id: [who, guest]
      item_id: {column: what, split: "|"}
      event_type: {constant: view}
      event_timestamp: {column: t, format: "%d.%m.%Y %H:%M", zone: Europe/Berlin}
      price: {column: p, unit: major}
  - file: b.parquet
    fields:
      user_id: who
      item_id: what
      event_type: kind
      event_timestamp: {column: t, format: epoch_ms}
      value: {column: v, unit: minor}
items:
  file: b.parquet
  fields:
    item_id: what
    tags: {column: [kind, colours], split: ","}
    available: stock
""")
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(
            "n;who;guest;what;t;p\n1;anna;x;i1|i2;01.07.2025 12:00;1.234,5\n2;NULL;eve;i1;01.07.2025 12:00;1234,5\n"
        )
        file.write("3;eve;-;i1;01.07.2025 12:00;-\n4;-;-;i1;01.07.2025 12:00;1\n")
    rows = {"who": [7.0, 8.0], "what": ["i1", "i9"], "kind": ["purchase", "view"], "t": [1735689600500, 1735689600000]}
    rows |= {"v": [250, None], "colours": ["red, ,blue", None], "stock": [True, False]}
    pq.write_table(pa.table(rows), tmp_path / "b.parquet")
    dataset = load(tmp_path / "m.yaml", tmp_path)
    assert (dataset.target, dataset.repeats) == ("view", "drop")
    assert [(row["row"], row["reason"]) for row in dataset.quarantine.to_pylist()] == [
        (0, "bad_type"),
        (1, "missing_field"),
        (3, "missing_field"),
    ]
    by_user = {event["user_id"]: event for event in dataset.events.to_pylist()}
    assert sorted(by_user) == ["7", "8", "eve"], "7.0 in a column of floats is the id 7"
    assert (by_user["eve"]["event_id"], by_user["eve"]["price"]) == ("3/eve", None)
    assert by_user["eve"]["event_timestamp"] == datetime(2025, 7, 1, 10, tzinfo=UTC)
    assert by_user["7"]["event_timestamp"] == datetime(2025, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert (by_user["7"]["value"], by_user["7"]["event_type"]) == (250.0, "purchase")
    items = {item["item_id"]: item for item in dataset.items.to_pylist()}
    assert (items["i1"]["tags"], items["i1"]["available"]) == (["purchase", "red", "blue"], True)
    assert (items["i9"]["tags"], items["i9"]["available"]) == (["view"], False)


def test_an_id_counts_once_in_all_files_and_without_one_lines_have_their_place(tmp_path: Path) -> None:
    first = import_(tmp_path, GOOD + GOOD)
    assert first.events.num_rows == 4, "nothing says that equal lines are one event"
    assert first.events.equals(import_(tmp_path, GOOD + GOOD).events)
    twice = MAPPING.replace("      user_id", "      event_id: {hash: [client, sku, at]}\n      user_id", 1)
    dataset = import_(tmp_path, GOOD + GOOD, mapping=twice)
    assert (dataset.events.num_rows, dataset.quarantined) == (2, {"duplicate": 2})


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)] * 6),
        max_size=8,
    )
)
def test_whatever_the_cells_hold_every_line_is_accounted_for(tmp_path: Path, cells: list[tuple[str, ...]]) -> None:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells]
    dataset = import_(tmp_path, GOOD + "".join(line + "\n" for line in quoted))
    assert dataset.events.num_rows + dataset.quarantine.num_rows == 2 + len(cells)
    rows = dataset.quarantine["row"].to_pylist()
    assert rows == sorted(set(rows))
    for row in dataset.quarantine.to_pylist():
        before = "".join(quoted[: row["row"] - 2]).count("\n")
        assert row["detail"].startswith(f"orders.csv line {2 + row['row'] + before}"), row


@pytest.mark.parametrize("name", ["movielens", "rees46", "complete_journey"])
def test_the_example_mappings_give_the_events_of_the_adapters(name: str) -> None:
    """As far as a mapping can say it: no quantity for one type only, no price of zero as none, no division."""
    settings = Settings.load()
    if not (settings.data_dir / "rees46").is_dir():
        pytest.skip("the real data are not on this machine (DATA_DIR)")
    mapped, adapted = load(ROOT / "docs" / "mappings" / f"{name}.yaml", settings.data_dir), load_dataset(name, settings)
    assert (mapped.name, mapped.target, mapped.repeats) == (name, adapted.target, adapted.repeats)
    cannot = {"movielens": set(), "rees46": {"quantity"}, "complete_journey": {"price"}}[name]
    known = set(adapted.events["event_id"].to_pylist())
    events = [
        (
            {k: v for k, v in one.items() if k not in cannot}
            | ({"price": one["price"] or None} if name == "rees46" else {})
        )
        for one in mapped.events.to_pylist()
        if one["event_id"] in known
    ]
    assert events == [{k: v for k, v in one.items() if k not in cannot} for one in adapted.events.to_pylist()]
    if name != "complete_journey":
        assert mapped.events.num_rows == adapted.events.num_rows
        assert mapped.quarantined == adapted.quarantined
        items = {item["item_id"]: item for item in mapped.items.to_pylist()}
        for item in adapted.items.to_pylist():
            assert items[item["item_id"]] | {"price": items[item["item_id"]]["price"] or None} == item


def test_the_command_imports_by_a_mapping(tmp_path: Path) -> None:
    import_(tmp_path)
    run = [sys.executable, "-m", "larder.cli", "--home", str(tmp_path / "home"), "data", "import", "--mapping"]
    done = subprocess.run([*run, str(tmp_path / "shop.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "project shop: data set shop" in done.stdout
    (tmp_path / "shop.yaml").write_text(MAPPING.replace("client", "cleint"))
    done = subprocess.run([*run, str(tmp_path / "shop.yaml")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "larder: shop.yaml line 5: orders.csv has no column 'cleint'; did you mean 'client'?",
    )
