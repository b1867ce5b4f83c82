"""Prints recommendation lists side by side, with what is new in them marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from larder_client.answers import RankedItem

_WIDTH = 44


def side_by_side(
    columns: Mapping[str, Sequence[RankedItem]], titles: Mapping[str, str], *, rows: int, marked: Sequence[str] = ()
) -> str:
    """Lay lists out as columns.

    Parameters
    ----------
    columns
        Heading to list.
    titles
        Item id to title.
    rows
        Lines to show.
    marked
        Items that get a `*`.
    """
    lines = ["     " + "".join(heading.ljust(_WIDTH) for heading in columns).rstrip()]
    for i in range(rows):
        cells = [_cell(items[i], titles, marked) if i < len(items) else "" for items in columns.values()]
        lines.append(f"{i + 1:>3}  " + "".join(cell.ljust(_WIDTH) for cell in cells).rstrip())
    return "\n".join(lines)


def _cell(item: RankedItem, titles: Mapping[str, str], marked: Sequence[str]) -> str:
    mark = "*" if item.item_id in marked else " "
    source = f" ({item.source})"
    room = _WIDTH - len(source) - 3
    return f"{mark}{titles.get(item.item_id, item.item_id)[:room]}{source}"
