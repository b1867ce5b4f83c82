"""One micro-batch of ingest: which rows its entries touch, folding them, and the rows to write. PURE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa

from feature_repo.events import LOG_SCHEMA, EventType
from feature_repo.fold import I64, Mask, State, encode_events, fold_events, new_state, touches
from feature_repo.item_changes import CatalogState, ItemChange, changed
from feature_repo.online_keys import row_keys
from feature_repo.packed_row import pack_rows, unpack_rows
from feature_repo.packed_tail import append_recent, pack_catalog, unpack_catalog_rows
from feature_repo.row_scripts import ViewRows
from feature_repo.views import (
    CATALOG_VIEW,
    ITEM_STATS,
    NULL_INT,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
    View,
)

#: Rows per MGET: Redis answers nobody else meanwhile.
_ROWS_PER_READ: Final = 500
_CODE_BITS: Final = 32


class _Entities:
    """The distinct values of a column, and the number of each event's among them (-1: null), shape (n,)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.combine_chunks().dictionary_encode()
        self.ids: list[str] = encoded.dictionary.to_pylist()
        self.rows: I64 = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


class _Pairs:
    """The distinct pairs of two columns, those of one first entity together, and each event's number among them."""

    def __init__(self, first: _Entities, second: _Entities, used: Mask) -> None:
        keys = (first.rows[used] << _CODE_BITS) | second.rows[used]
        distinct, inverse = np.unique(keys, return_inverse=True)
        self.rows: I64 = np.full(len(used), -1, np.int64)
        self.rows[used] = inverse
        owners = distinct >> _CODE_BITS
        self.first = [first.ids[code] for code in owners.tolist()]
        self.second = [second.ids[code] for code in (distinct & ((1 << _CODE_BITS) - 1)).tolist()]
        self.starts = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()

    def hashes(self) -> Iterator[slice]:
        """Yield the part of each first entity."""
        return map(slice, self.starts, [*self.starts[1:], len(self.first)])


