"""Reads features of many entities through Feast, online and as of a time, as arrays that compare bit by bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from feature_repo.views import NULL_INT

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

#: Entities per call of Feast. Smaller calls bring rows of one moment, larger ones cost less each.
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class OnlineRead:
    """Features of n entities as they were online.

    Attributes
    ----------
    keys
        Key columns (and `now_us`, where features are asked for that need it), n rows.
    values
        Feature values by name, shape (n,): int64 with `NULL_INT` for null, float64 with NaN, else objects with None.
    read_us
        When each was about to be read, µs, shape (n,).
    known_us
        Events accepted before it were in all rows by then, as ingest had said, shape (n,).
    """

    keys: pa.Table
    values: dict[str, Values]
    read_us: I64
    known_us: I64

    def __len__(self) -> int:
        return len(self.read_us)


def read_online(
    store: Any,
    keys: pa.Table,
    features: Mapping[str, str],
    known_us: Callable[[], int],
    on_progress: Callable[[int], None],
) -> OnlineRead:
    """Read features by `get_online_features`.

    Parameters
    ----------
    features
        References `view:feature` to kinds: "int64", "float64" or any other.
    known_us
        Asked before every call: up to when the rows are complete.
    on_progress
        Called with the number of entities read.
    """
    kinds = {reference.split(":", 1)[1]: kind for reference, kind in features.items()}
    parts: dict[str, list[Values]] = {name: [] for name in kinds}
    read_us, known = np.empty(keys.num_rows, np.int64), np.empty(keys.num_rows, np.int64)
    for start in range(0, keys.num_rows, BATCH):
        batch = keys.slice(start, BATCH)
        known[start : start + BATCH], read_us[start : start + BATCH] = known_us(), time.time_ns() // 1000
        answer = store.get_online_features(features=list(features), entity_rows=batch.to_pylist()).to_dict()
        for name, kind in kinds.items():
            parts[name].append(_array(answer[name], kind))
        on_progress(batch.num_rows)
    values = {name: np.concatenate(some) for name, some in parts.items()}
    return OnlineRead(keys, values, read_us, known)


def _array(values: list[Any], kind: str) -> Values:
    if kind == "int64":
        return np.array([NULL_INT if value is None else value for value in values], np.int64)
    if kind == "float64":
        return np.array([np.nan if value is None else value for value in values], np.float64)
    objects = np.empty(len(values), object)
    for place, value in enumerate(values):  # at once, NumPy would take lists of one length for a matrix
        objects[place] = value
    return objects


def read_offline(store: Any, keys: pa.Table, time_us: I64, features: Iterable[str]) -> pa.Table:
    """Read features by `get_historical_features` as they were at each row's time (µs), in the order of `keys`."""
    frame = keys.to_pandas()
    frame["event_timestamp"] = pd.to_datetime(time_us, unit="us", utc=True)
    return store.get_historical_features(entity_df=frame, features=list(features)).to_arrow()


def ints_of(table: pa.Table, name: str) -> I64:
    """Return an integer column, `NULL_INT` for null, shape (n,)."""
    values: I64 = table[name].cast(pa.int64()).fill_null(NULL_INT).to_numpy()
    return values


def floats_of(table: pa.Table, name: str) -> F64:
    """Return a float column, NaN for null, shape (n,)."""
    values: F64 = table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()
    return values


def same_bits(ours: Values, theirs: Values) -> Mask:
    """Whether values are equal bit for bit, any NaN being as good as another, shape (n,)."""
    if ours.dtype.kind != "f":
        return np.asarray(ours == theirs)
    bits = np.uint32 if ours.dtype == np.float32 else np.uint64
    equal = np.ascontiguousarray(ours).view(bits) == np.ascontiguousarray(theirs).view(bits)
    return np.asarray(equal | (np.isnan(ours) & np.isnan(theirs)))
