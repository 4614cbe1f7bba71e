"""`prefmill run`: the whole mill on one machine, until the source is done.

Brings a Valkey and a model server of its own where the recipe and the environment name none,
starts one worker process a queue, feeds the source, and ends what it started, however it ends. What
was left by an earlier run, killed or not, is picked up: its queues are dropped, its cached answers
kept, and everything in flight is published at once.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from producer import owner
from producer.children import Child, spawn, stop
from producer.delivering import deliver, preparing
from producer.feed import Feed, left_out_line
from producer.guards import deaf, locked, signals
from producer.model_server import start_model_server
from producer.progress import Display, stages
from producer.prompts import BadRow
from producer.rebuild import warnings
from producer.sources import row_count
from producer.valkey import start_valkey
from producer.watching import Feeding, Watch
from workers.app import make_app
from workers.broker import Broker
from workers.database import shown
from workers.doors import Doors
from workers.errors import BrokerError, ConfigurationError, Interrupted, PrefmillError
from workers.flow import publish
from workers.ledger import Counts, Ledger
from workers.recipe import LOCAL_MODEL_URL, Recipe
from workers.settings import Settings, api_keys, check_destinations

log = logging.getLogger(__name__)

#: What a worker may still take to end its calls once it is told to stop, in seconds.
GRACE_S = 3

#: How often a run looks at itself, in seconds.
POLL_S = 0.5

#: How often workers are started again while no prompt ends, before the run gives up.
RESTARTS = 8

#: Seconds until messages of a worker that died come back, where the broker is the run's own.
VISIBILITY_TIMEOUT_S = 6.0

#: Bad rows that are shown one by one.
SHOWN_SKIPS = 10


@dataclass
class LocalRun:
    """One run in one folder."""

    recipe: Recipe
    settings: Settings
    out: Path
    limit: int | None = None
    accept_changes: bool = False
    log_format: str = "text"
    say: Callable[[str], None] = print
    _services: list[Child] = field(default_factory=list)
    _workers: list[Child] = field(default_factory=list)
    _start_again: dict[str, Callable[[], Child]] = field(default_factory=dict)
    _skips: int = 0

    @property
    def database_url(self) -> str:
        """The ledger of this run: the environment's, else the one in the folder."""
        if "database_url" in self.settings.model_fields_set:
            return self.settings.require_database()
        return f"sqlite:///{self.out.resolve() / owner.LEDGER}"

    @property
    def shown_database(self) -> str:
        """The ledger's URL without its password."""
        return shown(self.database_url)

    def run(self, display: Callable[[int | None], Display]) -> Counts:
        """Run to the source's end; returns the final counts.

        Raises: Interrupted, ConfigurationError before anything was started, PrefmillError.
        """
        api_keys(self.recipe)
        check_destinations(self.recipe)
        dataset = self.out / owner.DATASET
        owner.check(dataset, self.recipe.name)  # a folder that is not ours is not even locked
        with locked(self.out), signals():
            try:
                ledger = self._open_ledger(dataset)
                for warning in warnings(ledger, self.recipe):
                    self.say(f"warning: {warning}")
                if ledger.paused(self.recipe.name):
                    raise ConfigurationError(
                        f"run {self.recipe.name!r} is paused; accepted: `prefmill resume` first, "
                        f"with --database {self.shown_database}"
                    )
                with preparing(ledger, self.recipe, self.say):
                    broker_url, recipe = self._start_services()
                return self._grind(ledger, broker_url, recipe, display)
            finally:
                with deaf():
                    stop(self._workers, grace_s=GRACE_S + 5)
                    stop(self._services, grace_s=5)

    def _open_ledger(self, dataset: Path) -> Ledger:
        """The ledger, with the run in it and the dataset folder claimed for it."""
        run = self.recipe.name
        owner.restore(dataset)
        ledger = Ledger(self.database_url)
        owner.check(dataset, run, ledger.identity(run))
        ledger.open_run(
            run, self.recipe.hash, self.recipe.fingerprint(), accept_changes=self.accept_changes
        )
        owner.claim(dataset, run, ledger.identity(run))
        return ledger

    def deliver(self, ledger: Ledger) -> PrefmillError | None:
        """Deliver what the run's workers left; returns why that did not work, if it did not.

        Raises: Interrupted.
        """
        if not self.recipe.destinations:
            return None
        try:
            with locked(self.out), signals():
                deliver(ledger, self.recipe, self.recipe.destinations, self.say)
        except Interrupted:
            raise
        except PrefmillError as exc:
            return exc
        return None

    # -- services ------------------------------------------------------------------------------

    def _start_services(self) -> tuple[str, Recipe]:
        """The broker's URL, and the recipe with the local model server's URL filled in."""
        if self.settings.broker_url is None:
            valkey = start_valkey(self.out / "valkey")
            self._services.append(valkey.child)
            broker_url = valkey.url
        else:
            broker_url = self.settings.require_broker()
        recipe = self.recipe
        if any(e.base_url == LOCAL_MODEL_URL for e in recipe.endpoints.values()):
            self.say("starting the local model server …")
            model = start_model_server(self.out, self.out / "model-server.log")
            self._services.append(model.child)
            recipe = with_local_model(recipe, model.base_url)
        write_recipe(recipe, self.out / "recipe.yaml")
        return broker_url, recipe

    def _start_workers(self, broker_url: str) -> None:
        # Tasks import for a second or two; bytecode makes it shorter the next time.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {
            "PREFMILL_BROKER_URL": broker_url,
            "PREFMILL_DATABASE_URL": self.database_url,
            "PREFMILL_VISIBILITY_TIMEOUT": str(self._visibility_timeout_s),
        }
        prefmill = [sys.executable, "-P", "-m", "producer.cli"]
        options = ["--recipe", str(self.out / "recipe.yaml"), "--log-format", self.log_format]
        logs = self.out / "logs"
        logs.mkdir(exist_ok=True)
        commands = {
            queue: ["worker", queue, *options, "--grace", str(GRACE_S)]
            for queue in self.recipe.queues
            if queue != "deliver" or self.recipe.destinations
        }
        for name, command in {**commands, "beat": ["beat", *options]}.items():

            def start(name: str = name, command: list[str] = command) -> Child:
                return spawn([*prefmill, *command], name=name, log=logs / f"{name}.log", env=env)

            self._start_again[name] = start
            self._workers.append(start())

    @property
    def _visibility_timeout_s(self) -> float:
        """The broker's, if it is shared with others; else one that suits a machine of its own."""
        shared = self.settings.broker_url is not None
        return self.settings.visibility_timeout if shared else VISIBILITY_TIMEOUT_S

    # -- the run -------------------------------------------------------------------------------

    def _grind(
        self,
        ledger: Ledger,
        broker_url: str,
        recipe: Recipe,
        display: Callable[[int | None], Display],
    ) -> Counts:
        app = make_app(broker_url, self._visibility_timeout_s)
        doors = Doors(broker_url, recipe)
        broker = Broker(broker_url, recipe.name, recipe.queues)
        broker.drop()
        broker.drop_joins(name for names in broker.joins().values() for name in names)
        if self.settings.broker_url is None:
            doors.free()
        doors.open()
        in_flight = ledger.overdue(recipe.name, float("inf"))
        broker.revive(key for keys in in_flight.values() for key in keys)
        self._start_workers(broker_url)
        batches = ledger.rebatch(recipe.name, recipe.fleet.batch_size, lost=False)
        publish(app, ledger, recipe, batches)
        feed = Feed(app, ledger, recipe, limit=self.limit, on_skip=self._show_skip)
        feed.on_left_out = lambda *told: self.say(left_out_line(*told))
        feeding = Feeding(feed)
        feeding.start()
        watch = Watch(doors, self.say)
        restarts, finished = 0, 0
        try:
            with display(self._total()) as shown:
                while True:
                    done = not feeding.is_alive()
                    counts = ledger.counts(recipe.name)
                    with suppress(BrokerError):  # workers wait for a broker that is away
                        shown.show(
                            stages(recipe, counts, broker.depths()),
                            total=counts.accepted if done else None,
                        )
                    if done and feeding.error is not None:
                        raise feeding.error
                    if done and counts.in_flight == 0:
                        return counts
                    if counts.finished > finished:
                        restarts, finished = 0, counts.finished
                    restarts += self._restart_the_dead(restarts)
                    with suppress(BrokerError):
                        watch.look()
                    time.sleep(POLL_S)
        finally:
            feed.stopping.set()
            feeding.join(timeout=10)

    def _total(self) -> int | None:
        """The prompts to expect in all, if that can be known cheaply."""
        rows = row_count(self.recipe.source) if self.recipe.source.hub is None else None
        limit = self.limit or self.recipe.source.limit
        known = [number for number in (rows, limit) if number is not None]
        return min(known) if known else None

    def _restart_the_dead(self, restarts: int) -> int:
        """Start workers that died again; returns how many. Their messages come back by themselves.

        Raises: PrefmillError if a service died, or if this does not seem to help.
        """
        for service in self._services:
            if not service.alive:
                raise PrefmillError(
                    f"{service.name} ended with code {service.returncode}; nothing is lost, "
                    f"run again to go on. The end of {service.log}:\n{service.tail(5)}"
                )
        dead = [child for child in self._workers if not child.alive]
        for child in dead:
            told = f"worker {child.name} ended with code {child.returncode}"
            if restarts >= RESTARTS:
                raise PrefmillError(
                    f"{told}, and so did {restarts} others while no prompt ended; nothing is lost, "
                    f"run again to go on. The end of {child.log}:\n{child.tail(5)}"
                )
            self.say(f"{told} (see {child.log}); starting it again")
            self._workers.remove(child)
            self._workers.append(self._start_again[child.name]())
        return len(dead)

    def _show_skip(self, row: BadRow) -> None:
        self._skips += 1
        if self._skips <= SHOWN_SKIPS:
            self.say(f"skipped {row.where}: {row.reason}: {row.detail}")
        if self._skips == SHOWN_SKIPS:
            self.say("further bad rows are counted, not shown")


def with_local_model(recipe: Recipe, base_url: str) -> Recipe:
    """The recipe with the URL of the local model server where it asks for one."""
    endpoints = {
        name: endpoint.model_copy(update={"base_url": base_url})
        if endpoint.base_url == LOCAL_MODEL_URL
        else endpoint
        for name, endpoint in recipe.endpoints.items()
    }
    return recipe.model_copy(update={"endpoints": endpoints})


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write what runs, for the workers and for whoever asks later. It holds no key."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
