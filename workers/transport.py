"""Kombu's Redis transport, with every popped message looked at before Celery takes it on trust.

The one place that knows how kombu pops: its client's reply to BRPOP; and what it does when a broker
refused a command and its channel was closed.
"""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.guard import guarded


class Channel(kombu_redis.Channel):
    """A channel whose client never hands out a message that would end its process."""

    def _get_client(self) -> Any:
        usual: Any = super()._get_client()  # type: ignore[no-untyped-call]

        class Guarded(usual):  # type: ignore[misc]
            def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
                reply = super().parse_response(connection, command_name, **options)
                if command_name == "BRPOP" and reply:
                    queue, raw = reply
                    return queue, guarded(raw, queue.decode("utf-8", "replace"))
                return reply

        return Guarded

    def _connparams(self, asynchronous: bool = False) -> Any:
        """Where to connect to.

        A closed channel that a producer still holds raises what makes kombu open a new one; as it
        comes, it ends the process that publishes with an AttributeError.
        """
        if self.connection is None:
            raise RedisConnectionError("the channel was closed")
        return super()._connparams(asynchronous)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    """What `redis://` and `rediss://` mean to Celery in our processes."""

    Channel = Channel


def install() -> None:
    """Use it for all Redis URLs of this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
