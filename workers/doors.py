"""What a person sees of the doors, and may do to them: which endpoints are shut, and why.

Doors shut and open by themselves (`workers.admission`); this looks at them from outside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.errors import BrokerError
from workers.recipe import Endpoint, Recipe


@dataclass(frozen=True, slots=True)
class Shut:
    """An endpoint, or one model there, that turned calls away. Times in epoch seconds."""

    endpoint: str
    model: str | None
    reason: str
    detail: str
    since: float
    tried_again_at: float

    def __str__(self) -> str:
        what = f"{self.endpoint}, model {self.model}" if self.model else self.endpoint
        return f"endpoint {what} is paused: {self.detail or self.reason}"


@dataclass(frozen=True, slots=True)
class Room:
    """Calls in flight and how many there may be: at an endpoint, whichever run makes them, or of
    one generator or judge by its name in the recipe."""

    endpoint: str
    model: str | None
    calls: int
    limit: int


class Doors:
    """The doors that a recipe's calls go through."""

    def __init__(self, url: str, recipe: Recipe) -> None:
        """Connect lazily; `url` is in the broker's form."""
        self._recipe = recipe
        self._redis = Redis.from_url(
            url.replace("redis+socket://", "unix://", 1),
            socket_timeout=10,
            socket_connect_timeout=5,
            decode_responses=True,
        )

    def shut(self) -> list[Shut]:
        """The endpoints and models that let no call in now. Raises: BrokerError."""
        names = list(self._names())
        with _translated(), self._redis.pipeline(transaction=False) as pipe:
            for key, _, _ in names:
                pipe.hgetall(key)
            found = pipe.execute()
        return [
            Shut(
                endpoint,
                model,
                door["reason"],
                door["detail"],
                float(door["since"]),
                float(door["until"]),
            )
            for (_, endpoint, model), door in zip(names, found, strict=True)
            if "strikes" in door
        ]

    def rooms(self) -> list[Room]:
        """Calls in flight against their limits, of endpoints and then of models.

        Raises: BrokerError.
        """
        limits = list(self._limits())
        with _translated():
            seconds, micros = self._redis.time()
            with self._redis.pipeline(transaction=False) as pipe:
                for key, _, _, _ in limits:
                    # A dead process' leases stay until someone asks for one; they count no more.
                    pipe.zcount(key, f"({seconds}.{micros:06}", "+inf")
                found = pipe.execute()
        return [
            Room(endpoint, model, calls, limit)
            for (_, endpoint, model, limit), calls in zip(limits, found, strict=True)
        ]

    def open(self) -> None:
        """Try everything again now. Raises: BrokerError."""
        with _translated():
            self._redis.unlink(*(key for key, _, _ in self._names()))

    def pause(self, paused: bool) -> None:
        """Let no call of the run in, or let them in again. Raises: BrokerError."""
        key = keys.paused(self._recipe.name)
        with _translated():
            if paused:
                self._redis.set(key, "1")
            else:
                self._redis.delete(key)

    def free(self) -> None:
        """End all leases: for a broker whose workers are all gone. Raises: BrokerError."""
        with _translated():
            for name in self._redis.scan_iter("prefmill:leases:*", count=1000):
                self._redis.unlink(name)

    def _names(self) -> Iterator[tuple[str, str, str | None]]:
        """Key of each door, the endpoint's name, and the model if it is one model's."""
        used: dict[str, Endpoint] = {}
        for model in self._recipe.models:
            endpoint = self._recipe.endpoints[model.endpoint]
            if model.endpoint not in used:
                used[model.endpoint] = endpoint
                yield keys.door(endpoint), model.endpoint, None
        for name, asked in sorted({(model.endpoint, model.model) for model in self._recipe.models}):
            yield keys.door(used[name], asked), name, asked

    def _limits(self) -> Iterator[tuple[str, str, str | None, int]]:
        """Key of each set of leases, the endpoint's name, the model's if any, and its limit."""
        endpoints = self._recipe.endpoints
        for name in dict.fromkeys(model.endpoint for model in self._recipe.models):
            yield keys.leases(endpoints[name]), name, None, endpoints[name].max_concurrency
        for model in self._recipe.models:
            key = keys.leases(endpoints[model.endpoint], self._recipe.name, model)
            yield key, model.endpoint, model.name, self._recipe.cap(model)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise BrokerError(f"broker: {exc}") from exc
