"""Signs of life of one worker process: what it holds, what it began, when it last got on.

A thread renews the messages that the process holds, so that only a dead worker's are delivered
again, however long work takes; and says that the process lives, so that a step which was begun and
never ended can be told from one that still runs. Health checks read the same signs.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from workers import keys
from workers.errors import BrokerError

log = logging.getLogger(__name__)

#: No step takes longer than this, in seconds: its budget and some slack.
STUCK_S = 2400.0

#: Notes of steps that were begun are dropped after this time, in seconds.
STARTED_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Sign:
    """What one worker process said of itself. Times in seconds since the epoch, by its clock."""

    process: str
    host: str
    pid: int
    queues: tuple[str, ...]
    running: int
    #: When a step last began or ended, or nothing was there to do.
    moved_at: float
    #: How long it may be at something without a move, in seconds.
    patience_s: float


@dataclass(frozen=True, slots=True)
class Death:
    """A process that began a step at some attempt and died before it ended it."""

    process: str
    attempt: int


def signs(url: str, run: str) -> list[Sign]:
    """What the living worker processes of a run said of themselves. Raises: BrokerError."""
    found = []
    try:
        with _client(url) as redis:
            for name in redis.scan_iter(keys.worker(run, "*"), count=1000):
                said = redis.hgetall(name)
                if said:
                    found.append(_sign(name.rpartition(":")[2], said))
    except (RedisError, OSError) as exc:
        raise BrokerError(f"broker: {exc}") from exc
    return found


def _sign(process: str, said: dict[str, str]) -> Sign:
    return Sign(
        process,
        said["host"],
        int(said["pid"]),
        tuple(json.loads(said["queues"])),
        int(said["running"]),
        float(said["moved_at"]),
        float(said.get("patience", STUCK_S)),
    )


def _client(url: str) -> Redis:
    return Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=2), retries=5),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        socket_timeout=10,
        socket_connect_timeout=5,
        decode_responses=True,
    )


class Liveness:
    """The signs of life of this process, in the broker's Redis or Valkey."""

    def __init__(self, url: str, run: str, process: str, visibility_timeout_s: float) -> None:
        """Connect lazily; `process` is this process' id, new at each start."""
        self._run, self.process = run, process
        self._visibility_timeout_s = visibility_timeout_s
        self._redis = _client(url)
        self._running: set[str] = set()
        self._moved_at = time.time()
        self._patience_s = STUCK_S
        self._ended = threading.Event()

    @contextmanager
    def step(self, task_id: str, attempt: int) -> Iterator["Death | None"]:
        """Around one step's work: notes that it began, and that it ended, however it ended.

        Yields the death of the process that began it before and never ended it, if there was one.
        Raises: BrokerError.
        """
        death = self.note(task_id, attempt)
        with self.busy(task_id):
            try:
                yield death
            finally:
                try:
                    self._redis.delete(keys.started(self._run, task_id))
                except (RedisError, OSError) as exc:
                    log.warning("liveness.not_noted", extra={"because": str(exc)})

    @contextmanager
    def busy(self, task_id: str) -> Iterator[None]:
        """Around work that may be done twice: shows that it is under way."""
        self._running.add(task_id)
        self._moved_at = time.time()
        try:
            yield
        finally:
            self._running.discard(task_id)
            self._moved_at = time.time()

    def note(self, task_id: str, attempt: int) -> "Death | None":
        """Note that a step begins at some attempt; returns what is to be known of its last one.

        Raises: BrokerError.
        """
        name, mine = keys.started(self._run, task_id), f"{self.process}:{attempt}"
        try:
            before = self._redis.set(name, mine, ex=STARTED_S, get=True)
            return self._death(str(before)) if before else None
        except (RedisError, OSError) as exc:
            raise BrokerError(f"cannot note what begins: {exc}") from exc

    def _death(self, note: str) -> "Death | None":
        process, _, attempt = note.partition(":")
        return None if self._lives(process) else Death(process, int(attempt))

    def _lives(self, process: str) -> bool:
        return process == self.process or bool(self._redis.exists(keys.worker(self._run, process)))

    # -- what is no worker: the producer, beat ----------------------------------------------------

    def begin(self, what: str, *, patience_s: float) -> None:
        """Start giving signs of a loop that calls `moved` at each round, within `patience_s`."""
        self._running.add(what)
        self._patience_s = patience_s
        self.watch((), list)

    def moved(self) -> None:
        """Note that the loop came round once more."""
        self._moved_at = time.time()

    # -- the thread ----------------------------------------------------------------------------

    def watch(self, queues: Iterable[str], held: Callable[[], list[str]]) -> None:
        """Start giving signs; `held` names the delivery tags of the messages this process holds."""
        arguments = (tuple(queues), held)
        threading.Thread(target=self._watch, args=arguments, name="liveness", daemon=True).start()

    def _watch(self, queues: tuple[str, ...], held: Callable[[], list[str]]) -> None:
        every = self._visibility_timeout_s / 6
        troubled = False
        while True:
            try:
                self._sign(queues, held())
                troubled = False
            except (RedisError, OSError) as exc:
                if not troubled:
                    log.warning("liveness.no_sign", extra={"because": str(exc)})
                troubled = True
            if self._ended.wait(1.0 if troubled else every):
                return

    def _sign(self, queues: tuple[str, ...], tags: list[str]) -> None:
        name = keys.worker(self._run, self.process)
        sign: dict[Any, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": json.dumps(queues),
            "running": len(self._running),
            "moved_at": self._moved_at,
            "patience": self._patience_s,
        }
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(name, mapping=sign)
            pipe.pexpire(name, int(self._visibility_timeout_s * 500))
            if tags:
                # Kombu's index of unacknowledged messages, by the time of their delivery.
                now = time.time()
                pipe.zadd("unacked_index", dict.fromkeys(tags, now), xx=True)
            for queue in queues:
                pipe.llen(queue)
            replies = pipe.execute()
            waiting = sum(replies[len(replies) - len(queues) :])
        if not self._running and not waiting:
            self._moved_at = time.time()

    def close(self) -> None:
        """Say good-bye and stop giving signs."""
        self._ended.set()
        try:
            self._redis.delete(keys.worker(self._run, self.process))
        except (RedisError, OSError):
            log.info("liveness.no_good_bye")
        self._redis.close()
