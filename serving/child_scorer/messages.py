"""What the API and a candidate's process say to each other: frames of MessagePack with raw arrays. No pickle.

A frame is its length (four bytes, little endian) and a message. Each side decodes into exact types, so that a candidate
gone mad can at worst send nonsense, which is refused.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from feature_repo.events import Repeats
from feature_repo.rows import RecentEvents, Rows, UserRows
from feature_repo.views import FOLD_VIEWS
from serving.cascade.exploration import ExploredSlot, Exploring
from serving.cascade.items import CatalogEntry, ItemTable
from serving.cascade.recommender import RankedItem
from serving.cascade.rerank import DiversityKind
from serving.impressions import Failure

LENGTH: Final = struct.Struct("<I")
#: Longest reply of a child; a list of a thousand items with its features is 300 kB.
MAX_REPLY_BYTES: Final = 32 * 1024**2
_DTYPES: Final = frozenset({"<f4", "<f8", "<i4", "<i8", "|b1", "|i1"})
_VIEWS: Final = {view.name: view for view in FOLD_VIEWS}


class Array(msgspec.Struct, frozen=True, array_like=True):
    """An array's type, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[np.generic]) -> Array:
        """Wrap an array."""
        return cls(array.dtype.str, array.shape, array.tobytes())

    def unpack(self) -> npt.NDArray[np.generic]:
        """Return a writable, contiguous array: the compiled loops know no others.

        Raises
        ------
        ValueError
            If type, shape and bytes do not fit.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(f"arrays of type {self.dtype!r} are not sent")
        return np.frombuffer(bytearray(self.data), self.dtype).reshape(self.shape)


class PackedRows(msgspec.Struct, frozen=True, array_like=True):
    """`Rows`."""

    view: str
    ints: Array
    floats: Array
    present: Array

    @classmethod
    def of(cls, rows: Rows) -> PackedRows:
        """Wrap rows."""
        return cls(rows.view.name, Array.of(rows.ints), Array.of(rows.floats), Array.of(rows.present))

    def unpack(self) -> Rows:
        """Return the rows."""
        ints, floats, present = (one.unpack() for one in (self.ints, self.floats, self.present))
        return Rows(_VIEWS[self.view], ints, floats, present)  # type: ignore[arg-type]


class PackedUser(msgspec.Struct, frozen=True, array_like=True):
    """`UserRows`."""

    user_id: str
    stats: PackedRows
    categories: list[str]
    affinities: PackedRows
    item_ids: list[str]
    types: Array
    times: Array
    seq: int

    @classmethod
    def of(cls, user: UserRows) -> PackedUser:
        """Wrap a user's rows."""
        recent = user.recent
        return cls(
            user.user_id,
            PackedRows.of(user.stats),
            user.categories,
            PackedRows.of(user.affinities),
            recent.item_ids,
            Array.of(recent.types),
            Array.of(recent.times),
            recent.seq,
        )

    def unpack(self) -> UserRows:
        """Return the user's rows."""
        recent = RecentEvents(self.item_ids, self.types.unpack(), self.times.unpack(), self.seq)  # type: ignore[arg-type]
        return UserRows(self.user_id, self.stats.unpack(), self.categories, self.affinities.unpack(), recent)


class WholeTable(msgspec.Struct, frozen=True, tag=True):
    """The item table, once, when a child starts."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    category: tuple[str, ...]
    inputs: Array
    available: Array
    seq: Array
    catalog_seq: Array
    as_of_us: int

    @classmethod
    def of(cls, table: ItemTable) -> WholeTable:
        """Wrap a table."""
        inputs, available, seq, catalog_seq = map(
            Array.of, (table.inputs, table.available, table.seq, table.catalog_seq)
        )
        return cls(table.ids, table.titles, table.category, inputs, available, seq, catalog_seq, table.as_of_us)

    def unpack(self) -> ItemTable:
        """Return the table."""
        arrays: list[Any] = [one.unpack() for one in (self.inputs, self.available, self.seq, self.catalog_seq)]
        inputs, available, seq, catalog_seq = arrays
        return ItemTable(self.ids, self.titles, self.category, inputs, available, seq, catalog_seq, self.as_of_us)


class ChangedItems(msgspec.Struct, frozen=True, tag=True):
    """What a refresh changed (`item_table_source.TableChange`)."""

    catalog: list[CatalogEntry]
    stats: PackedRows
    as_of_us: int


class AskDraft(msgspec.Struct, frozen=True, tag=True):
    """Retrieve and filter; not worth it after `deadline_ns` of the monotonic clock, which processes share."""

    number: int
    deadline_ns: int
    user: PackedUser
    now_us: int
    k: int
    exclude: list[str]
    repeats: Repeats | None
    diversity: DiversityKind | None


class AskFinish(msgspec.Struct, frozen=True, tag=True):
    """Rank what was drafted under the same number."""

    number: int
    deadline_ns: int
    pairs: PackedRows
    all_candidates: bool
    exploring: Exploring | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The bundle is loaded and warm."""

    service: str
    generators: list[str]
    repeats: Repeats


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The bundle cannot be served."""

    reason: str


class Drafted(msgspec.Struct, frozen=True, tag=True):
    """Indices of the candidates and of the generators that brought them, each shape (c,)."""

    number: int
    items: Array
    source: Array


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The list, and what the ranker saw of the candidates at the positions `which`."""

    number: int
    items: list[RankedItem]
    matrix: Array
    which: Array
    explored: tuple[ExploredSlot, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The model did not answer."""

    number: int
    failure: Failure
    reason: str


Question = WholeTable | ChangedItems | AskDraft | AskFinish
Reply = Ready | Refused | Drafted | Finished | Failed

_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
decode_question = _questions.decode
decode_reply = _replies.decode


def frame(message: Question | Reply) -> bytes:
    """Encode a message with its length."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body
