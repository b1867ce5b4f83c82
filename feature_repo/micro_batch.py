"""One micro-batch of ingest: which rows its entries touch, folding them, and the arguments of the write. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from feature_repo.fold import I64, State, States, encode_events, fold_events, new_state, recent_type, touches
from feature_repo.item_changes import CatalogState, ItemChange, changed
from feature_repo.online_keys import changed_key, index_entries, row_key, row_keys, watermark_key
from feature_repo.packed_row import pack_rows, unpack_rows
from feature_repo.packed_tail import append_recent, pack_catalog, unpack_catalog_rows
from feature_repo.views import (
    CATALOG_VIEW,
    FOLD_VIEWS,
    ITEM_STATS,
    NULL_INT,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
    View,
)

_NONE: Final = -1


class _Index:
    """Numbers the entities of a view by first appearance."""

    def __init__(self) -> None:
        self.position: dict[Any, int] = {}

    def of(self, entity: Any) -> int:
        return self.position.setdefault(entity, len(self.position))

    def by_first(self) -> dict[str, list[tuple[str, int]]]:
        """Group entities that are pairs: first entity -> (second entity, position)."""
        groups: dict[str, list[tuple[str, int]]] = {}
        for (first, second), position in self.position.items():
            groups.setdefault(first, []).append((second, position))
        return groups


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
        users, items, named = (table[name].to_pylist() for name in ("user_id", "item_id", "category"))
        self._user_ids, self._item_ids = users, items
        self._indexes = tuple(_Index() for _ in FOLD_VIEWS)
        self._recent = _Index()
        in_category = touches(USER_CATEGORY, self._events.etype).tolist()
        by_user, by_item, by_pair, by_category = self._indexes
        rows = [
            (
                by_user.of(user),
                by_item.of(item),
                by_pair.of((user, item)),
                by_category.of((user, category)) if counts and category is not None else _NONE,
            )
            for user, item, category, counts in zip(users, items, named, in_category, strict=True)
        ]
        self._rows: I64 = np.array(rows, dtype=np.int64).reshape(-1, len(FOLD_VIEWS)).T
        self._remembered = [e for e, code in enumerate(self._events.etype.tolist()) if recent_type(code)]
        for e in self._remembered:
            self._recent.of(users[e])
        self._states: States | None = None
        self._recent_rows: list[bytes] = []
        self._new: list[tuple[str, list[str]]] = []  # per view: (first) entities that had no row

    @property
    def changed_items(self) -> list[str]:
        """Items whose rows the batch changes."""
        return list(dict.fromkeys([*self._indexes[1].position, *self._catalog]))

    def read_commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that read the rows as they are, for one pipeline."""
        users, items, pairs, categories = self._indexes
        alone = [
            (USER_STATS.name, users.position),
            (ITEM_STATS.name, items.position),
            (RECENT_VIEW, self._recent.position),
        ]
        commands: list[tuple[Any, ...]] = [
            ("MGET", *row_keys(self._project, view, list(entities))) for view, entities in alone if entities
        ]
        for view, index in ((USER_ITEM, pairs), (USER_CATEGORY, categories)):
            for first, seconds in index.by_first().items():
                commands.append(("HMGET", row_key(self._project, view.name, first), *(second for second, _ in seconds)))
        if self._catalog:
            commands.append(("MGET", *row_keys(self._project, CATALOG_VIEW, list(self._catalog))))
        return commands

    def fold(self, replies: Sequence[Any]) -> None:
        """Fold the events into the rows read.

        Raises
        ------
        ForeignRowError
            If a stored row has another layout: nothing is known of what it holds, so nothing is written.
        """
        answers = iter(replies)
        users, items, pairs, categories = self._indexes
        rows_of_users = next(answers) if users.position else []
        rows_of_items = next(answers) if items.position else []
        recent = next(answers) if self._recent.position else []
        states = [_state(USER_STATS, rows_of_users), _state(ITEM_STATS, rows_of_items)]
        self._new = [
            (USER_STATS.name, _without_row(users.position, rows_of_users)),
            (ITEM_STATS.name, _without_row(items.position, rows_of_items)),
            (RECENT_VIEW, _without_row(self._recent.position, recent)),
        ]
        for view, index in ((USER_ITEM, pairs), (USER_CATEGORY, categories)):
            values: list[bytes | None] = [None] * len(index.position)
            for seconds in index.by_first().values():
                for (_, position), value in zip(seconds, next(answers), strict=True):
                    values[position] = value
            states.append(_state(view, values))
            self._new.append((view.name, _without_row((first for first, _ in index.position), values)))
        self._states = (states[0], states[1], states[2], states[3])
        fold_events(self._events, self._states, (self._rows[0], self._rows[1], self._rows[2], self._rows[3]))
        picked = self._remembered
        etype, time, seq = (column.tolist() for column in (self._events.etype, self._events.time, self._events.seq))
        self._recent_rows = append_recent(
            recent,
            [self._recent.position[self._user_ids[e]] for e in picked],
            [self._item_ids[e] for e in picked],
            [etype[e] for e in picked],
            [time[e] for e in picked],
            [seq[e] for e in picked],
        )
        if self._catalog:
            self._change_catalog(next(answers))

    def _change_catalog(self, rows: list[bytes | None]) -> None:
        self._new.append((CATALOG_VIEW, _without_row(self._catalog, rows)))
        for item_id, row in zip(self._catalog, unpack_catalog_rows(list(self._catalog), rows), strict=True):
            self._catalog[item_id] = None if row is None else CatalogState(*row)
        for seq, change in self._changes:
            self._catalog[change.item_id] = changed(self._catalog[change.item_id], change, seq)

    def _catalog_rows(self) -> list[bytes]:
        states = [state for state in self._catalog.values() if state is not None]
        time, seq = (np.array(column, np.int64) for column in ([s.time for s in states], [s.seq for s in states]))
        return pack_catalog([state.item for state in states], time, seq)

    def write_arguments(self, expected: int, watermark: int) -> tuple[list[str | bytes], list[Any]]:
        """Return keys and arguments of ingest_write.lua.

        Parameters
        ----------
        expected
            The watermark the rows were read at.
        watermark
            `seq` of the last event of the batch.
        """
        keys: list[str | bytes] = [watermark_key(self._project), changed_key(self._project)]
        changed = self.changed_items
        arguments: list[Any] = [expected, watermark, len(changed), *changed]
        buckets = [entry for view, new in self._new for entry in index_entries(self._project, view, new)]
        keys += [key for key, _ in buckets]
        arguments.append(len(buckets))
        for _, entities in buckets:
            arguments += (len(entities), *entities)
        users, items, pairs, categories = self._indexes
        if self._states:
            packed = [
                pack_rows(view, state.ints, state.floats) for view, state in zip(FOLD_VIEWS, self._states, strict=True)
            ]
            alone = [*packed[0], *packed[1], *self._recent_rows, *self._catalog_rows()]
            keys += row_keys(self._project, USER_STATS.name, list(users.position))
            keys += row_keys(self._project, ITEM_STATS.name, list(items.position))
            keys += row_keys(self._project, RECENT_VIEW, list(self._recent.position))
            keys += row_keys(self._project, CATALOG_VIEW, list(self._catalog))
            arguments += [len(alone), *alone]
            for v, index in ((2, pairs), (3, categories)):
                made = (self._states[v].ints[:, 0] != NULL_INT).tolist()  # without those over the user's cap
                for first, seconds in index.by_first().items():
                    kept = [(second, packed[v][position]) for second, position in seconds if made[position]]
                    if kept:
                        keys.append(row_key(self._project, FOLD_VIEWS[v].name, first))
                        arguments.append(len(kept))
                        arguments += [second for second, _ in kept]
                        arguments += [row for _, row in kept]
        else:
            arguments.append(0)
        return keys, arguments


def _without_row(entities: Iterable[str], values: Sequence[bytes | None]) -> list[str]:
    return [entity for entity, value in zip(entities, values, strict=True) if value is None]


def _state(view: View, values: list[bytes | None]) -> State:
    """Return the rows read, or a row before its first event where there is none."""
    rows = unpack_rows(view, values)
    state = new_state(view, len(values))
    state.ints[rows.present] = rows.ints[rows.present]
    state.floats[rows.present] = rows.floats[rows.present]
    return state
