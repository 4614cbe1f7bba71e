"""Who may make a call now, over all workers on all hosts; and what was answered already.

Every call asks at the door first. One script on the Redis server, by its clock, decides: an answer
that was paid for is handed out again; the same call under way elsewhere is waited for; an endpoint
that turned calls away stays shut until one call tries it; and a lease in its limits is the leave to
call. Leases end by themselves when their process dies. Scripts and reasons: `workers/lua`; names:
`workers.keys`. Long because each of these ends is one branch of the same conversation.
"""

import asyncio
import json
import logging
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from workers import keys
from workers.counter import Counter
from workers.errors import BrokerError, PrefmillError
from workers.recipe import Generator, Judge, Recipe
from workers.records import sha256

log = logging.getLogger(__name__)

Answer = dict[str, Any]
Model = Generator | Judge

#: A lease ends after this many seconds unless its process renews it.
LEASE_S = 15.0

#: Answers nobody came back for are dropped after this time, in seconds.
ANSWERS_S = 7 * 24 * 3600

#: How long a committed prompt tells late copies of its work that there is nothing to do.
DONE_S = 60

#: First and longest wait before an endpoint is tried again, in seconds, by why it was shut.
WAITS_S = {
    "rate_limited": (0.5, 60.0),
    "unauthorized": (5.0, 60.0),
    "payment_required": (5.0, 60.0),
    "not_found": (5.0, 60.0),
}

#: Refused this often while no other call was, it is the call and not the endpoint.
OWN_REFUSALS = 6

#: Refused again this often while later calls were let through in between, it is the call as well.
PASSED_OVER = {"rate_limited": 20, "unauthorized": 2, "payment_required": 2, "not_found": 2}

#: A call that alone is suspected asks again after this time, in seconds: others go first.
SUSPECT_S = (1.0, 2.0)

_DOOR_S = 7 * 24 * 3600


class HandedBack(PrefmillError):
    """Work was stopped before its end; what was answered until then is kept."""


class Settled(HandedBack):
    """A prompt has its outcome, or had it a moment ago."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The leave to make one call."""

    model: Model
    prompt: str
    address: str
    lease: str
    #: When it was given, by the server's clock.
    began: str


@dataclass(slots=True)
class Refusals:
    """How often one call was turned away for reasons that may be its endpoint's."""

    #: Since others were let through.
    count: int = 0
    passed_over: int = 0
    #: When it was refused last, by the server's clock.
    last: str = ""


class Admission(Protocol):
    """Lets calls in, and keeps what they brought."""

    async def enter(self, model: Model, prompt: str, address: str) -> Leave | Answer:
        """Wait for the leave to make a call, or for its answer."""

    async def settle(self, leave: Leave, answer: Answer | None) -> None:
        """Give the leave back, with the answer if there is one."""

    async def refused(
        self, leave: Leave, reason: str, detail: str, wait_s: float | None, seen: Refusals
    ) -> bool:
        """Give the leave back and shut the door; returns whether the call itself is to blame."""

    async def forget(self, prompts: Iterable[str]) -> None:
        """Drop the answers of committed prompts."""

    async def drop_answer(self, prompt: str, address: str) -> None:
        """Drop one answer, so that it is asked for again."""

    def drain(self) -> None:
        """Let nobody in any more."""

    async def close(self) -> None:
        """Stop renewing leases."""


