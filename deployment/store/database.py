"""SQLAlchemy adapter: one database, SQLite or PostgreSQL, with bounded waits and errors that say what to do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings, SettingsError

#: Longest wait for another writer, or for an answer to one statement.
WAIT_S = 5
#: Longest transaction: beyond it the connection is cut off, whatever the other side does.
TRANSACTION_S = 15
_WRITE = "larder_write"


def database_url(settings: Settings) -> URL:
    """Return the URL of the control plane's database: `platform_url`, else SQLite in the project's directory.

    Raises
    ------
    SettingsError
        If `platform_url` is no URL of PostgreSQL.
    """
    if not settings.platform_url:
        return URL.create("sqlite", database=str(settings.platform_uri))
    try:
        url = make_url(settings.platform_url)
    except ArgumentError:
        url = URL.create("none")
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise SettingsError("setting platform_url must look like postgresql://user:password@host:5432/database")
    return url.set(drivername="postgresql+psycopg")


class Database:
    """Transactions on one database.

    A connection is made for each: the control plane writes seldom, and a pool would hand out connections that have
    died meanwhile.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.name = str(url.database) if self.is_sqlite else url.render_as_string(hide_password=True)
        self._engine = create_engine(url, poolclass=NullPool, connect_args=_sqlite() if self.is_sqlite else _postgres())
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        """Run a transaction: all of it or nothing.

        Writers take SQLite's lock at once; on PostgreSQL they lock the rows they decide on. Readers see one moment.

        Raises
        ------
        UnavailableError
            If the database cannot be reached, does not answer in time, is locked too long, or is damaged.
        """
        committing = False
        options: dict[str, Any] = {_WRITE: write}
        if not self.is_sqlite:
            options["isolation_level"] = "READ COMMITTED" if write else "REPEATABLE READ"
        try:
            with (
                self._engine.connect().execution_options(**options) as connection,
                self._bounded(connection),
                connection.begin() as transaction,
            ):
                yield connection
                committing = True
                transaction.commit()
        except SQLAlchemyError as error:
            first = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            unsure = "; it is not known whether the last write arrived: look before you repeat it" if committing else ""
            raise UnavailableError(f"the control plane's database {self.name} failed: {first}{unsure}") from error

    @contextmanager
    def _bounded(self, connection: Connection) -> Iterator[None]:
        """Cut the connection off after a while: a server that stopped answering would be waited for without end."""
        if self.is_sqlite:
            yield
            return
        driver: Any = connection.connection.driver_connection
        with closing(socket.socket(fileno=os.dup(driver.fileno()))) as line:
            timer = threading.Timer(TRANSACTION_S, _cut, [line])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()


def _cut(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is over already


def _sqlite() -> dict[str, Any]:
    return {"timeout": WAIT_S}


def _postgres() -> dict[str, Any]:
    limit = WAIT_S * 1000
    return {
        "connect_timeout": WAIT_S,
        "application_name": "larder",
        "options": f"-c statement_timeout={limit} -c lock_timeout={limit} "
        f"-c idle_in_transaction_session_timeout={TRANSACTION_S * 1000}",
    }


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, not the driver
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
