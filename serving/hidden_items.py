"""Remembers on disk which items of the popularity file must not be shown, for answers without an item table."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from serving.cascade.items import ItemTable
from serving.state import ServingState

_LOG = logging.getLogger(__name__)


def hidden_items(table: ItemTable, popular: Sequence[str]) -> frozenset[str]:
    """Return the items of a popularity file that are blocked or not available now."""
    at = table.lookup(popular)
    return frozenset(item for item, i in zip(popular, at.tolist(), strict=True) if i >= 0 and not table.available[i])


async def remember_hidden(state: ServingState, path: Path) -> None:
    """Note in `state.hidden` what must not be shown now, and on disk where that has changed."""
    if state.listed is not None and state.release is not None:
        hidden = hidden_items(state.listed, state.release.bundle.popular)
        if hidden != state.hidden:
            state.hidden = hidden
            await asyncio.to_thread(save_hidden, hidden, path)


def save_hidden(items: frozenset[str], path: Path) -> None:
    """Write them to disk; where that fails, the last ones stay there."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(sorted(items)))
        temporary.replace(path)
    except OSError as error:
        _LOG.warning("the hidden items could not be written to %s: %s", path, error)


def load_hidden(path: Path) -> frozenset[str]:
    """Read them from disk; none where there is no such file, or a damaged one."""
    try:
        return frozenset(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, msgspec.MsgspecError) as error:
        _LOG.warning("the hidden items in %s cannot be read: %s", path, error)
        return frozenset()
