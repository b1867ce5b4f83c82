"""The packed row: one feature row as bytes (docs/packed-rows.md), packed and unpacked many at a time. PURE.

Every row is a run of 8-byte words, so n rows of one layout are one matrix: reading 300 rows is one join and one
`frombuffer`, not 300 parses. Strings and lists follow the words as a tail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from feature_repo.errors import ConflictError
from feature_repo.rows import F64, I64, Mask, Rows
from feature_repo.views import NULL_INT, View

#: Kinds stored as one int64 word and as one float64 word; every other kind is a tail.
INT_KINDS: Final = frozenset({"int64", "int32", "bool", "unix_timestamp"})
FLOAT_KINDS: Final = frozenset({"float64", "float32"})

_HEADER_WORDS: Final = 3
HEADER_BYTES: Final = 8 * _HEADER_WORDS
_U64 = npt.NDArray[np.uint64]

#: What to do with a row of another layout (or a damaged one): fail, or count it as missing. It is never misread.
Foreign = Literal["raise", "missing"]


class ForeignRowError(ConflictError):
    """A stored row was written with another layout, or is damaged."""


@dataclass(frozen=True)
class Layout:
    """Where each value of a row stands.

    `fields` are the stored (name, kind) pairs. Feature time and `seq` are in the header of every row; `time_field` and
    `seq_field` name them where they are features too (the views of the fold), and are not among `fields` then.
    """

    name: str
    entities: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    time_field: str | None = None
    seq_field: str | None = None

    @cached_property
    def ints(self) -> tuple[str, ...]:
        """Fields stored as int64 words."""
        return tuple(name for name, kind in self.fields if kind in INT_KINDS)

    @cached_property
    def floats(self) -> tuple[str, ...]:
        """Fields stored as float64 words."""
        return tuple(name for name, kind in self.fields if kind in FLOAT_KINDS)

    @cached_property
    def tails(self) -> tuple[str, ...]:
        """Fields of variable length."""
        return tuple(name for name, kind in self.fields if kind not in INT_KINDS | FLOAT_KINDS)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind by field name."""
        return dict(self.fields)

    @cached_property
    def layout_hash(self) -> int:
        """Unsigned 64-bit hash of name, entities, fields and kinds: the first word of every row."""
        head = [f"{name}:int64" for name in (self.time_field, self.seq_field) if name is not None]
        text = "|".join([self.name, *self.entities, *head, *(f"{name}:{kind}" for name, kind in self.fields)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    @cached_property
    def bitmap_words(self) -> int:
        """Words of the null bitmap."""
        return -(-len(self.fields) // 64)

    @cached_property
    def words(self) -> int:
        """Words of the fixed part: header, bitmap, columns, and the tails' end offsets (two per word)."""
        columns = len(self.ints) + len(self.floats)
        return _HEADER_WORDS + self.bitmap_words + columns + -(-len(self.tails) // 2)

    @cached_property
    def blank(self) -> bytes:
        """Fixed part of a row that is not there: everything null."""
        words = np.zeros(self.words, dtype="<u8")
        words[1] = np.array([NULL_INT]).view(np.uint64)[0]
        words[2] = np.array([NULL_INT]).astype(">i8").view("<u8")[0]
        first_int = _HEADER_WORDS + self.bitmap_words
        words[_HEADER_WORDS:first_int] = 2**64 - 1
        words[first_int : first_int + len(self.ints)] = words[1]
        first_float = first_int + len(self.ints)
        words[first_float : first_float + len(self.floats)] = np.array([np.nan]).view(np.uint64)[0]
        return words.tobytes()


@lru_cache(maxsize=256)
def layout_of(view: View) -> Layout:
    """Return the layout of a view of the fold: its first two columns (time, seq) are the header."""
    columns = tuple((c.name, c.kind) for c in view.columns[2:])
    layout = Layout(view.name, view.entities, columns, view.time_column, view.seq_column)
    if layout.layout_hash != view.layout_hash:
        raise AssertionError(f"layout of {view.name} does not start with its time and seq columns")
    return layout


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one layout as columns.

    Attributes
    ----------
    time, seq
        Feature time (µs) and `seq` of each row, shapes (n,); `NULL_INT` where the row is missing.
    ints, floats
        Shapes (n, len(layout.ints)) and (n, len(layout.floats)); `NULL_INT` and NaN where null.
    nulls
        Shape (n, len(layout.fields)), in the order ints, floats, tails: a NaN that is a value is not null.
    tails
        One list of n encoded values per tail field; None where null.
    present
        Shape (n,): False for missing rows.
    """

    layout: Layout
    time: I64
    seq: I64
    ints: I64
    floats: F64
    nulls: Mask
    tails: list[list[bytes | None]]
    present: Mask


def pack_table(table: Table) -> list[bytes]:
    """Pack every row of a table (all must be present); the inverse of `unpack_table`."""
    layout, n = table.layout, len(table.time)
    first_int = _HEADER_WORDS + layout.bitmap_words
    first_float = first_int + len(layout.ints)
    first_end = first_float + len(layout.floats)
    words = np.zeros((n, layout.words), dtype="<u8")
    words[:, 0] = layout.layout_hash
    words[:, 1] = table.time.view(np.uint64)
    words[:, 2] = table.seq.astype(">i8").view("<u8")
    bits = np.packbits(table.nulls, axis=1, bitorder="little")
    words[:, _HEADER_WORDS:first_int].view(np.uint8)[:, : bits.shape[1]] = bits
    words[:, first_int:first_float] = table.ints.view(np.uint64)
    words[:, first_float:first_end] = table.floats.view(np.uint64)
    if not layout.tails:
        return _split(words.tobytes(), 8 * layout.words, n)
    tails = [[value or b"" for value in column] for column in table.tails]
    lengths = np.array([[len(value) for value in column] for column in tails], dtype=np.int64).T
    words[:, first_end:].view("<u4")[:, : len(tails)] = lengths.cumsum(axis=1)
    heads = _split(words.tobytes(), 8 * layout.words, n)
    return [b"".join(parts) for parts in zip(heads, *tails, strict=True)]


def _split(data: bytes, size: int, n: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, n * size, size)]


@dataclass(frozen=True)
class PackedRows:
    """Rows of one layout as they came from the store; a part is decoded when it is asked for.

    Attributes
    ----------
    words
        The fixed parts, shape (n, layout.words); a missing row has a null row there.
    values
        The rows as stored, for their tails.
    present
        Shape (n,): False for missing rows.
    """

    layout: Layout
    words: _U64
    values: Sequence[bytes | None]
    present: Mask

    def __len__(self) -> int:
        return len(self.present)

    @property
    def time(self) -> I64:
        """Feature time of each row (µs), shape (n,); `NULL_INT` where missing."""
        return self.words[:, 1].view(np.int64)

    @cached_property
    def seq(self) -> I64:
        """`seq` each row holds, shape (n,); `NULL_INT` where missing."""
        return self.words[:, 2].view(">i8").astype(np.int64)

    @property
    def ints(self) -> I64:
        """Int columns, shape (n, len(layout.ints)); `NULL_INT` where null."""
        first = _HEADER_WORDS + self.layout.bitmap_words
        return self.words[:, first : first + len(self.layout.ints)].view(np.int64)

    @property
    def floats(self) -> F64:
        """Float columns, shape (n, len(layout.floats)); NaN where null."""
        first = _HEADER_WORDS + self.layout.bitmap_words + len(self.layout.ints)
        return self.words[:, first : first + len(self.layout.floats)].view(np.float64)

    @cached_property
    def nulls(self) -> Mask:
        """Null cells, shape (n, len(layout.fields)), in the order ints, floats, tails."""
        bits = np.ascontiguousarray(self.words[:, _HEADER_WORDS : _HEADER_WORDS + self.layout.bitmap_words])
        flags = np.unpackbits(bits.view(np.uint8), axis=1, count=len(self.layout.fields), bitorder="little")
        return flags.view(np.bool_)

    @cached_property
    def tails(self) -> list[list[bytes | None]]:
        """One list of n encoded values per tail field; None where null."""
        count, base = len(self.layout.tails), 8 * self.layout.words
        tails: list[list[bytes | None]] = [[None] * len(self) for _ in range(count)]
        ends = np.ascontiguousarray(self.words[:, self.layout.words - -(-count // 2) :]).view("<u4")
        for i in np.flatnonzero(self.present).tolist() if count else ():
            row, start = self.values[i] or b"", base
            for column, end, null in zip(tails, ends[i].tolist(), self.nulls[i, -count:].tolist(), strict=False):
                if not null:
                    column[i] = row[start : base + end]
                start = base + end
        return tails

    def column(self, name: str) -> I64 | F64:
        """Return a column of numbers, shape (n,), with `NULL_INT` or NaN where null; header fields included.

        Raises
        ------
        KeyError
            If the layout has no such column of numbers.
        """
        layout = self.layout
        if name in layout.ints:
            return self.ints[:, layout.ints.index(name)]
        if name in layout.floats:
            return self.floats[:, layout.floats.index(name)]
        if name in (layout.time_field, layout.seq_field):
            return self.time if name == layout.time_field else self.seq
        raise KeyError(f"{layout.name} has no column of numbers {name!r}")

    def tail(self, name: str) -> list[bytes | None]:
        """Return a field of variable length, encoded, None where null (decode it with `packed_tail.tail_codec`)."""
        return self.tails[self.layout.tails.index(name)]

    def only(self, keep: Mask) -> PackedRows:
        """Return the rows with those missing that are not to be kept, shape of `keep` (n,)."""
        dropped = self.present & ~keep
        if not dropped.any():
            return self
        keep = self.present & keep
        blank = np.frombuffer(self.layout.blank, dtype="<u8")
        return PackedRows(self.layout, np.where(keep[:, None], self.words, blank), self.values, keep)

    def take(self, rows: Sequence[int]) -> PackedRows:
        """Return some of the rows, in the order given."""
        return PackedRows(self.layout, self.words[rows], [self.values[row] for row in rows], self.present[rows])

    def rows(self, view: View) -> Rows:
        """Return the rows as state rows of the fold view whose layout they have.

        Null cells hold `NULL_INT` or NaN in the words too, so the bitmap need not be looked at.
        """
        ints = np.empty((len(self), len(view.ints)), dtype=np.int64)
        ints[:, 0] = self.time
        ints[:, 1] = self.words[:, 2].view(">i8")
        ints[:, 2:] = self.ints
        return Rows(view, ints, self.floats, self.present)


def read_rows(layout: Layout, values: Sequence[bytes | None], *, foreign: Foreign = "raise") -> PackedRows:
    """Take rows as they came from the store; None is a missing row.

    Raises
    ------
    ForeignRowError
        If a row has another layout or a wrong length and `foreign` is "raise".
    """
    words, present = _words(layout, values, foreign)
    return PackedRows(layout, words, values, present)


def unpack_table(layout: Layout, values: Sequence[bytes | None], *, foreign: Foreign = "raise") -> Table:
    """Unpack rows completely; see `read_rows`."""
    rows = read_rows(layout, values, foreign=foreign)
    return Table(layout, rows.time, rows.seq, rows.ints, rows.floats, rows.nulls, rows.tails, rows.present)


def _words(layout: Layout, values: Sequence[bytes | None], foreign: Foreign) -> tuple[_U64, Mask]:
    """Return the fixed parts, shape (n, layout.words), with a null row where there is none, and who is present."""
    blank, shape = layout.blank, (len(values), layout.words)
    if not layout.tails:  # all of one size and hash, as nearly always: no look at each row
        rows = [blank if value is None else value for value in values]
        if not set(map(len, rows)) - {len(blank)}:
            words = np.frombuffer(b"".join(rows), dtype="<u8").reshape(shape)
            present = words[:, 0] == layout.layout_hash
            absent = len(rows) - np.count_nonzero(present)
            if not absent or absent == values.count(None):
                return words, present
    fixed = len(blank)
    good = np.array([_is_row(layout, value) for value in values], dtype=np.bool_)
    if foreign == "raise":
        for value, right in zip(values, good.tolist(), strict=True):
            if value is not None and not right:
                raise ForeignRowError(
                    f"a stored row of {layout.name} ({len(value)} bytes, hash {value[:8].hex()}) has not the layout of "
                    f"this version ({layout.layout_hash.to_bytes(8, 'little').hex()}, {fixed} bytes); "
                    "run `larder features backfill` and `larder features materialize` again"
                )
    heads = [value[:fixed] if value is not None and right else blank for value, right in zip(values, good, strict=True)]
    return np.frombuffer(b"".join(heads), dtype="<u8").reshape(shape), good


def _is_row(layout: Layout, value: bytes | None) -> bool:
    """Tell whether the value has this layout and is whole."""
    fixed, n = 8 * layout.words, len(layout.tails)
    if value is None or len(value) < fixed or value[:8] != layout.layout_hash.to_bytes(8, "little"):
        return False
    if not n:
        return len(value) == fixed
    start = fixed - 8 * -(-n // 2)
    ends = [int.from_bytes(value[start + 4 * i : start + 4 * i + 4], "little") for i in range(n)]
    return ends[-1] == len(value) - fixed and ends == sorted(ends)


def pack_rows(view: View, ints: I64, floats: F64) -> list[bytes]:
    """Pack state rows of a fold view.

    Parameters
    ----------
    ints, floats
        Shapes (n, len(view.ints)) and (n, len(view.floats)) in state order; `NULL_INT` and NaN are null.
    """
    layout = layout_of(view)
    nulls = np.concatenate([ints[:, 2:] == NULL_INT, np.isnan(floats)], axis=1)
    present = np.ones(len(ints), dtype=np.bool_)
    time, seq = np.ascontiguousarray(ints[:, 0]), np.ascontiguousarray(ints[:, 1])
    return pack_table(Table(layout, time, seq, ints[:, 2:], floats, nulls, [], present))


def unpack_rows(view: View, values: Sequence[bytes | None], *, foreign: Foreign = "raise") -> Rows:
    """Unpack state rows of a fold view, one per value, in the order given; None is a missing row.

    Raises
    ------
    ForeignRowError
        If a row has another layout or a wrong length and `foreign` is "raise".
    """
    return read_rows(layout_of(view), values, foreign=foreign).rows(view)
