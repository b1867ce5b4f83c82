"""Columns as protobuf wire bytes, built for many cells at once in NumPy: Feast's `Value` and `FeatureVector`. PURE.

A response of Feast has one message per cell; making those in Python takes nearly all the time of a read. The parser of
protobuf makes them from bytes in a few nanoseconds each. See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_repo.rows import F64, I64, Mask

_U8 = npt.NDArray[np.uint8]
_U64 = npt.NDArray[np.uint64]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Fields of `FeatureVector`: values, statuses, event_timestamps; of `Timestamp`: seconds, nanos.
_VALUE_TAG: Final = 1 << 3 | _BYTES
_STATUSES_TAG: Final = 2 << 3 | _BYTES
_TIMESTAMP_TAG: Final = 3 << 3 | _BYTES
_SECONDS_TAG: Final = 1 << 3 | _VARINT
_NANOS_TAG: Final = 2 << 3 | _VARINT
_NULL_VALUE: Final = bytes((_VALUE_TAG, 0))


def varint(value: int) -> bytes:
    """Encode one unsigned integer."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, data: bytes) -> bytes:
    """Encode a field of variable length (bytes, text, message)."""
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def varints(values: I64) -> _U8:
    """Encode integers, all in the same number of bytes, so that no cell has to be cut.

    A varint may be longer than it must: groups of zeros follow. Parsers take up to ten bytes.

    Parameters
    ----------
    values
        Shape (m,); negative ones take ten bytes.

    Returns
    -------
    ndarray
        Shape (m, w), as wide as the largest needs.
    """
    unsigned: _U64 = np.ascontiguousarray(values).view(np.uint64)
    width = max(1, -(-int(unsigned.max(initial=0)).bit_length() // 7))
    groups = unsigned >> (7 * np.arange(width, dtype=np.uint64))[:, None]
    data = groups.astype(np.uint8)  # keeps the low byte
    data[:-1] |= 0x80
    data[-1] &= 0x7F
    return data.T


def packed_varints(values: I64) -> bytes:
    """Encode integers one after the other (the content of a packed repeated field)."""
    return varints(values).tobytes()


def int_values(ints: I64, nulls: Mask, numbers: Sequence[int]) -> list[bytes]:
    """Encode columns of integers (int64, int32, bool) as repeated `Value`.

    Parameters
    ----------
    ints, nulls
        Shape (n, c).
    numbers
        Field of `Value` of each column (at most 15), length c.

    Returns
    -------
    list of bytes
        One per column, to be put into a `FeatureVector`.
    """
    n = len(ints)
    data = varints(np.where(nulls, 0, ints).T.reshape(-1))
    tags = np.repeat(np.array([number << 3 | _VARINT for number in numbers], dtype=np.uint8), n)
    return _columns(tags, data, nulls)


def float_values(floats: F64, nulls: Mask, number: int, *, single: bool = False) -> list[bytes]:
    """Encode columns of floats as repeated `Value`, shape (n, c); `single`: as float32. See `int_values`."""
    columns = np.ascontiguousarray(floats.T)
    if single:
        with np.errstate(over="ignore"):  # what does not fit was infinite when it was written, too
            columns = columns.astype("<f4")
    data = columns.view(np.uint8).reshape(-1, columns.itemsize)
    tags = np.full(len(data), number << 3 | (_FIXED32 if single else _FIXED64), dtype=np.uint8)
    return _columns(tags, data, nulls)


def _columns(tags: _U8, data: _U8, nulls: Mask) -> list[bytes]:
    """Join the cells of each column, which stand one after the other; a null is an empty `Value`."""
    n, count = nulls.shape
    cells = np.empty((n * count, 3 + data.shape[1]), dtype=np.uint8)
    cells[:, 0] = _VALUE_TAG
    cells[:, 1] = 1 + data.shape[1]
    cells[:, 2] = tags
    cells[:, 3:] = data
    columns = cells.reshape(count, n, -1)
    some: list[bool] = np.any(nulls, axis=0).tolist()
    return [_cut(columns[c], nulls[:, c]) if some[c] else columns[c].tobytes() for c in range(count)]


def _cut(cells: _U8, empty: Mask) -> bytes:
    """Join cells that begin with tag and length, without the content of those that are empty."""
    keep = np.ones(cells.shape, dtype=np.bool_)
    keep[empty, 2:] = False
    cells[empty, 1] = 0
    return cells[keep].tobytes()


def message_values(contents: Sequence[bytes | None]) -> bytes:
    """Encode one column of `Value`s whose content is encoded already; None is null."""
    return b"".join(_NULL_VALUE if content is None else field(1, content) for content in contents)


def timestamps(time_us: I64, present: Mask) -> bytes:
    """Encode times as repeated `event_timestamps`, empty where not present; shapes (n,)."""
    seconds, rest = np.divmod(np.where(present, time_us, 0), 1_000_000)
    first, second = varints(seconds), varints(rest * 1000)
    at = 3 + first.shape[1]
    cells = np.empty((len(time_us), at + 1 + second.shape[1]), dtype=np.uint8)
    cells[:, 0] = _TIMESTAMP_TAG
    cells[:, 1] = cells.shape[1] - 2
    cells[:, 2] = _SECONDS_TAG
    cells[:, 3:at] = first
    cells[:, at] = _NANOS_TAG
    cells[:, at + 1 :] = second
    return cells.tobytes() if present.all() else _cut(cells, ~present)


def statuses(present: Mask, found: int, missing: int) -> bytes:
    """Encode the packed `statuses` of a `FeatureVector`; both codes are below 128."""
    data = np.where(present, found, missing).astype(np.uint8).tobytes()
    return bytes((_STATUSES_TAG,)) + varint(len(data)) + data
