"""One paid call: let in by the fleet's admission, made, asked again where that may help, kept.

Owns the one event loop of a process: tasks run in threads, hand a coroutine to the loop and wait.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import stamina

from workers.admission import WAITS_S, Admission, Answer, HandedBack, Leave, Model, Refusals
from workers.chat import complete, open_client
from workers.errors import BrokerError, CallFailed
from workers.recipe import Recipe
from workers.records import Usage, canonical_json, sha256
from workers.reply import RULES, Completion, answer

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Attempts at one call, the first included; between them 0.5, 1, 2, 4 and 8 s and some jitter.
ATTEMPTS = 6

#: The longest wait that a Retry-After is followed for, in seconds.
LONGEST_WAIT_S = 60.0

#: A call whose answer cannot be stored goes on with it after this time, in seconds; storing is
#: tried until the process ends.
STORE_S = 30.0


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


class Calls:
    """The calls of one process to all endpoints of a recipe."""

    def __init__(
        self, recipe: Recipe, keys: Mapping[str, str | None], admission: Admission
    ) -> None:
        """`keys` holds each endpoint's key by endpoint name."""
        self._recipe, self._keys, self.admission = recipe, keys, admission
        self._clients: dict[str, httpx.AsyncClient] = {}
        #: Optional request fields that a model's endpoint was found not to take, by model's name.
        self.refused: dict[str, frozenset[str]] = {}
        self._running: set[Future[Any]] = set()
        self._ending: set[asyncio.Task[None]] = set()
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

    def drain(self) -> None:
        """Begin no call any more; those under way may end, the others are handed back."""
        self._loop.call_soon_threadsafe(self.admission.drain)

    def close(self) -> None:
        """Close connections and end the loop, once the answers that were read are stored."""
        self.cancel()

        async def _close() -> None:
            await asyncio.gather(*self._ending, return_exceptions=True)
            for client in self._clients.values():
                await client.aclose()
            await self.admission.close()

        try:
            asyncio.run_coroutine_threadsafe(_close(), self._loop).result(timeout=5)
        except (TimeoutError, CancelledError):
            log.warning("calls.unclean_close")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def ask(self, model: Model, request: Mapping[str, Any], *, key: str) -> Answered:
        """The answer to a request, paid for at most once while its prompt is in flight.

        `request` is the request's body but for what the recipe adds; `key` is the prompt it belongs
        to. Raises: CallEnded; HandedBack; BrokerError if nobody can be let in.
        """
        body = _body(model, request)
        asked = _Asked(model, body, key, address_of(model, request))
        try:
            async for attempt in stamina.retry_context(
                on=_wait_after, attempts=ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=20.0
            ):
                with attempt:
                    return await self._attempt(asked)
        except CallFailed as exc:
            raise CallEnded(exc, Usage(retries=max(0, asked.requests - 1))) from exc
        raise AssertionError("a retried call neither answered nor failed")

    async def _attempt(self, asked: "_Asked") -> Answered:
        """Ask once; more often only while the endpoint turns everyone away."""
        model, endpoint = asked.model, self._recipe.endpoints[asked.model.endpoint]
        while True:
            entered = await self.admission.enter(model, asked.key, asked.address)
            if not isinstance(entered, Leave):
                stored = await self._stored(asked, entered)
                if stored is not None:
                    return stored
                continue
            try:
                client = self._client(model.endpoint)
                completion = await complete(client, asked.body, timeout_s=endpoint.timeout)
            except CallFailed as exc:
                asked.requests += 1
                own = await self._turned_away(entered, asked, exc)
                if own and exc.reason in WAITS_S:
                    raise CallFailed(exc.reason, exc.detail) from exc
                if own:
                    raise
                continue
            except BaseException:
                self._end(entered, None)
                raise
            retries, asked.requests = asked.requests, asked.requests + 1
            stored_answer = {"completion": _plain(completion), "retries": retries, "rules": RULES}
            await self._store(entered, stored_answer)
            return Answered(completion, _usage(completion, retries))

    async def _stored(self, asked: "_Asked", stored: Answer) -> Answered | None:
        """A stored answer; None if it is one of an earlier version's that is asked for again now.

        Raises: CallFailed if it is no answer by today's rules, and asking again would not help.
        """
        completion = Completion(**stored["completion"])
        if stored.get("rules") != RULES:
            try:
                completion = answer(completion)
            except CallFailed as exc:
                if not exc.retriable:
                    raise
                await self.admission.drop_answer(asked.key, asked.address)
                return None
        return Answered(completion, _usage(completion, stored["retries"], cached=True))

    async def _turned_away(self, leave: Leave, asked: "_Asked", exc: CallFailed) -> bool:
        """Whether a call failed for a reason of its own, and not of its endpoint's."""
        if exc.reason not in WAITS_S:
            self._end(leave, None)
            return True
        wait_s = None if exc.retry_after_s is None else exc.retry_after_s + random.uniform(0.0, 1.0)
        return await self.admission.refused(leave, exc.reason, exc.detail, wait_s, asked.refusals)

    async def _store(self, leave: Leave, answer: Answer) -> None:
        """Keep an answer that was read, even if the work that asked for it is cancelled now."""
        ending = self._end(leave, answer)
        done, _ = await asyncio.wait([asyncio.shield(ending)], timeout=STORE_S)
        if not done:
            log.warning("calls.not_stored_yet", extra={"prompt": leave.prompt})

    def _end(self, leave: Leave, answer: Answer | None) -> "asyncio.Task[None]":
        """Give a leave back, however long that takes."""

        async def _settle() -> None:
            while True:
                try:
                    return await self.admission.settle(leave, answer)
                except BrokerError as exc:
                    if answer is None:
                        return None  # the lease ends by itself
                    log.warning("calls.not_stored", extra={"because": str(exc)})
                    await asyncio.sleep(1.0)

        ending = asyncio.ensure_future(_settle())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

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


@dataclass(slots=True)
class _Asked:
    """A call on its way, with what its attempts came to."""

    model: Model
    body: dict[str, Any]
    key: str
    address: str
    requests: int = 0
    refusals: Refusals = field(default_factory=Refusals)


def address_of(model: Model, request: Mapping[str, Any]) -> str:
    """SHA-256 of a request as it is sent, and of who asks: equal requests have one answer."""
    body = _body(model, request)
    return sha256(canonical_json([model.name, body]))


def _body(model: Model, request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as it is sent. A parameter that is null is one that is not to be sent."""
    body = {"model": model.model, **request, **model.parameters}
    return {name: value for name, value in body.items() if value is not None}


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
    return Usage(retries, int(cached), completion.input_tokens, completion.output_tokens)


def _plain(completion: Completion) -> dict[str, Any]:
    return {name: getattr(completion, name) for name in Completion.__slots__}
