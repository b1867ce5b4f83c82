"""Names of the Redis keys of a project. PURE.

Rows stand under `<project>:fs:<view>:{<entity>}`; the braces keep all keys of one entity value in one cluster slot.
"""

from __future__ import annotations

from feature_repo.errors import BadInputError


def checked_project(project: str) -> str:
    """Return the project's name if it can be the first part of a key.

    Raises
    ------
    BadInputError
        For an empty name or one with a colon: its keys could be another project's.
    """
    if not project or ":" in project:
        raise BadInputError(f"project name {project!r} cannot be used: it must not be empty or contain ':'")
    return project


def rows_prefix(project: str, view: str | None = None) -> bytes:
    """Prefix of all row keys of a view, or of all views."""
    return f"{project}:fs:".encode() if view is None else f"{project}:fs:{view}:".encode()


def row_key(project: str, view: str, entity: str) -> bytes:
    """Key of an entity's row, or of the hash with a first entity's rows."""
    return f"{project}:fs:{view}:{{{entity}}}".encode()


def row_keys(project: str, view: str, entities: list[str]) -> list[bytes]:
    """Keys of several entities."""
    head = f"{project}:fs:{view}:{{"
    return [f"{head}{entity}}}".encode() for entity in entities]


def events_key(project: str) -> str:
    """Stream of accepted events."""
    return f"{project}:events"


def seen_prefix(project: str) -> str:
    """Prefix of the keys that remember an `event_id` for seven days."""
    return f"{project}:seen:"


def watermark_key(project: str) -> str:
    """`seq` of the last event folded into the rows."""
    return f"{project}:watermark"


def changed_key(project: str) -> str:
    """Sorted set: items by the millisecond (Redis' clock) their rows last changed."""
    return f"{project}:items:changed"


def status_key(project: str) -> str:
    """Ingest's counters, as JSON."""
    return f"{project}:ingest:status"


def base_key(project: str) -> str:
    """Which imported history, in which layouts, the rows are folded on."""
    return f"{project}:base"
