"""What lies with the broker: which batches still have a message, how deep the queues are.

Reads the lists and the table of unacknowledged messages that Celery's Redis transport keeps:

    <run>.<version>.<queue>    list of messages waiting
    unacked                    hash: delivery tag -> [message, exchange, routing key], all queues
    unacked_index              zset: delivery tag by the time it was delivered, all queues

Nothing is counted beside these, so nothing can drift from them.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.errors import BrokerError
from workers.messages import batch_of, queue

#: Messages set aside that are kept.
KEPT_ASIDE = 1000


class Broker:
    """A look at one run's messages."""

    def __init__(self, url: str, run: str, queues: Sequence[str]) -> None:
        """Connect lazily; `url` is in Celery's form, `queues` are short names."""
        self._run, self._prefix = run, queue(run, "")
        self._queues = [queue(run, short) for short in queues]
        self._redis = Redis.from_url(
            url.replace("redis+socket://", "unix://", 1),
            socket_timeout=10,
            socket_connect_timeout=5,
            decode_responses=True,
            encoding_errors="replace",  # anyone may have pushed anything
        )

    def ping(self) -> None:
        """Raises: BrokerError if the broker does not answer."""
        with _translated():
            self._redis.ping()

    def batches(self) -> set[str]:
        """Ids of all batches of which a message waits in a queue or is unacknowledged.

        A message on its way from one to the other is in neither for a moment: look twice.
        """
        with _translated():
            found = set()
            for name in self._queues:
                found |= {_batch(str(text)) for text in self._redis.lrange(name, 0, -1)}
            found |= {_batch(text) for _, text in self._unacknowledged()}
            return found - {""}

    def depths(self) -> dict[str, int]:
        """Messages waiting or under way, by the queue's short name."""
        with _translated():
            depths = Counter({self._short(name): self._redis.llen(name) for name in self._queues})
            depths.update(self._short(_routing_key(text)) for _, text in self._unacknowledged())
            return dict(depths)

    def waiting(self) -> dict[str, int]:
        """Messages that no worker holds, by the queue's full name."""
        with _translated():
            return {name: self._redis.llen(name) for name in self._queues}

    def unacknowledged(self) -> dict[str, int]:
        """Messages that a worker holds, by the queue's full name."""
        with _translated():
            return dict(Counter(_routing_key(text) for _, text in self._unacknowledged()))

    def drop(self) -> None:
        """Delete the run's queues, also of models it no longer has, and its
        unacknowledged messages; answers in the cache stay."""
        with _translated():
            tags = [tag for tag, _ in self._unacknowledged()]
            if tags:
                self._redis.hdel("unacked", *tags)
                self._redis.zrem("unacked_index", *tags)
            for name in self._redis.scan_iter(f"{self._prefix}*", count=1000, _type="list"):
                self._redis.unlink(name)

    def joins(self) -> dict[str, list[str]]:
        """The keys of the run's chords, by batch: half-joined ones, and joined ones for a while."""
        found: dict[str, list[str]] = defaultdict(list)
        start = f"celery-taskset-meta-{self._run}."
        with _translated():
            for name in self._redis.scan_iter(f"{start}*", count=1000):
                found[name.removeprefix(start).partition(".")[0]].append(name)
        return dict(found)

    def drop_joins(self, names: Iterable[str]) -> None:
        """Delete these keys of chords."""
        with _translated(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.unlink(name)
            pipe.execute()

    def revive(self, prompts: Iterable[str]) -> None:
        """Let prompts that were committed, and are in flight again, be asked about at once."""
        with _translated(), self._redis.pipeline(transaction=False) as pipe:
            for prompt in prompts:
                pipe.hdel(keys.answers(self._run, prompt), "done")
            pipe.execute()

    def set_aside(self, message: str, why: str, queue_name: str) -> None:
        """List a message that nothing can be done with; the newest `KEPT_ASIDE` are kept."""
        entry = {"at": time.time(), "queue": queue_name, "reason": why, "message": message}
        with _translated(), self._redis.pipeline() as pipe:
            pipe.lpush(keys.aside(self._run), json.dumps(entry))
            pipe.ltrim(keys.aside(self._run), 0, KEPT_ASIDE - 1)
            pipe.execute()

    def aside(self) -> list[dict[str, Any]]:
        """Messages set aside, newest first: `at` (epoch seconds), `queue`, `reason`, `message`."""
        with _translated():
            return [json.loads(text) for text in self._redis.lrange(keys.aside(self._run), 0, -1)]

    def aside_count(self) -> int:
        """How many messages are kept aside, `KEPT_ASIDE` at most."""
        with _translated():
            return int(self._redis.llen(keys.aside(self._run)))

    def _unacknowledged(self) -> Iterator[tuple[str, str]]:
        for tag, text in self._redis.hscan_iter("unacked", count=200):
            if _routing_key(text).startswith(self._prefix):
                yield tag, text

    def _short(self, name: str) -> str:
        return name.removeprefix(self._prefix)


def _batch(text: str) -> str:
    """The batch of a message, waiting or unacknowledged; empty for what is no message of ours."""
    try:
        found = json.loads(text)
        message = found[0] if isinstance(found, list) else found
        return batch_of(str(message["headers"]["id"]))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""


def _routing_key(text: str) -> str:
    """The last of [message, exchange, routing key], without reading the message."""
    return text.rpartition('"')[0].rpartition('"')[2]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise BrokerError(f"broker: {exc}") from exc
