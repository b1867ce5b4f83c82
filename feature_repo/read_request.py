"""What one round trip reads: rows of several views, as commands to Redis and back as arrays. PURE.

Feast's online store and the packed readers ask with the same plan, so both read the same rows in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from feature_repo.online_keys import row_key, row_keys
from feature_repo.packed_row import ForeignRowError, Layout, PackedRows, layout_of
from feature_repo.packed_tail import tail_codec
from feature_repo.rows import I64, Mask, Rows
from feature_repo.views import FOLD_VIEWS, NULL_INT, View

Command = tuple[Any, ...]
#: Rows as stored, None where there is none.
Stored = list[bytes | None]

#: By identity: hashing a view or a layout takes longer than the rest of a plan.
_LAYOUTS: Final = {id(view): layout_of(view) for view in FOLD_VIEWS}


def field_of(further: Sequence[str]) -> str:
    """Return the field of a hash for the entities after the first: the text of one, or of each with its length."""
    return further[0] if len(further) == 1 else "".join(f"{len(text)}:{text}" for text in further)


@dataclass(frozen=True, slots=True)
class RowsOf:
    """Rows of one view, one per entity asked for, in that order.

    Attributes
    ----------
    view
        A view of the fold, or the layout of any other one (of Feast's: `protobuf_rows.FeastView(table).layout`).
    first
        First entity of each row; one text where all rows have the same (a user and many items).
    fields
        For views of two entities the second of each row, with more of them `field_of` the others; None for views of
        one entity.
    max_age_us
        Maximal age of rows of a layout; a view of the fold has its own.
    """

    view: View | Layout
    first: str | Sequence[str]
    fields: Sequence[str] | None = None
    max_age_us: int | None = None

    def __len__(self) -> int:
        return len(self.first if self.fields is None else self.fields)


@dataclass(frozen=True, slots=True)
class AllOf:
    """All rows of a view of two or more entities that have the same first one (all categories of a user)."""

    view: View | Layout
    first: str
    max_age_us: int | None = None


Request = RowsOf | AllOf


def layout_of_request(request: Request) -> Layout:
    """Return the layout of the rows asked for."""
    view = request.view
    return view if isinstance(view, Layout) else _LAYOUTS.get(id(view)) or layout_of(view)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows of one view as of `now_us`: values, nulls, times, ages and `seq` as arrays.

    Attributes
    ----------
    entities
        What tells the rows apart: the first entities or the fields that were asked for; for `AllOf` the fields found,
        sorted.
    packed
        The rows; one that is missing, damaged or past its maximal age is not `present`, and everything in it is null.
    """

    entities: Sequence[str]
    packed: PackedRows
    now_us: int

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def present(self) -> Mask:
        """Which rows there are, shape (n,)."""
        return self.packed.present

    @property
    def time(self) -> I64:
        """Feature time of each row (µs), shape (n,); `NULL_INT` where missing."""
        return self.packed.time

    @property
    def seq(self) -> I64:
        """`seq` of the last event in each row, shape (n,); 0 in views without, `NULL_INT` where missing."""
        return self.packed.seq

    @property
    def age_us(self) -> I64:
        """Time since each row's feature time, shape (n,); `NULL_INT` where missing."""
        return np.where(self.present, self.now_us - self.time, NULL_INT)

    def rows(self, view: View) -> Rows:
        """Return the rows of a view of the fold as its state rows."""
        return self.packed.rows(view)

    def null(self, name: str) -> Mask:
        """Where a field is null, shape (n,); a NaN that is a value is not."""
        layout = self.packed.layout
        if name in (layout.time_field, layout.seq_field):
            return ~self.present
        return self.packed.nulls[:, (*layout.ints, *layout.floats, *layout.tails).index(name)]

    def values(self, name: str) -> list[Any]:
        """Return a field of every row as Python values, None where null.

        Raises
        ------
        ForeignRowError
            If the text or list of a row is damaged.
        """
        layout = self.packed.layout
        if name in layout.tails:
            decode = tail_codec(layout.kinds[name])[1]
            try:
                return [None if data is None else decode(data) for data in self.packed.tail(name)]
            except ValueError as error:
                raise ForeignRowError(f"{name} of a stored row of {layout.name} is damaged: {error}") from error
        column = self.packed.column(name).tolist()
        if layout.kinds.get(name) == "bool":
            column = [value != 0 for value in column]
        return [None if null else value for value, null in zip(column, self.null(name).tolist(), strict=True)]


class ReadPlan:
    """The commands of one round trip, and where their replies belong.

    Attributes
    ----------
    commands
        What to send, in this order.
    """

    def __init__(self, project: str, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.commands: list[Command] = []
        self._places: list[list[list[int] | None]] = []  # by request and command: its rows, None for all in order
        for request in requests:
            places = []
            for command, rows in _commands(project, request):
                self.commands.append(command)
                places.append(rows)
            self._places.append(places)

    def stored(self, replies: Sequence[Any]) -> Iterator[tuple[Request, Sequence[str], Stored]]:
        """Yield each request with the entities of its rows and the rows as stored.

        Parameters
        ----------
        replies
            One per command; None where a key is not what it should be.
        """
        following = iter(replies)
        for request, places in zip(self.requests, self._places, strict=True):
            if isinstance(request, AllOf):
                fields = dict(sorted(_pairs(next(following))))
                yield request, [field.decode(errors="replace") for field in fields], list(fields.values())
                continue
            values: Stored = [None] * len(request)
            for rows in places:
                reply = next(following)
                if reply is None:
                    continue
                if rows is None:
                    values = reply
                else:
                    for row, value in zip(rows, reply, strict=True):
                        values[row] = value
            yield request, request.first if request.fields is None else request.fields, values


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """Return the fields of a hash with their values: a flat list as Redis sends it, or redis-py's dict."""
    if isinstance(reply, dict):
        return reply.items()
    return zip((reply or [])[::2], (reply or [])[1::2], strict=True)


def _commands(project: str, request: Request) -> Iterator[tuple[Command, list[int] | None]]:
    """Yield the commands of a request with the rows each brings; None stands for all of them in order."""
    name, first = request.view.name, request.first
    if isinstance(request, AllOf):
        yield ("HGETALL", row_key(project, name, request.first)), None
    elif not len(request):
        return
    elif request.fields is None:
        yield ("MGET", *row_keys(project, name, list(first))), None
    elif isinstance(first, str):
        yield ("HMGET", row_key(project, name, first), *request.fields), None
    else:
        rows_of: dict[str, list[int]] = {}
        for row, entity in enumerate(first):
            rows_of.setdefault(entity, []).append(row)
        for entity, rows in rows_of.items():
            yield ("HMGET", row_key(project, name, entity), *(request.fields[row] for row in rows)), rows
