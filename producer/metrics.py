"""Serves a run's figures to Prometheus: read from ledger and broker at each scrape, never kept.

A scrape is always answered: a store that does not answer in time is `prefmill_up` 0, and its
figures are missing rather than old. `/healthz` says that this process lives, whatever the stores
do: to start it again would bring none of them back. It needs no key of an endpoint or destination.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from producer.figures import AtBroker, Figures, InLedger, Values
from producer.looks import Look, Said
from workers.broker import Broker
from workers.doors import Doors
from workers.errors import SettingsError
from workers.ledger import Ledger
from workers.liveness import signs
from workers.recipe import Recipe
from workers.settings import Settings, sqlite_path

log = logging.getLogger(__name__)

#: A scrape waits so long for stores that do not answer, in seconds.
PATIENCE_S = 3.0

#: A client that sends or reads nothing for so long is left, in seconds.
CLIENT_S = 10.0

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Stores:
    """Where a run's figures come from. Opened lazily: the ledger may not have been made yet."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        """Raises: SettingsError."""
        self._recipe = recipe
        self._database_url = settings.require_database()
        self._broker_url = settings.require_broker()
        self._broker = Broker(self._broker_url, recipe.name, recipe.queues)
        self._doors = Doors(self._broker_url, recipe)
        self._ledger: tuple[Ledger, int | None] | None = None

    def ledger(self) -> InLedger:
        """One pass over the ledger. Raises: LedgerError, SettingsError if it is not there."""
        ledger, run = self._opened(), self._recipe.name
        counts = ledger.counts(run, self._recipe.destinations)
        return InLedger(counts, ledger.paused(run), ledger.in_flight_since(run))

    def broker(self) -> AtBroker:
        """One look at queues, leases, doors and signs of life. Raises: BrokerError."""
        return AtBroker(
            self._broker.waiting(),
            self._broker.unacknowledged(),
            self._broker.aside_count(),
            self._doors.rooms(),
            self._doors.shut(),
            signs(self._broker_url, self._recipe.name),
        )

    def _opened(self) -> Ledger:
        """The ledger; opened again if another file took the place of the one that was open."""
        path = sqlite_path(self._database_url)
        place = path.stat().st_ino if path is not None and path.is_file() else None
        if self._ledger is None or (path is not None and place != self._ledger[1]):
            if self._ledger is not None:
                self._ledger[0].close()
                self._ledger = None
            self._ledger = Ledger(self._database_url, must_exist=True), place
        return self._ledger[0]


class Scrape(Collector):
    """All metrics of a run, as of now."""

    def __init__(self, recipe: Recipe, stores: Stores) -> None:
        self._figures = Figures(recipe)
        self._ledger = Look("ledger", stores.ledger)
        self._broker = Look("broker", stores.broker)

    def collect(self) -> Iterator[Metric]:
        """The metrics of those stores that answer within `PATIENCE_S`."""
        until = time.monotonic() + PATIENCE_S
        self._ledger.begin()
        self._broker.begin()
        in_ledger, at_broker = self._ledger.said(until), self._broker.said(until)
        yield from self._looks({"ledger": in_ledger, "broker": at_broker})
        yield from self._figures.of_recipe()
        if in_ledger is not None:
            yield from self._figures.of_ledger(in_ledger.answer)
        if at_broker is not None:
            yield from self._figures.at_broker(at_broker.answer)

    def _looks(self, looks: dict[str, Said[Any] | None]) -> Iterator[Metric]:
        now = time.monotonic()
        up: Values = {(store,): float(said is not None) for store, said in looks.items()}
        took: Values = {(store,): said.took_s for store, said in looks.items() if said}
        age: Values = {(store,): now - said.ended for store, said in looks.items() if said}
        gauge = self._figures.gauge
        yield gauge("up", "Whether a store answers; if not, its metrics are missing.", up, "store")
        yield gauge("look_duration_seconds", "What the last look at it took.", took, "store")
        yield gauge("look_age_seconds", "How long ago that look ended.", age, "store")


class MetricsServer(ThreadingMixIn, WSGIServer):
    """An HTTP server for `/metrics` and `/healthz`."""

    daemon_threads = True

    def __init__(self, recipe: Recipe, settings: Settings, host: str, port: int) -> None:
        """Listen at once; port 0 takes any. Raises: SettingsError if nobody can listen there."""
        scrape = Scrape(recipe, Stores(recipe, settings))
        try:
            self.address_family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__((host, port), _Quiet)
        except (OSError, OverflowError) as exc:
            raise SettingsError(
                f"--host {host} --port {port}: {exc}; accepted: an address of this machine and a "
                "port that is free"
            ) from exc
        registry = CollectorRegistry()
        registry.register(scrape)
        self.set_app(_app(make_wsgi_app(registry)))

    @property
    def url(self) -> str:
        """Where to scrape."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/metrics"

    def run(self, stopping: threading.Event) -> None:
        """Serve until told to stop."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()
        stopping.wait()
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Bind without asking DNS for the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        log.debug("metrics.client_lost", exc_info=True)


class _Quiet(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: what a client sends does not belong in a log."""


def _app(metrics: Wsgi) -> Wsgi:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        plain = [("Content-Type", "text/plain; charset=utf-8")]
        match environ["PATH_INFO"]:
            case "/metrics":
                try:
                    return metrics(environ, start_response)
                except Exception:
                    log.exception("metrics.failed")
                    start_response("500 Internal Server Error", plain)
                    return [b"no metrics; the log says why\n"]
            case "/healthz":
                start_response("200 OK", plain)
                return [b"ok\n"]
        start_response("404 Not Found", plain)
        return [b"accepted: /metrics, /healthz\n"]

    return app
