"""Adapter for REES46 "eCommerce behavior data from multi category store": views, carts and purchases.

Publisher: https://rees46.com/en/datasets (also on Kaggle, by Michael Kechinov).
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from feature_repo.adapters.assemble import accept, catalogue, judged
from feature_repo.adapters.text_table import read_text_table
from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import NotFoundError

NAME = "rees46"

_COLUMNS = (
    "event_time",
    "event_type",
    "product_id",
    "category_id",
    "category_code",
    "brand",
    "price",
    "user_id",
    "user_session",
)

#: `remove_from_cart` (in the cosmetics files of the same publisher) is no event of ours.
_LINES = r"""
SELECT *,
    CASE WHEN regexp_full_match(event_time, '[-0-9]{10} [:0-9]{8} UTC')
        THEN TRY_CAST(event_time AS TIMESTAMPTZ) END AS happened,
    TRY_CAST(round(TRY_CAST(price AS DOUBLE) * 100) AS BIGINT) AS cents,
    CASE
        WHEN event_time IS NULL OR event_type IS NULL OR product_id IS NULL OR user_id IS NULL
            THEN 'missing_field: ' || concat_ws(', ',
                CASE WHEN event_time IS NULL THEN 'event_time' END, CASE WHEN event_type IS NULL THEN 'event_type' END,
                CASE WHEN product_id IS NULL THEN 'product_id' END, CASE WHEN user_id IS NULL THEN 'user_id' END)
        WHEN event_type NOT IN ('view', 'cart', 'purchase')
            THEN 'bad_event_type: column ''event_type'': ''' || event_type[:80] || ''''
        WHEN happened IS NULL
            THEN 'bad_type: column ''event_time'': ''' || event_time[:80] || ''' is not a time such as '
                || '2019-10-01 00:00:00 UTC'
        WHEN cents IS NULL AND price IS NOT NULL
            THEN 'bad_type: column ''price'': ''' || price[:80] || ''' is not a number'
        WHEN cents = 0 AND event_type = 'purchase' THEN 'zero_price: column ''price'': ' || price
    END AS problem
FROM cell
"""

#: The id is made of the whole line, so exact duplicates are repeats of one event. A line is one unit.
_EVENTS = """
SELECT "#row", md5(concat_ws(chr(31), coalesce(event_time, ''), coalesce(event_type, ''), coalesce(product_id, ''),
        coalesce(category_id, ''), coalesce(category_code, ''), coalesce(brand, ''), coalesce(price, ''),
        coalesce(user_id, ''), coalesce(user_session, ''))) AS event_id,
    user_id, product_id AS item_id, event_type, CASE WHEN event_type = 'purchase' THEN cents END AS value,
    CASE WHEN event_type = 'purchase' THEN 1 END AS quantity, epoch_us(happened) AS event_timestamp,
    user_session AS session_id, coalesce(category_code, category_id) AS category, nullif(cents, 0) AS price
FROM line WHERE problem IS NULL ORDER BY "#row"
"""

_BRANDS = """
SELECT product_id AS item_id, [arg_min(brand, (event_time, number))] AS tags
FROM (SELECT *, row_number() OVER () AS number FROM cell)
WHERE brand IS NOT NULL AND product_id IN (SELECT item_id FROM event)
GROUP BY product_id ORDER BY product_id
"""


def load(directory: Path) -> Dataset:
    """Load REES46 with its own times; prices in minor units of the shop's currency; received when it happened.

    The catalogue has the products of the events as their first lines name them: category, price, brand (as a tag).

    Parameters
    ----------
    directory
        With the publisher's files (`2019-Oct.csv.gz`, ...; `.csv` or `.csv.gz`), all of which are read.

    Raises
    ------
    NotFoundError
        If there are none.
    BadInputError
        If a file cannot be read, lacks a column or has no rows, or there are no two users.
    """
    paths = sorted([*directory.glob("*.csv"), *directory.glob("*.csv.gz")])
    if not paths:
        raise NotFoundError(
            f"no REES46 data in {directory}: get 2019-Oct.csv.gz (or other months) from "
            "https://rees46.com/en/datasets, and set DATA_DIR to the directory that holds rees46/"
        )
    tables = [read_text_table(path, _COLUMNS) for path in paths]
    parts = [judged(table, path.name, _LINES, _EVENTS) for path, table in zip(paths, tables, strict=True)]
    events, quarantine = accept(parts)
    with duckdb.connect() as connection:
        cells = pa.concat_tables([table.cells.select(["product_id", "brand", "event_time"]) for table in tables])
        connection.register("cell", cells)
        connection.register("event", events)
        brands = connection.sql(_BRANDS).to_arrow_table()
    return make_dataset(NAME, events, catalogue(events, brands), quarantine)
