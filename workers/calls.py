"""One paid call: looked up in the cache, held to the model's limit, retried, stored.

Owns the one event loop of a process: tasks run in threads, hand a coroutine to the loop and wait.
Limits hold for this process: a fleet that starts several workers for one model has as many times
its `max_concurrency`.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import stamina

from workers.cache import Answer, AnswerCache
from workers.chat import Completion, complete, open_client
from workers.errors import CallFailed, PrefmillError
from workers.recipe import Generator, Judge, Recipe
from workers.records import Usage, canonical_json, sha256

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Attempts at one call, the first included; between them 0.5, 1, 2, 4 and 8 s and some jitter.
ATTEMPTS = 6

#: The longest wait that a Retry-After is followed for, in seconds.
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion with what it cost."""

    completion: Completion
    usage: Usage


class CallEnded(CallFailed):
    """A call that failed for good, with what its attempts cost."""

    def __init__(self, failure: CallFailed, usage: Usage) -> None:
        super().__init__(failure.reason, failure.detail)
        self.usage = usage


class HandedBack(PrefmillError):
    """Work was stopped before its end; what was answered until then lies in the cache."""


class Calls:
    """The calls of one process to all endpoints of a recipe."""

    def __init__(self, recipe: Recipe, keys: Mapping[str, str | None], cache: AnswerCache) -> None:
        """`keys` holds each endpoint's key by endpoint name."""
        self._recipe, self._keys, self.cache = recipe, keys, cache
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._slots = {model.name: asyncio.Semaphore(recipe.cap(model)) for model in recipe.models}
        #: Judges whose endpoint does not take a schema.
        self.text_only: set[str] = set()
        self._running: set[Future[Any]] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it, from any other thread.

        Raises: what the coroutine raises; HandedBack after `cancel` or when the time is up.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(future)
        try:
            return future.result(timeout_s)
        except CancelledError as exc:
            raise HandedBack("the worker shuts down") from exc
        except TimeoutError as exc:
            if not future.cancel():
                raise
            raise HandedBack(f"not done within {timeout_s:g} s") from exc
        finally:
            self._running.discard(future)

    def cancel(self) -> int:
        """Cancel whatever runs now, closing its connections; returns how many were waiting."""
        running = list(self._running)
        for future in running:
            future.cancel()
        return len(running)

    def close(self) -> None:
        """Close connections and end the loop."""
        self.cancel()

        async def _close() -> None:
            await asyncio.gather(*self._keeping, return_exceptions=True)
            for client in self._clients.values():
                await client.aclose()

        try:
            asyncio.run_coroutine_threadsafe(_close(), self._loop).result(timeout=5)
        except (TimeoutError, CancelledError):
            log.warning("calls.unclean_close")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def ask(
        self,
        model: Generator | Judge,
        request: Mapping[str, Any],
        *,
        key: str,
        known: Mapping[str, Answer],
    ) -> Answered:
        """The answer to a request, paid for at most once while its prompt is in flight.

        `request` is the request's body but for what the recipe adds; `key` is the prompt it belongs
        to; `known` are the prompt's cached answers by address.
        Raises: CallEnded; BrokerError if an answer cannot be stored.
        """
        body = {"model": model.model, **request, **model.parameters}
        address = sha256(canonical_json([model.name, body]))
        if address in known:
            completion = Completion(**known[address]["completion"])
            return Answered(completion, _usage(completion, known[address]["retries"], cached=True))
        async with self._slots[model.name]:
            completion, retries = await self._persist(model, body)
            answer = {"completion": _plain(completion), "retries": retries}
            await self._keep(key, address, answer)
        return Answered(completion, _usage(completion, retries))

    async def _keep(self, key: str, address: str, answer: Answer) -> None:
        """Store an answer that was read, even if the work that asked for it is cancelled now."""
        keeping = asyncio.ensure_future(self.cache.keep(key, address, answer))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        await asyncio.shield(keeping)

    async def _persist(
        self, model: Generator | Judge, body: dict[str, Any]
    ) -> tuple[Completion, int]:
        """Ask until it is answered, as often as `ATTEMPTS` allows."""
        endpoint, tried = self._recipe.endpoints[model.endpoint], 0
        try:
            async for attempt in stamina.retry_context(
                on=_wait_after, attempts=ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=20.0
            ):
                with attempt:
                    tried = attempt.num
                    client = self._client(model.endpoint)
                    return await complete(client, body, timeout_s=endpoint.timeout), tried - 1
        except CallFailed as exc:
            raise CallEnded(exc, Usage(retries=tried - 1)) from exc
        raise AssertionError("a retried call neither answered nor failed")

    def _client(self, name: str) -> httpx.AsyncClient:
        """The endpoint's client, opened on the loop that uses it."""
        if name not in self._clients:
            endpoint = self._recipe.endpoints[name]
            connections = sum(
                self._recipe.cap(model) for model in self._recipe.models if model.endpoint == name
            )
            self._clients[name] = open_client(
                endpoint.base_url, self._keys[name], connections=connections, proxy=endpoint.proxy
            )
        return self._clients[name]


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _wait_after(exc: Exception) -> bool | float:
    """Whether, or after how many seconds, a failed call is made again."""
    if not isinstance(exc, CallFailed) or not exc.retriable:
        return False
    if exc.retry_after_s is None:
        return True
    return min(exc.retry_after_s, LONGEST_WAIT_S) + random.uniform(0.1, 1.1)


def _usage(completion: Completion, retries: int, *, cached: bool = False) -> Usage:
    return Usage(retries, cached, completion.input_tokens, completion.output_tokens)


def _plain(completion: Completion) -> dict[str, Any]:
    return {name: getattr(completion, name) for name in Completion.__slots__}
