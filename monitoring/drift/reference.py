"""The champion's reference on disk: what it would have served on the data it was judged by, as columns in Parquet.

Rows the ranker was fitted on are drawn otherwise than lists are made (all that was taken, some of what was not): beside
them every list has drifted on the first day. So the champion's own cascade answers the users of its test window, whose
events it has not seen, at moments of that window, and those lists are drawn from as a window's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError
from feature_repo.parquet_files import write_whole
from feature_repo.settings import Settings
from monitoring.drift.columns import Values
from monitoring.drift.served import Known

_FILES: Final = ("answers", "events", "categories", "prices")
_CATEGORIES: Final = pa.schema([("category", pa.string())])
_PRICES: Final = pa.schema([("item_id", pa.string()), ("price", pa.float64())])


@dataclass(frozen=True, slots=True)
class Reference:
    """What windows are compared with.

    Attributes
    ----------
    columns
        Values by column.
    known
        What there was when the champion was trained.
    """

    columns: dict[str, Values]
    known: Known


def reference_dir(settings: Settings, bundle_id: str) -> Path:
    """Where the reference of a bundle is."""
    return settings.monitoring_dir / "reference" / bundle_id


def write_reference(
    settings: Settings, bundle_id: str, answers: Mapping[str, Values], events: Mapping[str, Values], known: Known
) -> Reference:
    """Write a reference; it is there whole or not at all, as its last file is what readers look for.

    Parameters
    ----------
    answers, events
        Columns of as many rows each.
    """
    directory = reference_dir(settings, bundle_id)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(pa.table({"category": sorted(known.categories)}, schema=_CATEGORIES), directory / "categories.parquet")
    prices = {"item_id": list(known.prices), "price": list(known.prices.values())}
    write_whole(pa.table(prices, schema=_PRICES), directory / "prices.parquet")
    write_whole(_table(events), directory / "events.parquet")
    write_whole(_table(answers), directory / "answers.parquet")
    return Reference({**answers, **events}, known)


def read_reference(settings: Settings, bundle_id: str) -> Reference | None:
    """Read a reference; None if none was made yet.

    Raises
    ------
    BadInputError
        If its files cannot be read.
    """
    directory = reference_dir(settings, bundle_id)
    if not (directory / "answers.parquet").is_file():
        return None
    try:
        tables = {name: pq.read_table(directory / f"{name}.parquet") for name in _FILES}
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(
            f"the reference in {directory} cannot be read ({error}); delete it, it is made anew"
        ) from error
    columns: dict[str, Values] = {}
    for name in ("answers", "events"):
        columns |= {column: _values(tables[name][column]) for column in tables[name].column_names}
    prices = dict(zip(*(tables["prices"][name].to_pylist() for name in _PRICES.names), strict=True))
    return Reference(columns, Known(frozenset(tables["categories"]["category"].to_pylist()), prices))


def _values(column: pa.ChunkedArray) -> Values:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), object)
    return np.asarray(column.fill_null(np.nan).to_numpy(), np.float64)


def _table(columns: Mapping[str, Values]) -> pa.Table:
    return pa.table(
        {
            name: pa.array(values.tolist(), pa.string()) if values.dtype == object else pa.array(values, pa.float64())
            for name, values in columns.items()
        }
    )
