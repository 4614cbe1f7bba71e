"""Delivery: what waits in the outbox is carried to Argilla and to the Hub, once.

One at a time for each destination; one that is away or refuses delays nothing else and loses
nothing: the outbox keeps. Whatever is sent twice (an answer that was lost, a process that was
killed) is recognised: records are upserts by prompt, and a shard that is there already is there.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workers.entries import Backlog
from workers.errors import ConfigurationError, DestinationAway, DestinationRefused
from workers.ledger import Ledger
from workers.outbox import Outbox
from workers.recipe import Recipe
from workers.to_argilla import ToArgilla
from workers.to_hub import ToHub

log = logging.getLogger(__name__)

#: So much that waits is delivered at once, without waiting for `PREFMILL_DELIVER_EVERY` to pass.
ENOUGH = {"argilla": 200, "hub": 2_000}

#: Pauses between two attempts double from the first to the last of these, in seconds.
PAUSES_S = (0.5, 30.0)

Tell = Callable[[str], None]


def due(destination: str, backlog: Backlog, every_s: float) -> bool:
    """Whether a destination's backlog is large or old enough to be delivered."""
    if not backlog.waiting or backlog.oldest is None:
        return False
    return backlog.waiting >= ENOUGH[destination] or time.time() - backlog.oldest >= every_s


#: How long a worker's delivery tries a destination that is away, in seconds; the next tick is near.
PATIENCE_S = 15.0

#: How long one tick delivers at most, in seconds; a backlog goes on with the next one.
BUDGET_S = 300.0

#: How often a process looks for what never entered the outbox, in seconds.
FILL_S = 1800.0

#: How long a worker leaves a destination alone that refused, in seconds: a person has to act.
REFUSED_S = 60.0


@dataclass
class Delivery:
    """The way to one of a run's destinations. It is opened once and used again and again."""

    ledger: Ledger
    recipe: Recipe
    destination: str
    stopping: threading.Event
    _filled_at: float | None = None

    @cached_property
    def outbox(self) -> Outbox:
        """What waits for this destination."""
        name = self.recipe.destinations[self.destination]
        return self.ledger.outbox(self.recipe.name, name)

    @cached_property
    def _way(self) -> ToArgilla | ToHub:
        if self.destination == "argilla":
            return ToArgilla(self.ledger, self.recipe, self.outbox)
        return ToHub(self.ledger, self.recipe)

    def _fill(self) -> None:
        """Now and then: what was made without this destination in the recipe waits as well."""
        if self._filled_at is None or time.monotonic() - self._filled_at > FILL_S:
            self.outbox.fill()
            self._filled_at = time.monotonic()

    def check_recipe(self) -> None:
        """Raises: DestinationRefused if the run goes by another recipe than this one."""
        known = self.ledger.recipe_hash(self.recipe.name)
        if known not in (None, self.recipe.hash):
            raise DestinationRefused(
                f"run {self.recipe.name!r} goes by another recipe than this process; accepted: the "
                "same one for all"
            )

    def due(self, every_s: float) -> bool:
        """Whether so much waits, or for so long, that it should be delivered now."""
        self._fill()
        return due(self.destination, self.outbox.backlog(), every_s)

    def prepare(self) -> None:
        """Look whether everything can be delivered, and make the place if it is not there.

        Raises: DestinationAway, DestinationRefused, LedgerError.
        """
        self._way.prepare()

    def run(
        self,
        *,
        patience_s: float,
        budget_s: float = float("inf"),
        tell: Tell = lambda _: None,
        compact: bool = False,
    ) -> bool:
        """Deliver what waits, for `budget_s` seconds or so, trying again while nobody is there.

        Returns False at once if another process is at it. With `compact` few shards replace
        changed and small ones first.

        Raises: DestinationAway after `patience_s` seconds without success, DestinationRefused,
        LedgerError.
        """
        with self.ledger.alone(f"{self.recipe.name} {self.outbox.name}") as mine:
            if not mine:
                return False
            try:
                self._fill()
                self._patiently(compact, patience_s, budget_s, tell)
            except (DestinationAway, DestinationRefused) as exc:
                self.outbox.note_trouble(str(exc))
                raise
            self.outbox.note_trouble(None)
        return True

    def _patiently(self, compact: bool, patience_s: float, budget_s: float, tell: Tell) -> None:
        """The one place where deliveries are tried again; a stop is heard while it waits."""
        failures, since = 0, time.monotonic()
        until = since + budget_s

        def go_on() -> bool:
            return not self.stopping.is_set() and time.monotonic() < until

        left = self.outbox.pending()
        while True:
            try:
                return self._way.deliver(go_on, tell, compact=compact)
            except DestinationAway as exc:
                waiting = self.outbox.pending()
                if waiting < left:  # it took something: it is there
                    failures, since, left = 0, time.monotonic(), waiting
                pause_s = exc.retry_after_s or _pause_s(failures)
                if time.monotonic() + pause_s - since > patience_s or self.stopping.is_set():
                    raise
                failures += 1
                tell(f"{exc}; tried again in {pause_s:.0f} s")
                if self.stopping.wait(pause_s):
                    raise


def _pause_s(failures: int) -> float:
    first, last = PAUSES_S
    return float(min(last, first * 2**failures) * random.uniform(0.5, 1.0))


class Ticking:
    """A worker's delivery: done when a tick finds it due, silent about what it said already."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._not_before = 0.0
        self._told: str | None = None

    def tick(self, every_s: float) -> None:
        """Deliver if it is time. Raises: LedgerError."""
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + REFUSED_S  # should it break
        if self._delivery.due(every_s):
            self._deliver()
        else:
            self._not_before = 0.0

    def _deliver(self) -> None:
        extra: dict[str, Any] = {"destination": self._delivery.destination}
        try:
            self._delivery.check_recipe()
            done = self._delivery.run(patience_s=PATIENCE_S, budget_s=BUDGET_S)
            self._not_before = 0.0
            if done and self._told:
                log.info("deliver.goes_on", extra=extra)
                self._told = None
        except (DestinationAway, ConfigurationError) as exc:
            after_s = exc.retry_after_s if isinstance(exc, DestinationAway) else REFUSED_S
            self._not_before = time.monotonic() + (after_s or 0)
            if self._told != type(exc).__name__:
                self._told = type(exc).__name__
                log.warning("deliver.stands_still", extra={**extra, "because": str(exc)})
