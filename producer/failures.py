"""What went wrong: failed prompts and messages set aside. Failed prompts can be tried again."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from workers.app import make_app
from workers.broker import Broker
from workers.flow import publish
from workers.ledger import Failure, Ledger
from workers.recipe import Recipe

#: How often a full window is looked at again, in seconds.
POLL_S = 1.0

#: Prompts put back in flight by one transaction.
TOGETHER = 200

#: Characters of an instruction, an error or a message that a line for people shows.
SHOWN = 100


def as_json(run: str, failures: Iterator[Failure], aside: list[dict[str, Any]]) -> str:
    """Everything, for machines; times are seconds since the epoch."""
    failed = [asdict(failure) for failure in failures]
    return json.dumps({"run": run, "failed": failed, "set_aside": aside}, indent=2)


def lines(failures: Iterator[Failure], aside: list[dict[str, Any]]) -> Iterator[str]:
    """The same for people, one line each; what prompts say cannot forge one."""
    number = 0
    for number, failure in enumerate(failures, 1):  # noqa: B007 (the count is said below)
        yield (
            f"{failure.key[:12]}  {_when(failure.finished_at)}  {failure.reason}  "
            f"attempts {failure.attempts}  {_short(failure.instruction)}  {_short(failure.detail)}"
        )
    yield f"{number} failed prompts"
    for message in aside:
        yield (
            f"set aside  {_when(message['at'])}  {message['queue']}  {_short(message['reason'])}  "
            f"{_short(message['message'])}"
        )
    yield f"{len(aside)} messages set aside"


def retry(
    ledger: Ledger,
    recipe: Recipe,
    broker_url: str | None,
    visibility_timeout_s: float,
    tell: Callable[[int], None],
) -> int:
    """Put every prompt that has failed until now back in flight; returns how many.

    Generations that were paid for are used again. With a broker they go out at once, never more
    than the window; without one the next `run` publishes them. Raises: BrokerError, LedgerError.
    """
    done, total = 0, sum(ledger.counts(recipe.name).failed.values())
    app = make_app(broker_url, visibility_timeout_s)
    while done < total:
        room = recipe.fleet.window - ledger.in_flight(recipe.name) if broker_url else total
        if room <= 0:
            time.sleep(POLL_S)
            continue
        keys = ledger.retry(recipe.name, min(room, TOGETHER, total - done))
        if not keys:
            break
        if broker_url:
            Broker(broker_url, recipe.name, recipe.queues).revive(keys)
            batches = ledger.rebatch_unpublished(recipe.name, recipe.fleet.batch_size)
            publish(app, ledger, recipe, batches)
        done += len(keys)
        tell(done)
    return done


def look(broker_url: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Messages set aside, newest first; none without a broker. Raises: BrokerError."""
    return Broker(broker_url, recipe.name, recipe.queues).aside() if broker_url else []


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _short(text: str | None) -> str:
    """A text on one line, without what a terminal would act on."""
    shown = "".join(c if c.isprintable() else " " for c in " ".join((text or "").split()))
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