class MicroBatch:
    """Events and catalogue changes of the stream on their way into the rows they touch.

    Parameters
    ----------
    project
        Name of the project.
    table
        `LOG_SCHEMA`, in `seq` order; may be empty.
    changes
        `seq` and content of catalogue changes, in `seq` order. They touch rows of their own: the fold never looks at
        the catalogue, so the two kinds need no common order within a batch.
    """

    def __init__(self, project: str, table: pa.Table, changes: Sequence[tuple[int, ItemChange]] = ()) -> None:
        self._project = project
        self._changes = changes
        self._catalog: dict[str, CatalogState | None] = dict.fromkeys(change.item_id for _, change in changes)
        self._events = encode_events(table)
        self._users, self._items = _Entities(table["user_id"]), _Entities(table["item_id"])
        categories = _Entities(table["category"])
        self._pairs = _Pairs(self._users, self._items, np.ones(len(self._events), np.bool_))
        in_category = touches(USER_CATEGORY, self._events.etype) & (categories.rows >= 0)
        self._affinities = _Pairs(self._users, categories, in_category)
        remembered = self._events.etype != EventType.impression
        self._remembered = table["item_id"].combine_chunks().filter(pa.array(remembered))
        self._picked = np.flatnonzero(remembered)
        visitors, self._owners = np.unique(self._users.rows[self._picked], return_inverse=True)
        self._visitors = [self._users.ids[code] for code in visitors.tolist()]
        self._states: tuple[State, ...] = ()
        self._recent_rows: list[bytes] = []
        self._new: list[tuple[str, list[str]]] = []

    @property
    def changed_items(self) -> list[str]:
        """Items whose rows the batch changes."""
        return list(dict.fromkeys([*self._items.ids, *self._catalog]))

    @property
    def new(self) -> list[tuple[str, list[str]]]:
        """Per view: (first) entities that may have had no row; to be entered into its index before it gets one."""
        return self._new

    def read_commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that read the rows as they are.

        Pairs and affinities are read before users and items, and written after them. So a user's row read is never
        behind its pairs, whoever else is writing: the fold takes from pairs what it counts in users.
        """
        commands: list[tuple[Any, ...]] = []
        for view, pairs in ((USER_ITEM, self._pairs), (USER_CATEGORY, self._affinities)):
            keys = row_keys(self._project, view.name, [pairs.first[start] for start in pairs.starts])
            commands += [("HMGET", key, *pairs.second[part]) for key, part in zip(keys, pairs.hashes(), strict=True)]
        for view_name, entities in self._alone():
            keys = row_keys(self._project, view_name, entities)
            commands += [("MGET", *keys[at : at + _ROWS_PER_READ]) for at in range(0, len(keys), _ROWS_PER_READ)]
        return commands

    def _alone(self) -> list[tuple[str, list[str]]]:
        """Return the views with a key per row, and their entities."""
        return [
            (USER_STATS.name, self._users.ids),
            (ITEM_STATS.name, self._items.ids),
            (RECENT_VIEW, self._visitors),
            (CATALOG_VIEW, list(self._catalog)),
        ]

    def fold(self, replies: Sequence[Any]) -> None:
        """Fold the events into the rows read.

        Raises
        ------
        ForeignRowError
            If a stored row has another layout: nothing is known of what it holds, so nothing is written.
        """
        values: Iterator[bytes | None] = chain.from_iterable(replies)
        pairs, affinities = ([next(values) for _ in index.first] for index in (self._pairs, self._affinities))
        users, items, recent, catalog = ([next(values) for _ in entities] for _, entities in self._alone())
        self._new = [
            (USER_ITEM.name, _without_hash(self._pairs, pairs)),
            (USER_CATEGORY.name, _without_hash(self._affinities, affinities)),
            *(
                (name, [entity for entity, row in zip(entities, rows, strict=True) if row is None])
                for (name, entities), rows in zip(self._alone(), (users, items, recent, catalog), strict=True)
            ),
        ]
        states = (
            _state(USER_STATS, users),
            _state(ITEM_STATS, items),
            _state(USER_ITEM, pairs),
            _state(USER_CATEGORY, affinities),
        )
        fold_events(self._events, states, (self._users.rows, self._items.rows, self._pairs.rows, self._affinities.rows))
        self._states = states
        events, picked = self._events, self._picked
        self._recent_rows = append_recent(
            recent,
            self._owners.astype(np.int64),
            self._remembered,
            events.etype[picked],
            events.time[picked],
            events.seq[picked],
        )
        self._change_catalog(catalog)

    def _change_catalog(self, rows: list[bytes | None]) -> None:
        for item_id, row in zip(self._catalog, unpack_catalog_rows(list(self._catalog), rows), strict=True):
            self._catalog[item_id] = None if row is None else CatalogState(*row)
        for seq, change in self._changes:
            self._catalog[change.item_id] = changed(self._catalog[change.item_id], change, seq)

    def _catalog_rows(self) -> list[bytes]:
        states = [state for state in self._catalog.values() if state is not None]
        time, seq = (np.array(column, np.int64) for column in ([s.time for s in states], [s.seq for s in states]))
        return pack_catalog([state.item for state in states], time, seq)

    def rows(self) -> tuple[list[ViewRows], list[ViewRows]]:
        """Return the rows as they are now: those to be written first, and those only when all of these are written."""
        users, items, pairs, affinities = self._states
        first = [
            ViewRows(USER_STATS.name, self._users.ids, pack_rows(USER_STATS, users.ints, users.floats)),
            ViewRows(ITEM_STATS.name, self._items.ids, pack_rows(ITEM_STATS, items.ints, items.floats)),
            ViewRows(RECENT_VIEW, self._visitors, self._recent_rows),
            ViewRows(CATALOG_VIEW, list(self._catalog), self._catalog_rows()),
        ]
        return first, [_made(USER_ITEM, self._pairs, pairs), _made(USER_CATEGORY, self._affinities, affinities)]


def _made(view: View, pairs: _Pairs, state: State) -> ViewRows:
    """Return the rows of pairs without those not made, because their user has all it may have."""
    made = np.flatnonzero(state.ints[:, 0] != NULL_INT)
    if len(made) == len(state):
        return ViewRows(view.name, pairs.first, pack_rows(view, state.ints, state.floats), pairs.second)
    rows = pack_rows(view, state.ints[made], state.floats[made])
    first, second = ([names[row] for row in made.tolist()] for names in (pairs.first, pairs.second))
    return ViewRows(view.name, first, rows, second)


def _without_hash(pairs: _Pairs, rows: list[bytes | None]) -> list[str]:
    """Return first entities of whom no row asked for is there: the others have a hash, so they are in the index."""
    return [pairs.first[part.start] for part in pairs.hashes() if not any(rows[part])]


def _state(view: View, values: list[bytes | None]) -> State:
    """Return the rows read, or a row before its first event where there is none."""
    rows = unpack_rows(view, values)
    state = new_state(view, len(values))
    state.ints[rows.present] = rows.ints[rows.present]
    state.floats[rows.present] = rows.floats[rows.present]
    return state


def warm_up() -> None:
    """Compile the fold (or load it compiled), so that the first event does not wait for it."""
    types = {"string": "x", "double": 1.0, "int64": 1, "timestamp[us, tz=UTC]": 1}
    columns: dict[str, Any] = {f.name: [types[str(f.type)]] for f in LOG_SCHEMA} | {"event_type": ["view"]}
    table = pa.table([pa.array(columns[f.name], f.type) for f in LOG_SCHEMA], schema=LOG_SCHEMA)
    work = MicroBatch("warm-up", table, [(1, ItemChange("x", "x", 1))])
    work.fold([[None] * 1 for _ in work.read_commands()])
    work.rows()
