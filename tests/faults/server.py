"""A Valkey that tests may kill and start again on what it had written."""

from pathlib import Path

import redis

from producer.valkey import EmbeddedValkey, start_valkey


class Server:
    """A Valkey with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.valkey: EmbeddedValkey = start_valkey(folder)

    @property
    def url(self) -> str:
        """What processes connect to; the same after a restart."""
        return self.valkey.url

    @property
    def path(self) -> str:
        """Its socket."""
        return str(self.valkey.socket)

    def client(self) -> "redis.Redis":
        """A connection past any proxy."""
        return redis.Redis(unix_socket_path=self.path)

    def kill(self) -> None:
        """SIGKILL."""
        self.valkey.child.process.kill()
        self.valkey.child.process.wait(timeout=10)

    def start(self) -> None:
        """Start it again on what it had written."""
        self.valkey = start_valkey(self._folder)
