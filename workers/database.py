"""How a ledger's database is opened: SQLite by default, PostgreSQL for a fleet."""

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateColumn

from workers.errors import LedgerError, SettingsError
from workers.settings import sqlite_path
from workers.tables import metadata, prompts

#: Names the lock under which tables are made, in PostgreSQL.
_MAKING = 0x70726566

#: How long a writer waits for another one before the database counts as locked, in seconds.
BUSY_TIMEOUT_S = 30

#: How a database server is connected to: one that falls silent is noticed within a minute.
SERVER = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def open_database(url: str, *, must_exist: bool = False) -> Engine:
    """An engine whose tables exist. Raises: LedgerError; SettingsError if it must exist."""
    path = sqlite_path(url)
    if path is not None:
        if must_exist and not path.is_file():
            raise SettingsError(
                f"no ledger at {path} yet; accepted: --database or PREFMILL_DATABASE_URL with the "
                "URL of one that a run has made"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LedgerError(f"no folder for the ledger {path}: {exc.strerror}") from exc
    connect_args = {"timeout": BUSY_TIMEOUT_S} if path is not None else SERVER
    try:
        engine = create_engine(
            url,
            pool_size=8,
            max_overflow=56,
            pool_timeout=60,
            pool_pre_ping=path is None,  # a server may have been restarted since
            connect_args=connect_args,
        )
    except Exception as exc:
        raise LedgerError(f"ledger {shown(url)} cannot be opened: {first_line(exc)}") from exc
    try:
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        _make_tables(engine, must_exist=must_exist)
    except SettingsError:
        engine.dispose()
        raise
    except Exception as exc:
        engine.dispose()
        raise LedgerError(f"ledger {shown(url)} cannot be opened: {first_line(exc)}") from exc
    return engine


def _make_tables(engine: Engine, *, must_exist: bool) -> None:
    """Make the tables, columns and indexes that are not there; one process at a time."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MAKING)))
        there = inspect(connection)
        if must_exist and not there.has_table(prompts.name):
            raise SettingsError(
                f"no ledger in {shown(str(engine.url))} yet; accepted: --database or "
                "PREFMILL_DATABASE_URL with the URL of one that a run has made"
            )
        metadata.create_all(connection)
        for table in metadata.sorted_tables:
            known = {column["name"] for column in inspect(connection).get_columns(table.name)}
            for column in table.columns:
                if column.name not in known:
                    spelt = CreateColumn(column).compile(dialect=engine.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {spelt}")
            for index in table.indexes:
                index.create(connection, checkfirst=True)


def shown(url: str) -> str:
    """A database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "(a URL that cannot be read)"


def first_line(exc: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA journal_mode=WAL")
        # A killed process loses nothing. After a power cut the last commits may be missing, never
        # half of one: their prompts are in flight again.
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail, not wait, when another one
        # wrote in between.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
