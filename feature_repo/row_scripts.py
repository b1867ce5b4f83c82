"""What row_write.lua is called with: keys and arguments for the rows of a view, in scripts of bounded size. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from feature_repo.online_keys import index_entries, row_key, row_keys

#: Rows and bytes per script: Redis answers nobody else while one runs (0.3 to 1 ms).
SCRIPT_ROWS: Final = 200
SCRIPT_BYTES: Final = 200_000
#: Index entries per command.
_ENTRIES: Final = 500

#: Keys and arguments.
Script = tuple[list[bytes], list[Any]]


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Packed rows of one view.

    Attributes
    ----------
    view
        Its name.
    first
        The entity of each row, which names its key.
    rows
        The rows, one per entity.
    second
        For a view of several entities: the field of each row in the hash under its key.
    """

    view: str
    first: Sequence[str]
    rows: Sequence[bytes]
    second: Sequence[str] | None = None


def index_commands(project: str, batch: ViewRows) -> list[tuple[Any, ...]]:
    """Return the commands that enter the rows' entities into the index of their view."""
    commands: list[tuple[Any, ...]] = []
    for key, entities in index_entries(project, batch.view, batch.first):
        for start in range(0, len(entities), _ENTRIES):
            part = entities[start : start + _ENTRIES]
            words = [b""] * (2 * len(part))
            words[::2] = part
            commands.append(("HSET", key, *words))
    return commands


def scripts_by_slot(project: str, batch: ViewRows, slot_of: Callable[[bytes], int]) -> Iterator[Script]:
    """Yield the same for a cluster: scripts whose keys are in one slot."""
    slots: dict[int, list[int]] = {}
    for place, entity in enumerate(batch.first):
        slots.setdefault(slot_of(row_key(project, batch.view, entity)), []).append(place)
    for places in slots.values():
        second = None if batch.second is None else [batch.second[place] for place in places]
        part = ViewRows(batch.view, [batch.first[p] for p in places], [batch.rows[p] for p in places], second)
        yield from scripts_of(project, part)


def scripts_of(project: str, batch: ViewRows) -> Iterator[Script]:
    """Yield keys and arguments of row_write.lua (see write_rows in row_order.lua)."""
    for part in _parts(batch.rows):
        first, rows = batch.first[part], batch.rows[part]
        if batch.second is None:
            yield row_keys(project, batch.view, first), [len(rows), *rows]
            continue
        hashes: dict[str, tuple[list[str], list[bytes]]] = {}
        for entity, field, row in zip(first, batch.second[part], rows, strict=True):
            fields, values = hashes.setdefault(entity, ([], []))
            fields.append(field)
            values.append(row)
        arguments: list[Any] = [0]
        for fields, values in hashes.values():
            arguments.append(len(fields))
            arguments += fields
            arguments += values
        yield row_keys(project, batch.view, list(hashes)), arguments


def _parts(rows: Sequence[bytes]) -> Iterator[slice]:
    """Cut rows into what one script may have."""
    start = size = 0
    for end, row in enumerate(rows):
        size += len(row)
        if end - start == SCRIPT_ROWS or (size > SCRIPT_BYTES and end > start):
            yield slice(start, end)
            start, size = end, len(row)
    if start < len(rows):
        yield slice(start, len(rows))
