"""Answered calls by content address, until their prompts are committed.

    prefmill:<run>:answers:<prompt key>    hash: SHA-256 of the request -> the answer as JSON

An answer is stored as soon as it is read, so that no crash, repeated message or fresh publication
pays for it again. The sink forgets a prompt's answers once its outcome lies in the ledger; a wipe
costs again the calls of the prompts in flight, nothing more.
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from workers.errors import BrokerError

#: Answers nobody came back for are dropped after this time, in seconds.
EXPIRES_S = 7 * 24 * 3600

Answer = dict[str, Any]


class AnswerCache(Protocol):
    """Where answers wait for their prompt to be committed."""

    async def recall(self, keys: Sequence[str]) -> dict[str, dict[str, Answer]]:
        """The answers of some prompts: by prompt key, then by request address."""

    async def keep(self, key: str, address: str, answer: Answer) -> None:
        """Store one answer of a prompt."""

    async def forget(self, keys: Iterable[str]) -> None:
        """Drop the answers of committed prompts."""


class NoCache:
    """Remembers nothing: for a single prompt tried by hand."""

    async def recall(self, keys: Sequence[str]) -> dict[str, dict[str, Answer]]:
        """Nothing."""
        return {key: {} for key in keys}

    async def keep(self, key: str, address: str, answer: Answer) -> None:
        """Do nothing."""

    async def forget(self, keys: Iterable[str]) -> None:
        """Do nothing."""


class RedisCache:
    """The cache of one run's fleet, in the broker's Redis or Valkey."""

    def __init__(self, url: str, run: str) -> None:
        """Connect lazily; `url` is in the broker's form."""
        self._run = run
        # Half a minute of reconnecting: a broker's restart must not throw away a paid answer.
        retry = Retry(ExponentialWithJitterBackoff(base=0.1, cap=5), retries=12)
        self._redis = Redis.from_url(
            url.replace("redis+socket://", "unix://", 1),
            retry=retry,
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            socket_timeout=10,
            socket_connect_timeout=5,
            decode_responses=True,
        )

    def _name(self, key: str) -> str:
        return f"prefmill:{self._run}:answers:{key}"

    async def recall(self, keys: Sequence[str]) -> dict[str, dict[str, Answer]]:
        """One round trip for a whole batch. Raises: BrokerError."""
        async with _translated(), self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(self._name(key))
            found = await pipe.execute()
        return {
            key: {address: json.loads(text) for address, text in answers.items()}
            for key, answers in zip(keys, found, strict=True)
        }

    async def keep(self, key: str, address: str, answer: Answer) -> None:
        """Store one answer. Raises: BrokerError."""
        async with _translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(self._name(key), address, json.dumps(answer))
            pipe.expire(self._name(key), EXPIRES_S)
            await pipe.execute()

    async def forget(self, keys: Iterable[str]) -> None:
        """Drop the answers of committed prompts. Raises: BrokerError."""
        names = [self._name(key) for key in keys]
        if names:
            async with _translated():
                await self._redis.unlink(*names)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise BrokerError(f"cache of answers: {exc}") from exc
