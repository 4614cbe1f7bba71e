"""What went wrong: failed prompts and messages set aside. Failed prompts can be tried again."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from workers.admission import Answer, FleetAdmission
from workers.broker import Broker
from workers.calls import address_of
from workers.flow import publish
from workers.ledger import Failure, Ledger, Retried
from workers.recipe import Recipe
from workers.records import Generation
from workers.steps import generation_request

log = logging.getLogger(__name__)

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
    app: Celery | None,
    tell: Callable[[int], None],
) -> int:
    """Put every prompt that has failed until now back in flight; returns how many.

    Generations that were paid for are used again. With a broker they go out at once, never more
    than the window; without one the next `run` publishes them. Raises: BrokerError, LedgerError.
    """
    done, total = 0, sum(ledger.counts(recipe.name).failed.values())
    while done < total:
        room = total if app is None else recipe.fleet.window - ledger.in_flight(recipe.name)
        if room <= 0:
            time.sleep(POLL_S)
            continue
        retried = ledger.retry(recipe.name, min(room, TOGETHER, total - done))
        if not retried:
            break
        if app is not None and broker_url is not None:
            asyncio.run(_restore(broker_url, recipe, retried))
            batches = ledger.rebatch_unpublished(recipe.name, recipe.fleet.batch_size)
            publish(app, ledger, recipe, batches)
        done += len(retried)
        tell(done)
    return done


def look(broker_url: str | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Messages set aside, newest first; none without a broker. Raises: BrokerError."""
    return Broker(broker_url, recipe.name, recipe.queues).aside() if broker_url else []


async def _restore(broker_url: str, recipe: Recipe, retried: list[Retried]) -> None:
    admission = FleetAdmission(broker_url, recipe)
    try:
        await admission.restore({one.key: _answers(recipe, one) for one in retried})
    finally:
        await admission.close()


def _answers(recipe: Recipe, retried: Retried) -> dict[str, Answer]:
    """The generations of a failed prompt as answered calls, by address."""
    models = {generator.name: generator for generator in recipe.generators}
    request = generation_request(retried.prompt)
    return {
        address_of(models[made.generator], request): _answer(made)
        for made in retried.generations
        if made.usable and made.generator in models
    }


def _answer(made: Generation) -> Answer:
    completion = {
        "text": made.text,
        "finish_reason": made.finish_reason,
        "model": made.reported_model,
        "input_tokens": made.usage.input_tokens,
        "output_tokens": made.usage.output_tokens,
    }
    return {"completion": completion, "retries": made.usage.retries}


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _short(text: str | None) -> str:
    """A text on one line, without what a terminal would act on."""
    shown = "".join(c if c.isprintable() else " " for c in " ".join((text or "").split()))
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
