"""Names of the Redis keys of a project. PURE.

Braces choose the cluster slot: all rows of one entity value are in one slot, and so is all that one ingest script or
one append touches (`{<project>}`). Rows are `<project>:fs:<view>:{<entity>}`; the index that says which rows there are
is `<project>:fi:<view>:{<bucket>}` (see row_index.py).
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence

from feature_repo.errors import BadInputError

#: Buckets of a view's index: up to about half a million entities their hashes stay in Redis' compact encoding.
INDEX_BUCKETS = 1_024


def checked_project(project: str) -> str:
    """Return the project's name if it can be the first part of a key.

    Raises
    ------
    BadInputError
        For an empty name, one with a colon (its keys could be another project's) or with braces (they choose the slot).
    """
    if not project or set(project) & set(":{}"):
        raise BadInputError(
            f"project name {project!r} cannot be used: it must not be empty or contain ':', '{{' or '}}'"
        )
    return project


def row_key(project: str, view: str, entity: str) -> bytes:
    """Key of an entity's row, or of the hash with a first entity's rows."""
    return f"{project}:fs:{view}:{{{entity}}}".encode()


def row_keys(project: str, view: str, entities: Sequence[str]) -> list[bytes]:
    """Keys of several entities."""
    head = f"{project}:fs:{view}:{{"
    return [f"{head}{entity}}}".encode() for entity in entities]


def index_key(project: str, view: str, bucket: int) -> bytes:
    """Hash whose fields are the (first) entities of a view that fall into a bucket."""
    return f"{project}:fi:{view}:{{{bucket}}}".encode()


def index_entries(project: str, view: str, entities: Iterable[str]) -> list[tuple[bytes, list[bytes]]]:
    """Return where (first) entities stand in a view's index: keys of buckets, and the fields each is to have."""
    buckets: dict[int, list[bytes]] = {}
    for entity in dict.fromkeys(entities):
        field = entity.encode()
        buckets.setdefault(crc_hqx(field, 0) % INDEX_BUCKETS, []).append(field)
    return [(index_key(project, view, bucket), fields) for bucket, fields in buckets.items()]


def events_key(project: str) -> str:
    """Stream of accepted events."""
    return f"{{{project}}}:events"


def seen_prefix(project: str) -> str:
    """Prefix of the keys that remember an `event_id` for seven days."""
    return f"{{{project}}}:seen:"


def watermark_key(project: str) -> str:
    """`seq` of the last event folded into the rows."""
    return f"{{{project}}}:watermark"


def changed_key(project: str) -> str:
    """Sorted set: items by the millisecond (Redis' clock) their rows last changed."""
    return f"{{{project}}}:items:changed"


def status_key(project: str) -> str:
    """Ingest's counters, as JSON."""
    return f"{{{project}}}:ingest:status"


def quarantine_key(project: str) -> str:
    """Stream of what the API refused, until ingest has written it to the quarantine files."""
    return f"{{{project}}}:quarantine"


def quarantine_counts_key(project: str) -> str:
    """Hash: how many rows the API refused, by reason."""
    return f"{{{project}}}:quarantine:counts"


def base_key(project: str) -> str:
    """Which imported history, in which layouts, the rows are folded on."""
    return f"{{{project}}}:base"


def earlier_keys(project: str) -> list[str]:
    """Keys that tell that rows were written by a version without an index, under keys without a common slot."""
    return [f"{project}:{name}" for name in ("events", "watermark", "base", "items:changed")]
