"""Adapter for UCI Online Retail: invoice lines of a UK gift shop become purchases and cancels.

Publisher: https://archive.ics.uci.edu/dataset/352/online+retail (CC BY 4.0).
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.adapters.assemble import Lines, accept, catalogue, with_categories
from feature_repo.adapters.text_table import ROW
from feature_repo.adapters.titles import categories_of
from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.events import ITEM_SCHEMA

NAME = "online_retail"

_COLUMNS = {
    "InvoiceNo": pa.string(),
    "StockCode": pa.string(),
    "Description": pa.string(),
    "Quantity": pa.int64(),
    "InvoiceDate": pa.timestamp("us"),
    "UnitPrice": pa.float64(),
    "CustomerID": pa.float64(),
}

#: Every line of the file with the reason it cannot be an event (null: it can). The first reason that applies counts.
#: A product code is five digits and up to two letters (85123A, 15056BL); POST, M, D, DOT, BANK CHARGES, AMAZONFEE,
#: DCGS... and gift vouchers are not. Cancellations are invoices C...; A... are accounting entries.
_LINES = r"""
CREATE TEMP TABLE line AS
SELECT *,
    CASE
        WHEN InvoiceNo IS NULL OR StockCode IS NULL OR Quantity IS NULL OR InvoiceDate IS NULL OR UnitPrice IS NULL
            THEN 'missing_field: ' || concat_ws(', ',
                CASE WHEN InvoiceNo IS NULL THEN 'InvoiceNo' END, CASE WHEN StockCode IS NULL THEN 'StockCode' END,
                CASE WHEN Quantity IS NULL THEN 'Quantity' END, CASE WHEN InvoiceDate IS NULL THEN 'InvoiceDate' END,
                CASE WHEN UnitPrice IS NULL THEN 'UnitPrice' END)
        WHEN NOT isfinite(UnitPrice) THEN 'not_finite: UnitPrice ' || UnitPrice
        WHEN customer IS NULL THEN 'no_customer: invoice ' || InvoiceNo
        WHEN NOT regexp_full_match(code, '[0-9]{5}[A-Z]{0,2}') THEN 'non_product_code: ' || StockCode
        WHEN UnitPrice < 0 THEN 'negative: UnitPrice ' || UnitPrice
        WHEN pence IS NULL THEN 'too_large: UnitPrice ' || UnitPrice
        WHEN Quantity NOT BETWEEN -1000000000 AND 1000000000 THEN 'too_large: Quantity ' || Quantity
        WHEN pence = 0 THEN 'zero_price: ' || UnitPrice
        WHEN NOT regexp_full_match(InvoiceNo, 'C?[0-9]+') OR (Quantity < 0) <> cancelled OR Quantity = 0
            THEN 'not_a_sale: invoice ' || InvoiceNo || ', quantity ' || Quantity
    END AS problem
FROM (
    SELECT *,
        row_number() OVER (PARTITION BY InvoiceNo ORDER BY "#row") AS line_number,
        upper(trim(nfc_normalize(StockCode))) AS code,
        TRY_CAST(CustomerID AS BIGINT)::VARCHAR AS customer,
        TRY_CAST(round(UnitPrice * 100) AS BIGINT) AS pence,
        starts_with(InvoiceNo, 'C') AS cancelled
    FROM source
)
"""

#: Two equal lines of one invoice are two lines (the customer took two lots): the line's number tells them apart.
_EVENTS = """
SELECT "#row", InvoiceNo || '-' || line_number AS event_id, customer AS user_id, code AS item_id,
    CASE WHEN cancelled THEN 'cancel' ELSE 'purchase' END AS event_type,
    pence::DOUBLE * abs(Quantity) AS value, abs(Quantity) AS quantity, epoch_us(InvoiceDate) AS event_timestamp,
    InvoiceNo AS session_id, pence AS price
FROM line WHERE problem IS NULL ORDER BY "#row"
"""

#: An item's title is the one most of its lines have.
_TITLES = """
SELECT code AS item_id, arg_max(Description, (lines, Description)) AS title
FROM (
    SELECT code, trim(Description) AS Description, count(*) AS lines
    FROM line WHERE pence > 0 AND trim(Description) <> '' GROUP BY ALL
)
WHERE code IN (SELECT item_id FROM event)
GROUP BY code
"""


def load(path: Path) -> Dataset:
    """Load Online Retail with its own times, taken as UTC; prices in pence; received when it happened.

    Parameters
    ----------
    path
        Parquet file with the publisher's column names.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        If the file is not Parquet, lacks a column, has no rows or no two users.
    """
    source = _read(path)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("source", source)
        connection.execute(_LINES)
        refused = connection.sql('SELECT "#row", problem FROM line WHERE problem IS NOT NULL').to_arrow_table()
        lines = connection.sql(_EVENTS).to_arrow_table()
        problems = dict(zip(refused[ROW].to_pylist(), refused["problem"].to_pylist(), strict=True))
        events, quarantine = accept([Lines(NAME, source, lines, problems)])
        connection.register("event", events)
        titles = connection.sql(_TITLES).to_arrow_table()
    items = catalogue(events, titles)
    # The head nouns of all titles, also of items without one.
    categories = pa.array(categories_of(items["title"].to_pylist()), pa.string())
    items = items.set_column(items.schema.get_field_index("category"), ITEM_SCHEMA.field("category"), categories)
    return make_dataset(NAME, with_categories(events, items), items, quarantine)


def _read(path: Path) -> pa.Table:
    """Return the lines in the columns and types we use, numbered in `ROW`."""
    if not path.is_file():
        raise NotFoundError(
            f"no Online Retail data at {path}: get it from https://archive.ics.uci.edu/dataset/352/online+retail, "
            "save it as Parquet with the publisher's columns, and set DATA_DIR to the directory that holds "
            "online_retail/online_retail.parquet"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(f"{path} cannot be read as Parquet: {error}") from None
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise BadInputError(f"{path} lacks the columns {', '.join(missing)}; it has: {', '.join(table.column_names)}")
    if table.num_rows == 0:
        raise BadInputError(f"{path} has no rows")
    columns = {ROW: pa.array(range(table.num_rows), pa.int64())}
    for name, kind in _COLUMNS.items():
        try:
            columns[name] = table[name].cast(kind, safe=not pa.types.is_timestamp(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadInputError(f"{path}: column {name} is no {kind}: {error}") from None
    return pa.table(columns)
