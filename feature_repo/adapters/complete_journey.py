"""Adapter for The Complete Journey (84.51°): a year of grocery shopping, each line of a receipt a purchase.

Publisher: https://www.8451.com/area51 (CC0). Columns are those of the R package `completejourney`; its sample of 75,000
lines and all 1.47 million have the same.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from feature_repo.adapters.assemble import accept, catalogue, judged, with_categories
from feature_repo.adapters.text_table import read_text_table
from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import NotFoundError

NAME = "complete_journey"
#: Whichever of them is there, the full file first.
_TRANSACTIONS = ("transactions.parquet", "transactions_sample.parquet")

_COLUMNS = ("household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp")

#: Fuel is counted in thousandths of a gallon: its unit price rounds to zero cents, and a pump is nothing to recommend.
_LINES = """
SELECT *, TRY_CAST(quantity AS BIGINT) AS units,
    TRY_CAST(round(TRY_CAST(sales_value AS DOUBLE) * 100) AS BIGINT) AS cents,
    TRY_CAST(transaction_timestamp AS DOUBLE) AS second,
    row_number() OVER (PARTITION BY basket_id, product_id ORDER BY "#row") AS nth,
    TRY_CAST(round(cents / units) AS BIGINT) AS unit_cents,
    CASE
        WHEN household_id IS NULL OR basket_id IS NULL OR product_id IS NULL OR quantity IS NULL
            OR sales_value IS NULL OR transaction_timestamp IS NULL
            THEN 'missing_field: ' || concat_ws(', ',
                CASE WHEN household_id IS NULL THEN 'household_id' END,
                CASE WHEN basket_id IS NULL THEN 'basket_id' END,
                CASE WHEN product_id IS NULL THEN 'product_id' END,
                CASE WHEN quantity IS NULL THEN 'quantity' END,
                CASE WHEN sales_value IS NULL THEN 'sales_value' END,
                CASE WHEN transaction_timestamp IS NULL THEN 'transaction_timestamp' END)
        WHEN units IS NULL OR units <> TRY_CAST(quantity AS DOUBLE)
            THEN 'not_whole: column ''quantity'': ''' || quantity[:80] || ''''
        WHEN cents IS NULL THEN 'bad_type: column ''sales_value'': ''' || sales_value[:80] || ''' is not an amount'
        WHEN second IS NULL OR NOT isfinite(second)
            THEN 'bad_type: column ''transaction_timestamp'': ''' || transaction_timestamp[:80] || ''' is not seconds'
        WHEN second NOT BETWEEN 0 AND 9e9 THEN 'bad_time: column ''transaction_timestamp'': ' || second
        WHEN units < 0 THEN 'negative: column ''quantity'': ' || units
        WHEN cents < 0 THEN 'negative: column ''sales_value'': ' || sales_value
        WHEN units = 0 THEN 'bad_quantity: 0'
        WHEN cents = 0 THEN 'zero_price: column ''sales_value'': ' || sales_value
        WHEN unit_cents = 0 THEN 'zero_price: ' || sales_value || ' for ' || units || ' units'
    END AS problem
FROM cell
"""

_EVENTS = """
SELECT "#row", basket_id || '-' || product_id || CASE WHEN nth > 1 THEN '-' || nth ELSE '' END AS event_id,
    household_id AS user_id, product_id AS item_id, 'purchase' AS event_type, cents::DOUBLE AS value,
    units AS quantity, CAST(round(second * 1e6) AS BIGINT) AS event_timestamp, basket_id AS session_id,
    unit_cents AS price
FROM line WHERE problem IS NULL ORDER BY "#row"
"""

_PRODUCTS = """
SELECT DISTINCT ON (product_id) product_id AS item_id, product_category AS category,
    nullif(concat_ws(' ', product_type, package_size), '') AS title,
    CASE WHEN brand IS NOT NULL THEN [brand] END AS tags
FROM cell WHERE product_id IN (SELECT item_id FROM event) ORDER BY product_id, "#row"
"""


def load(directory: Path) -> Dataset:
    """Load the Complete Journey with its own times, taken as UTC; prices in cents; received when it happened.

    `value` is what the shop received (after discounts), `price` the same per unit, rounded. The catalogue has the
    products that were sold, each from its first sale on: one never sold in the data cannot be told from one not yet
    in the shop.

    Parameters
    ----------
    directory
        With `transactions.parquet` (or `transactions_sample.parquet`) and `products.parquet`.

    Raises
    ------
    NotFoundError
        If a file is missing.
    BadInputError
        If a file cannot be read, lacks a column or has no rows, or there are no two users.
    """
    paths = [directory / name for name in _TRANSACTIONS if (directory / name).is_file()]
    if not paths or not (directory / "products.parquet").is_file():
        raise NotFoundError(
            f"no Complete Journey data in {directory}: write transactions.parquet and products.parquet from the R "
            "package completejourney, and set DATA_DIR to the directory that holds complete_journey/"
        )
    transactions = read_text_table(paths[0], _COLUMNS)
    products = read_text_table(
        directory / "products.parquet", ["product_id", "product_category", "product_type", "package_size", "brand"]
    )
    events, quarantine = accept([judged(transactions, paths[0].name, _LINES, _EVENTS)])
    with duckdb.connect() as connection:
        connection.register("cell", products.cells)
        connection.register("event", events)
        known = connection.sql(_PRODUCTS).to_arrow_table()
    items = catalogue(events, known)
    return make_dataset(NAME, with_categories(events, items), items, quarantine)
