"""Deliveries that a person waits for: each destination on a thread of its own, with progress.

A destination that is away is tried again and again, and holds up no other one.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from workers.delivery import Delivery
from workers.errors import ConfigurationError, DestinationAway, PrefmillError
from workers.ledger import Ledger
from workers.recipe import Recipe

#: How long a destination that is away is waited for, in seconds.
PATIENCE_S = 300.0

#: Between two lines of progress, in seconds.
LINE_EVERY_S = 2.0

Say = Callable[[str], None]


@contextmanager
def preparing(ledger: Ledger, recipe: Recipe, say: Say) -> Iterator[None]:
    """Beside the block, make every destination ready, before anything is paid for.

    Raises at its end: ConfigurationError if one of them refuses. One that is away is said.
    """
    stopping = threading.Event()
    names = list(recipe.destinations)
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        work = {
            name: pool.submit(Delivery(ledger, recipe, name, stopping).prepare) for name in names
        }
        yield
        for name, looked in work.items():
            try:
                looked.result()
            except DestinationAway as exc:
                say(f"{name}: {exc}. Nothing is lost; it is tried again later")


@dataclass
class _Teller:
    """Says how far a delivery is, not too often."""

    name: str
    say: Say
    _said: float = field(default_factory=time.monotonic)

    def __call__(self, text: str) -> None:
        trouble = not text.endswith(" left")
        if trouble or time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self.say(f"{self.name}: {text}")


def deliver(
    ledger: Ledger,
    recipe: Recipe,
    destinations: Collection[str],
    say: Say,
    *,
    compact: bool = False,
    patience_s: float = PATIENCE_S,
) -> None:
    """Deliver all that waits for these destinations.

    Raises: ConfigurationError if one of them refuses, PrefmillError if one stayed away; the
    others are done by then, and what was not delivered still waits.
    """
    for name in destinations:
        # A person asks: what was refused is looked at again.
        ledger.outbox(recipe.name, recipe.destinations[name]).retry_refused()
    stopping = threading.Event()
    with ThreadPoolExecutor(max_workers=max(1, len(destinations))) as pool:
        work = {
            pool.submit(
                _deliver,
                Delivery(ledger, recipe, name, stopping),
                _Teller(name, say),
                compact=compact,
                patience_s=patience_s,
            ): name
            for name in destinations
        }
        try:
            wait(work)
        except BaseException:
            stopping.set()
            raise
        problems = [error for done in work if (error := done.exception()) is not None]
    for problem in problems:
        if not isinstance(problem, PrefmillError):
            raise problem
    if problems:
        # Trying again helps unless all of them refuse.
        final = all(isinstance(problem, ConfigurationError) for problem in problems)
        raise (ConfigurationError if final else PrefmillError)("; ".join(map(str, problems)))


def _deliver(delivery: Delivery, tell: _Teller, *, compact: bool, patience_s: float) -> None:
    told = False
    while not delivery.run(patience_s=patience_s, tell=tell, compact=compact):
        if not told:
            tell("another process is at it; waiting for it")
        told = True
        if delivery.stopping.wait(1.0):
            raise DestinationAway(f"{delivery.destination}: stopped")


def summary(ledger: Ledger, recipe: Recipe, destinations: Collection[str]) -> list[str]:
    """How much is where, and why something was refused; one line each."""
    counts = ledger.counts(recipe.name, recipe.destinations).deliveries
    lines = []
    for name in destinations:
        of = counts[name]
        unit = "rows" if name == "hub" else "records"
        lines.append(f"{name}: {of.delivered} {unit} delivered, {of.waiting} pending")
        if of.refused:
            lines[-1] += f", {of.refused} refused"
            refusals = ledger.outbox(recipe.name, recipe.destinations[name]).refusals()
            lines += [f"  prompt {key[:12]}: {why}" for key, why in refusals]
    return lines
