"""The state of every entity while a backfill runs: ids to rows, growing arrays, and the checkpoint they are kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.fold import I8, I64, RowIndices, State, States, new_state, touches
from feature_repo.offline_layout import Manifest, Part, state_columns, state_of, write_part
from feature_repo.pair_index import PairIndex
from feature_repo.views import FOLD_VIEWS, ITEM_STATS, NULL_INT, USER_CATEGORY, USER_ITEM, USER_STATS, View

#: Two codes of 32 bits make the key of a pair.
_CODE_BITS = 32


class _Ids:
    """Numbers ids by first appearance."""

    def __init__(self, ids: pa.Array | None = None) -> None:
        self.ids = pa.array([], pa.string()) if ids is None else ids
        self._codes = {text: code for code, text in enumerate(self.ids.to_pylist())}

    def codes(self, column: pa.ChunkedArray) -> I64:
        """Return the code of every id, -1 for null, numbering new ones."""
        encoded = column.combine_chunks().dictionary_encode()
        first_new = len(self._codes)
        codes = [self._codes.setdefault(text, len(self._codes)) for text in encoded.dictionary.to_pylist()]
        if len(self._codes) > first_new:
            new = encoded.dictionary.filter(pa.array([code >= first_new for code in codes]))
            self.ids = pa.concat_arrays([self.ids, new])
        indices = encoded.indices.fill_null(len(codes)).to_numpy(zero_copy_only=False)
        result: I64 = np.array([*codes, -1], np.int64)[indices]
        return result

    def __len__(self) -> int:
        return len(self._codes)


class EndState:
    """Every entity's state row of all four views of the fold."""

    def __init__(self) -> None:
        self._users, self._items, self._categories = _Ids(), _Ids(), _Ids()
        self._pairs, self._affinities = PairIndex(), PairIndex()
        self._states = [new_state(view, 0) for view in FOLD_VIEWS]

    @property
    def states(self) -> States:
        """The rows, with room for more behind the last one in use."""
        return self._states[0], self._states[1], self._states[2], self._states[3]

    def rows(self, events: pa.Table, etype: I8) -> RowIndices:
        """Return each event's row per view, making rows for entities never seen before."""
        used = self.counts()
        users, items = self._users.codes(events["user_id"]), self._items.codes(events["item_id"])
        pairs = self._pairs.rows((users << _CODE_BITS) | items)
        categories = self._categories.codes(events["category"])
        affinities = np.full(len(users), -1, np.int64)
        touched = (categories >= 0) & touches(USER_CATEGORY, etype)
        affinities[touched] = self._affinities.rows((users[touched] << _CODE_BITS) | categories[touched])
        for v, view in enumerate(FOLD_VIEWS):
            self._states[v] = _with_room(view, self._states[v], used[v], self.counts()[v])
        return users, items, pairs, affinities

    def ids(self, v: int, rows: I64) -> dict[str, pa.Array]:
        """Return the entity columns of some rows of `FOLD_VIEWS[v]`."""
        view = FOLD_VIEWS[v]
        if view is USER_STATS:
            return {"user_id": self._users.ids.take(pa.array(rows))}
        if view is ITEM_STATS:
            return {"item_id": self._items.ids.take(pa.array(rows))}
        index, second = (self._pairs, self._items) if view is USER_ITEM else (self._affinities, self._categories)
        keys = index.keys[rows]
        mask = (1 << _CODE_BITS) - 1
        return {
            view.entities[0]: self._users.ids.take(pa.array(keys >> _CODE_BITS)),
            view.entities[1]: second.ids.take(pa.array(keys & mask)),
        }

    def save(self, directory: Path, name: str) -> dict[str, Part]:
        """Write one Parquet file per view: entity columns and state, in order of first appearance."""
        parts: dict[str, Part] = {}
        for v, (view, count) in enumerate(zip(FOLD_VIEWS, self.counts(), strict=True)):
            made = np.flatnonzero(self._states[v].ints[:count, 0] != NULL_INT)  # without those over the user's cap
            state = State(self._states[v].ints[made], self._states[v].floats[made])
            table = pa.table(self.ids(v, made) | state_columns(view, state))
            parts[view.name] = write_part(directory, f"end_state/{view.name}-{name}.parquet", table)
        return parts

    @classmethod
    def load(cls, directory: Path, manifest: Manifest) -> EndState:
        """Read the end state of the last backfill."""
        end = cls()
        tables = [pq.read_table(directory / manifest.end_state[view.name].path).combine_chunks() for view in FOLD_VIEWS]
        end._users, end._items = (
            _Ids(tables[v][name].combine_chunks()) for v, name in ((0, "user_id"), (1, "item_id"))
        )
        end._pairs = PairIndex(
            (end._users.codes(tables[2]["user_id"]) << _CODE_BITS) | end._items.codes(tables[2]["item_id"])
        )
        categories = end._categories.codes(tables[3]["category"])
        end._affinities = PairIndex((end._users.codes(tables[3]["user_id"]) << _CODE_BITS) | categories)
        end._states = [state_of(view, table) for view, table in zip(FOLD_VIEWS, tables, strict=True)]
        return end

    def counts(self) -> tuple[int, int, int, int]:
        """Return how many rows of each view are in use."""
        return len(self._users), len(self._items), len(self._pairs), len(self._affinities)


def _with_room(view: View, state: State, used: int, count: int) -> State:
    """Make rows `used` to `count` blank; room doubles, so growing costs O(1) a row. What is unused is never touched."""
    if count > len(state):
        size = max(count, 2 * len(state))
        grown = State(np.empty((size, len(view.ints)), np.int64), np.empty((size, len(view.floats)), np.float64))
        grown.ints[:used], grown.floats[:used] = state.ints[:used], state.floats[:used]
        state = grown
    blank = new_state(view, 1)
    state.ints[used:count], state.floats[used:count] = blank.ints, blank.floats
    return state
