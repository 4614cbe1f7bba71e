"""What ledger and broker say of a run, as metrics in Prometheus' form.

All names of metrics are here, and `docs/alerts.md` says what to do about them. Labels hold names of
the recipe and our own reasons: never texts, keys or URLs, and never more than a bounded number.
Figures are those of `prefmill status`; counting, asking and serving is left to others.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from workers.doors import Room, Shut
from workers.entries import Backlog
from workers.ledger import Counts
from workers.liveness import Sign
from workers.messages import queue
from workers.recipe import Recipe
from workers.records import FAILED, IN_FLIGHT, PAIRED, REJECTED, whole_characters

#: Reasons that are told apart; the rarest ones above that are added up as `other`.
REASONS = 50
REASON_CHARACTERS = 64

Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class InLedger:
    """What the ledger says; `since` is when the oldest in flight was accepted, epoch seconds."""

    counts: Counts
    paused: bool
    since: float | None


@dataclass(frozen=True, slots=True)
class AtBroker:
    """What the broker says; queues by their full names."""

    waiting: Mapping[str, int]
    unacknowledged: Mapping[str, int]
    aside: int
    rooms: list[Room]
    shut: list[Shut]
    signs: list[Sign]


class Figures:
    """Makes metrics of one run."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._version = version("prefmill")

    def of_ledger(self, said: InLedger) -> Iterator[Metric]:
        """Prompts, rows, calls and deliveries."""
        yield from self._prompts(said)
        yield from self._calls(said.counts)
        yield from self._judging(said.counts)
        yield from self._deliveries(said.counts.deliveries)

    def at_broker(self, said: AtBroker) -> Iterator[Metric]:
        """Queues, workers, calls in flight and doors."""
        yield from self._queues(said)
        yield from self._rooms("endpoint", said, lambda room: (room.endpoint,))
        yield from self._rooms("model", said, lambda room: (room.endpoint, room.model or ""))

    def of_recipe(self) -> Iterator[Metric]:
        """What to hold the other figures against."""
        fleet = self._recipe.fleet
        build = GaugeMetricFamily("prefmill_build_info", "The version.", labels=("version",))
        build.add_metric((self._version,), 1)
        yield build
        yield self.gauge("window_prompts", "Most prompts in flight.", {(): fleet.window})
        said = "Time after which a batch without messages is published again."
        yield self.gauge("deadline_seconds", said, {(): fleet.deadline})

    def _prompts(self, said: InLedger) -> Iterator[Metric]:
        counts = said.counts
        states: dict[tuple[str, ...], float] = {
            (IN_FLIGHT, ""): counts.in_flight,
            (PAIRED, ""): counts.paired,
            # Always there, so that the first of them is seen as a change.
            (REJECTED, ""): 0,
            (FAILED, ""): 0,
        }
        for state, reasons in ((REJECTED, counts.rejected), (FAILED, counts.failed)):
            states |= {(state, *reason): number for reason, number in _bounded(reasons).items()}
        yield self.counter("prompts_accepted", "Prompts accepted.", {(): counts.accepted})
        yield self.gauge("prompts", "Prompts; all together are accepted.", states, "state reason")
        yield self.counter(
            "rows", "Rows of the dataset; a rebuild may lower it.", {(): counts.rows}
        )
        skipped = "Rows of the source that are no prompts."
        yield self.counter("skipped_rows", skipped, _bounded(counts.skipped), "reason")
        oldest = "Time since the oldest prompt in flight was accepted; 0 without any."
        yield self.gauge("oldest_in_flight_seconds", oldest, {(): _ago(said.since)})
        yield self.gauge("paused", "Whether a person paused the run.", {(): said.paused})

    def _calls(self, counts: Counts) -> Iterator[Metric]:
        ended: dict[tuple[str, ...], float] = {}
        for name, of in counts.calls.items():
            unparsable = counts.judging.get(name, {}).get("unparsable", 0)
            ended[name, "ok"] = of["ok"]
            ended[name, "failed"] = of["failed"] - unparsable
            ended[name, "unparsable"] = unparsable
        tokens: dict[tuple[str, ...], float] = {
            (name, way): of[f"{way}_tokens"]
            for name, of in counts.calls.items()
            for way in ("input", "output")
        }
        yield self.counter("calls", "Calls of finished prompts.", ended, "model outcome")
        for name, said in (
            ("retried", "Attempts at calls after the first one."),
            ("cached", "Calls, among all, whose answer was there already."),
        ):
            values: Values = {(model,): of[name] for model, of in counts.calls.items()}
            yield self.counter(f"calls_{name}", said, values, "model")
        yield self.counter("tokens", "Tokens of these calls.", tokens, "model direction")

    def _judging(self, counts: Counts) -> Iterator[Metric]:
        judges = [judge.name for judge in self._recipe.judges if judge.name in counts.judging]
        for name, said in (
            ("compared", "Pairs of texts that a judge saw in both orders."),
            ("flipped", "Those of them where its preference flipped with the order."),
        ):
            values: Values = {(judge,): counts.judging[judge][name] for judge in judges}
            yield self.counter(f"judge_{name}", said, values, "judge")

    def _deliveries(self, of: Mapping[str, Backlog]) -> Iterator[Metric]:
        states: dict[tuple[str, ...], float] = {}
        for name, backlog in of.items():
            states[name, "pending"] = backlog.waiting
            states[name, "delivered"] = backlog.delivered
            states[name, "refused"] = backlog.refused
        said = "Rows (hub) or records (argilla)."
        yield self.gauge("deliveries", said, states, "destination state")
        figures: tuple[tuple[str, str, Callable[[Backlog], float]], ...] = (
            (
                "delivery_changed_prompts",
                "Prompts whose delivered pairs are other ones by now.",
                lambda backlog: backlog.changed,
            ),
            (
                "delivery_lag_seconds",
                "Age of the oldest that is pending; 0 if nothing is.",
                lambda backlog: _ago(backlog.oldest),
            ),
            (
                "delivery_stands_still",
                "Whether the last delivery failed; prefmill status says why.",
                lambda backlog: backlog.trouble is not None,
            ),
        )
        for name, said, figure in figures:
            values: Values = {
                (destination,): figure(backlog) for destination, backlog in of.items()
            }
            yield self.gauge(name, said, values, "destination")

    def _queues(self, said: AtBroker) -> Iterator[Metric]:
        names = {queue(self._recipe.name, short): short for short in self._recipe.queues}
        alive = dict.fromkeys(names, 0)
        for name in (name for sign in said.signs for name in sign.queues if name in names):
            alive[name] += 1
        for metric, what, numbers in (
            ("queue_messages", "Messages that no worker holds.", said.waiting),
            ("unacknowledged_messages", "Messages that a worker holds.", said.unacknowledged),
            ("workers", "Worker processes that give signs of life.", alive),
        ):
            values: Values = {(short,): numbers.get(name, 0) for name, short in names.items()}
            yield self.gauge(metric, what, values, "queue")
        yield self.gauge("aside_messages", "Messages that were set aside.", {(): said.aside})

    def _rooms(
        self, kind: str, said: AtBroker, place: Callable[[Room], tuple[str, ...]]
    ) -> Iterator[Metric]:
        """Of endpoints or of models: calls in flight, their limit, and whether the door is shut."""
        labels = "endpoint" if kind == "endpoint" else "endpoint model"
        rooms = [room for room in said.rooms if (room.model is None) == (kind == "endpoint")]
        asked = {model.name: model.model for model in self._recipe.models}
        shut = {(door.endpoint, door.model): door.reason for door in said.shut}
        doors: dict[tuple[str, ...], float] = {}
        for room in rooms:
            reason = shut.get((room.endpoint, asked[room.model] if room.model else None))
            doors[*place(room), reason or ""] = reason is not None
        calls = {place(room): room.calls for room in rooms}
        limits = {place(room): room.limit for room in rooms}
        yield self.gauge(f"{kind}_calls_in_flight", "Calls in flight.", calls, labels)
        yield self.gauge(f"{kind}_calls_limit", "Calls that may be in flight.", limits, labels)
        said_shut = f"Whether this {kind} turned calls away, so that all but one wait."
        yield self.gauge(f"{kind}_shut", said_shut, doors, f"{labels} reason")

    def gauge(self, name: str, said: str, values: Values, labels: str = "") -> Metric:
        """What may rise and fall; `labels` are names, apart by blanks, beside the run's."""
        return self._filled(GaugeMetricFamily, name, said, values, labels)

    def counter(self, name: str, said: str, values: Values, labels: str = "") -> Metric:
        """What only rises."""
        return self._filled(CounterMetricFamily, name, said, values, labels)

    def _filled(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        said: str,
        values: Values,
        labels: str,
    ) -> Metric:
        family = kind(f"prefmill_{name}", said, labels=("run", *labels.split()))
        for key, value in values.items():
            family.add_metric((self._recipe.name, *key), float(value))
        return family


def _bounded(reasons: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    """The most frequent reasons as label values, and all others together."""
    found: dict[tuple[str, ...], float] = {}
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    for place, (reason, number) in enumerate(ordered):
        label = whole_characters(reason)[:REASON_CHARACTERS] if place < REASONS else "other"
        found[label,] = found.get((label,), 0) + number
    return found


def _ago(moment: float | None) -> float:
    """Seconds since then; 0 without a moment, and for one by a clock that runs ahead."""
    return 0.0 if moment is None else max(0.0, time.time() - moment)
