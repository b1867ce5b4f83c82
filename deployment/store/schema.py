"""Brings a database to the newest schema, by Alembic; does nothing where it is there."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from deployment.store.database import WAIT_S, Database
from deployment.store.tables import VERSION_TABLE
from feature_repo.errors import UnavailableError

#: The newest revision in migrations/versions.
NEWEST: Final = "m0002"
#: Any number that nobody else uses for an advisory lock.
_LOCK_ID = 0x6C617264


def upgrade(database: Database) -> None:
    """Apply the migrations that are missing, in one transaction. Processes that start at once take turns.

    Raises
    ------
    UnavailableError
        If the database cannot be used, or is of a newer version of Larder.
    """
    if database.is_sqlite:
        Path(database.name).parent.mkdir(parents=True, exist_ok=True)
        with _file_lock(Path(f"{database.name}.lock")):
            _upgrade(database)
    else:
        _upgrade(database)


def _upgrade(database: Database) -> None:
    with database.transaction(write=False) as connection:
        if _revision(connection) == NEWEST:
            return
    with database.transaction(write=True) as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK_ID})
        found = _revision(connection)  # whoever was first has done it
        if found != NEWEST:
            _run(connection, database.name)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return None if found is None else str(found)


def _run(connection: Connection, name: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise UnavailableError(
            f"the control plane's database {name} has a schema this version of Larder does not know: {error}"
        ) from error


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Let one process at a time make or change an SQLite file: turning WAL on does not wait for others by itself."""
    give_up = time.monotonic() + WAIT_S
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise UnavailableError(f"another process has been changing {path.stem} for {WAIT_S} s") from None
                time.sleep(0.02)
        yield
