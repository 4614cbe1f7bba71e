"""One at a time, over all hosts that share a ledger: locks that end with their process.

An advisory lock of a PostgreSQL session, or a lock on a file beside an SQLite database. Nothing
rests on them but work: two that deliver at once still deliver each row once.
"""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from workers.database import first_line
from workers.errors import LedgerError

#: After these seconds the server looks whether a session's host is still there, and again.
_KEEPALIVE_S = 15


@contextmanager
def alone(engine: Engine, name: str) -> Iterator[bool]:
    """Whether nobody else is within a block of that name now. Raises: LedgerError."""
    if engine.dialect.name == "postgresql":
        with _session_lock(engine, name) as held:
            yield held
    else:
        with _file_lock(Path(engine.url.database or ""), name) as held:
            yield held


@contextmanager
def _session_lock(engine: Engine, name: str) -> Iterator[bool]:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    try:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except SQLAlchemyError as exc:
        raise LedgerError(f"ledger: {first_line(exc)}") from exc
    held = False
    try:
        try:
            for setting in ("tcp_keepalives_idle", "tcp_keepalives_interval"):
                connection.execute(text(f"SET {setting} = {_KEEPALIVE_S}"))
            locked = text("SELECT pg_try_advisory_lock(:number)")
            held = bool(connection.scalar(locked, {"number": number}))
        except SQLAlchemyError as exc:
            raise LedgerError(f"ledger: {first_line(exc)}") from exc
        yield held
    finally:
        # Not given back to the pool: the lock belongs to the session.
        connection.invalidate()
        connection.close()


@contextmanager
def _file_lock(database: Path, name: str) -> Iterator[bool]:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    path = database.with_name(f"{database.name}.{slug}-{digest}.lock")
    try:
        file = path.open("w")
    except OSError as exc:
        raise LedgerError(f"no lock at {path}: {exc.strerror}") from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
