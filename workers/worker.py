"""What the tasks of one worker process share: recipe, ledger, calls, broker; opened once.

Opened before the first message is taken, so that a worker that cannot work says so in one line.
"""

import logging
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from workers.admission import FleetAdmission
from workers.broker import Broker
from workers.calls import Calls
from workers.doors import Doors
from workers.errors import LedgerError, RecipeError
from workers.ledger import Ledger
from workers.liveness import Liveness
from workers.masking import hide
from workers.recipe import LOCAL_MODEL_URL, Recipe
from workers.recipe_file import load
from workers.settings import Settings, api_keys, read_settings, secrets

if TYPE_CHECKING:
    from workers.delivery import Ticking

log = logging.getLogger(__name__)

#: How long a worker that was told to stop lets calls go on, in seconds; `--grace` changes it.
GRACE_S = 30.0


@dataclass
class Worker:
    """One worker process."""

    recipe: Recipe
    #: Of the endpoints that its own queues' work calls, and of no other.
    keys: dict[str, str | None] = field(repr=False)
    settings: Settings
    #: Tells this process from every other and from its own predecessors.
    process: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    #: Set when this process was told to stop.
    stopping: threading.Event = field(default_factory=threading.Event)
    _delivering: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger. Raises: LedgerError."""
        return Ledger(self.settings.require_database())

    @cached_property
    def broker(self) -> Broker:
        """A look at this run's messages."""
        return Broker(self.settings.require_broker(), self.recipe.name, self.recipe.queues)

    @cached_property
    def doors(self) -> Doors:
        """The doors of the run's endpoints, from outside."""
        return Doors(self.settings.require_broker(), self.recipe)

    @cached_property
    def calls(self) -> Calls:
        """The calls of this process, let in by the fleet's admission."""
        url = self.settings.require_broker()
        admission = FleetAdmission(url, self.recipe, self.process, self.keys)
        return Calls(self.recipe, self.keys, admission)

    @cached_property
    def liveness(self) -> Liveness:
        """The signs of life of this process."""
        url, timeout_s = self.settings.require_broker(), self.settings.visibility_timeout
        return Liveness(url, self.recipe.name, self.process, timeout_s)

    @cached_property
    def _deliveries(self) -> dict[str, "Ticking"]:
        # Argilla's and the Hub's clients take seconds to import: only who delivers pays for them.
        from workers.delivery import Delivery, Ticking

        return {
            name: Ticking(Delivery(self.ledger, self.recipe, name, self.stopping))
            for name in self.recipe.destinations
        }

    def deliver(self, destination: str) -> None:
        """Carry to a destination what waits for it, if it is time. Raises: LedgerError."""
        with self._delivering:
            found = self._deliveries.get(destination)
        if found is not None:
            found.tick(self.settings.deliver_every)

    def open(self) -> None:
        """Open everything now, on one thread; a ledger that is away is opened when it is back."""
        with suppress(LedgerError):
            _ = self.ledger
        _ = self.broker, self.doors, self.calls, self.liveness

    def drain(self) -> None:
        """Begin no call and no delivery any more."""
        self.stopping.set()
        if "calls" in vars(self):
            self.calls.drain()

    def stop_calls(self) -> None:
        """Cancel what runs: its batches go back to their queues."""
        if "calls" in vars(self):
            log.warning("worker.grace_over", extra={"tasks": self.calls.cancel()})

    def close(self) -> None:
        """Close what was opened, storing answers that were just read."""
        if "calls" in vars(self):
            self.calls.close()
        if "liveness" in vars(self):
            self.liveness.close()
        if "ledger" in vars(self):
            self.ledger.close()


_current: Worker | None = None
_lock = threading.Lock()


def open_worker(settings: Settings, queues: Iterable[str]) -> Worker:
    """A worker for the recipe in the settings, on these queues (short names; beat: none).

    Raises: ConfigurationError, also if the key of an endpoint that they call is not set.
    """
    recipe = load(settings.recipe)
    hide(secrets(recipe))
    for name, endpoint in recipe.endpoints.items():
        if endpoint.base_url == LOCAL_MODEL_URL:
            raise RecipeError(
                f"endpoints.{name}.base_url: {LOCAL_MODEL_URL!r} is served by `prefmill run` and "
                "`prefmill try` alone; accepted here: the URL of an OpenAI-compatible server"
            )
    settings.require_broker()
    settings.require_database()
    return Worker(recipe, api_keys(recipe, queues), settings)


def current(queues: Iterable[str] = ()) -> Worker:
    """The worker of this process, opened for these queues at the first call.

    Raises: ConfigurationError.
    """
    global _current
    with _lock:
        if _current is None:
            _current = open_worker(read_settings(), queues)
        return _current