class Unlimited:
    """Lets everyone in and remembers nothing: for a single prompt tried by hand."""

    async def enter(self, model: Model, prompt: str, address: str) -> Leave | Answer:
        """Leave, at once."""
        return Leave(model, prompt, address, "", "0")

    async def settle(self, leave: Leave, answer: Answer | None) -> None:
        """Do nothing."""

    async def refused(
        self, leave: Leave, reason: str, detail: str, wait_s: float | None, seen: Refusals
    ) -> bool:
        """There is no fleet to wait with, but a limit on the rate passes."""
        seen.count += 1
        if reason != "rate_limited" or seen.count >= OWN_REFUSALS:
            return True
        await asyncio.sleep(min(1.0 if wait_s is None else wait_s, WAITS_S[reason][1]))
        return False

    async def forget(self, prompts: Iterable[str]) -> None:
        """Do nothing."""

    async def drop_answer(self, prompt: str, address: str) -> None:
        """Do nothing."""

    def drain(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


@dataclass
class FleetAdmission:
    """The door of one run's fleet, in the broker's Redis or Valkey."""

    url: str = field(repr=False)
    recipe: Recipe
    process: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    #: Each endpoint's key, by the endpoint's name; never leaves this process but as a digest.
    api_keys: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # Half a minute of reconnecting: a broker's restart is no reason to hand work back.
        self._redis = Redis.from_url(
            self.url.replace("redis+socket://", "unix://", 1),
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=5), retries=12),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            socket_timeout=10,
            socket_connect_timeout=5,
            decode_responses=True,
        )
        self._counter = Counter(self._redis)
        self._held: dict[str, Model] = {}
        self._lines = {model.name: _Line(self.recipe.cap(model)) for model in self.recipe.models}
        self._draining = False
        self._renewing: asyncio.Task[None] | None = None

    # -- one call ------------------------------------------------------------------------------

    async def enter(self, model: Model, prompt: str, address: str) -> Leave | Answer:
        """Wait for the leave to make a call, or for its answer.

        Raises: HandedBack while the process drains or if the prompt is committed; BrokerError.
        """
        line = self._lines[model.name]
        while True:
            await line.slot()
            found = None
            try:
                found = await self._let_in(line, model, prompt, address)
            finally:
                if not isinstance(found, Leave):
                    line.free()
            if found is not None:
                return found
            # The same call is under way elsewhere; nobody waits behind it.
            await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _let_in(
        self, line: "_Line", model: Model, prompt: str, address: str
    ) -> Leave | Answer | None:
        """Ask until there is an answer other than to wait; None: the same call is under way."""
        if not line.turn.locked():
            found = await self._ask(model, prompt, address)
            if not isinstance(found, float):
                return found
        async with line.turn:  # one for all of this process that wait
            while True:
                line.freed.clear()
                found = await self._ask(model, prompt, address)
                if not isinstance(found, float):
                    return found
                await _first_of(line.freed, found)

    async def _ask(self, model: Model, prompt: str, address: str) -> Leave | Answer | float | None:
        """Ask once; a number is the seconds after which to ask again."""
        if self._draining:
            raise HandedBack("the worker shuts down")
        leave = Leave(model, prompt, address, f"{self.process}:{uuid.uuid4().hex[:12]}", "")
        what, *more = await self._admit(leave)
        match what:
            case "go":
                return replace(leave, began=more[0])
            case "answered":
                answer: Answer = json.loads(more[0])
                return answer
            case "done":
                raise Settled("the prompt has its outcome")
            case "busy":
                return None
            case "full":
                return random.uniform(0.03, 0.08)
            case "closed":
                return min(float(more[0]), 1.0) + random.uniform(0.0, 0.05)
        return 1.0  # the run is paused

    async def _admit(self, leave: Leave) -> list[str]:
        model, endpoint = leave.model, self.recipe.endpoints[leave.model.endpoint]
        # Cancelled half way it may hold a lease, which then ends by itself.
        with _translated("no leave to call"):
            reply: list[str] = await self._counter.ask(
                "admit",
                keys=[
                    keys.answers(self.recipe.name, leave.prompt),
                    keys.paused(self.recipe.name),
                    *self._doors(model),
                    *self._leases(model),
                    keys.waiting(endpoint, self.recipe.name, model),
                ],
                args=[
                    leave.address,
                    leave.lease,
                    self.process,
                    LEASE_S,
                    endpoint.max_concurrency,
                    self.recipe.cap(model),
                    ANSWERS_S,
                ],
            )
        if reply[0] == "go":
            self._held[leave.lease] = model
            if self._renewing is None:
                self._renewing = asyncio.ensure_future(self._renew())
        return reply

    async def settle(self, leave: Leave, answer: Answer | None) -> None:
        """Give the leave back, with the answer if there is one. Raises: BrokerError."""
        self._give_back(leave)
        with _translated("cannot keep an answer"):
            opened = await self._counter.ask(
                "settle",
                keys=[
                    keys.answers(self.recipe.name, leave.prompt),
                    *self._doors(leave.model),
                    *self._leases(leave.model),
                ],
                args=[
                    leave.address,
                    leave.lease,
                    json.dumps(answer) if answer is not None else "",
                    leave.began,
                    ANSWERS_S,
                    _DOOR_S,
                    self._key(leave.model),
                ],
            )
        if opened:
            log.warning("endpoint.resumed", extra={"endpoint": leave.model.endpoint})

    async def refused(
        self, leave: Leave, reason: str, detail: str, wait_s: float | None, seen: Refusals
    ) -> bool:
        """Give the leave back and shut the door; returns whether the call itself is to blame.

        An endpoint that let later calls through each time this one had been refused, or that
        refused nobody else in `OWN_REFUSALS` attempts, has nothing against the fleet; the two add
        up. A call that is suspected of that waits here and keeps the door open, and what becomes
        of it counts against nobody else. Raises: BrokerError.
        """
        self._give_back(leave)
        first, longest = WAITS_S[reason]
        endpoint_door, model_door = self._doors(leave.model)
        with _translated("cannot shut an endpoint"):
            became, passed, own, seen.last = await self._counter.ask(
                "refuse",
                keys=[
                    keys.answers(self.recipe.name, leave.prompt),
                    model_door if reason == "not_found" else endpoint_door,
                    *self._leases(leave.model),
                ],
                args=[
                    leave.address,
                    leave.lease,
                    leave.began,
                    reason,
                    detail,
                    "" if wait_s is None else wait_s,
                    first,
                    longest,
                    _DOOR_S,
                    seen.last,
                    self._key(leave.model),
                    seen.count,
                    seen.passed_over,
                    PASSED_OVER[reason],
                    OWN_REFUSALS,
                ],
            )
        if became == "shut":
            extra = {"endpoint": leave.model.endpoint, "because": detail, "reason": reason}
            if reason == "not_found":
                extra["model"] = leave.model.model
            log.warning("endpoint.paused", extra=extra)
        seen.count = 1 if passed else seen.count + 1
        seen.passed_over += passed
        if became == "open" and not own:
            await asyncio.sleep(random.uniform(*SUSPECT_S))
        return bool(own)

    async def forget(self, prompts: Iterable[str]) -> None:
        """Drop the answers of committed prompts. Raises: BrokerError."""
        with _translated("cannot drop answers"):
            async with self._redis.pipeline(transaction=False) as pipe:
                for prompt in prompts:
                    name = keys.answers(self.recipe.name, prompt)
                    pipe.unlink(name)
                    pipe.hset(name, "done", "1")
                    pipe.expire(name, DONE_S)
                await pipe.execute()

    async def drop_answer(self, prompt: str, address: str) -> None:
        """Drop one answer, so that it is asked for again. Raises: BrokerError."""
        with _translated("cannot drop an answer"):
            await self._redis.hdel(keys.answers(self.recipe.name, prompt), address)

    def drain(self) -> None:
        """Let nobody in any more: calls under way may end, the others are handed back."""
        self._draining = True
        for line in self._lines.values():
            line.dissolve()

    async def close(self) -> None:
        """Stop renewing leases and close connections."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self._redis.aclose()

    # -- leases --------------------------------------------------------------------------------

    def _doors(self, model: Model) -> list[str]:
        endpoint = self.recipe.endpoints[model.endpoint]
        return [keys.door(endpoint), keys.door(endpoint, model.model)]

    def _key(self, model: Model) -> str:
        """Tells calls with an old key from those with its successor."""
        return sha256(self.api_keys.get(model.endpoint) or "")[:8]

    def _leases(self, model: Model) -> list[str]:
        endpoint = self.recipe.endpoints[model.endpoint]
        return [keys.leases(endpoint), keys.leases(endpoint, self.recipe.name, model)]

    def _give_back(self, leave: Leave) -> None:
        # Whoever is woken asks after this leave was given back: questions keep their order.
        if self._held.pop(leave.lease, None) is not None:
            self._lines[leave.model.name].free()

    async def _renew(self) -> None:
        """Keep the leases of calls under way until the process ends.

        A lease that ended while the server was away is taken again: its call is still under way.
        """
        while True:
            await asyncio.sleep(LEASE_S / 3)
            held = dict(self._held)
            if not held:
                continue
            try:
                seconds, micros = await self._redis.time()
                ends = seconds + micros / 1e6 + LEASE_S
                async with self._redis.pipeline(transaction=False) as pipe:
                    for lease, model in held.items():
                        for name in self._leases(model):
                            pipe.zadd(name, {lease: ends})
                            pipe.expire(name, 3600)
                    await pipe.execute()
                async with self._redis.pipeline(transaction=False) as pipe:
                    for lease in held.keys() - self._held.keys():  # given back meanwhile
                        for name in self._leases(held[lease]):
                            pipe.zrem(name, lease)
                    await pipe.execute()
            except (RedisError, OSError) as exc:
                log.warning("admission.not_renewed", extra={"because": str(exc)})


class _Line:
    """Those of one process that want to call one model, in order."""

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._waiting = 0
        #: Held by the one who asks again and again on behalf of all.
        self.turn = asyncio.Lock()
        self.freed = asyncio.Event()

    async def slot(self) -> None:
        """Wait until this process has fewer calls under way than all processes may have."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    def free(self) -> None:
        """Give a slot back."""
        self._slots.release()
        self.freed.set()

    def dissolve(self) -> None:
        """Wake everyone: nobody gets in any more."""
        for _ in range(self._waiting):
            self._slots.release()
        self.freed.set()


async def _first_of(event: asyncio.Event, wait_s: float) -> None:
    """Wait for the event, at most that long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise BrokerError(f"{what}: {exc}") from exc
