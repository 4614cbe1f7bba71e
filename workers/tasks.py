"""The Celery tasks, thin: message in, one call of a step, message out.

A task either ends with data, or hands its message back (the worker shuts down, the ledger or the
broker is away), or drops it (its batch was published anew since).
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from celery.beat import Scheduler
from celery.exceptions import Ignore, Reject
from celery.signals import (
    setup_logging,
    worker_init,
    worker_shutdown,
    worker_shutting_down,
)

from workers import logs, steps, worker
from workers.app import TASK_BUDGET_S, app
from workers.calls import HandedBack
from workers.errors import BrokerError, ConfigurationError, LedgerError
from workers.grouping import by_prompt
from workers.messages import GENERATE, GROUP, JUDGE, RECONCILE, SINK, Batch, queue
from workers.reconciler import interval_s, reconcile
from workers.records import (
    Prompt,
    generation_from_json,
    generation_to_json,
    judgement_from_json,
    judgement_to_json,
)
from workers.worker import Worker, current

log = logging.getLogger(__name__)

#: A message that cannot be worked on now is kept this long before it goes back, in seconds: its
#: queue must not be spun through.
PAUSE_S = 2.0

_stopping = threading.Event()
_foreign: set[str] = set()


@contextmanager
def _handing_back() -> Iterator[None]:
    try:
        yield
    except (HandedBack, CancelledError) as exc:
        raise Reject(str(exc), requeue=True) from exc
    except (LedgerError, BrokerError) as exc:
        log.warning("task.handed_back", extra={"because": str(exc)})
        _stopping.wait(PAUSE_S)
        raise Reject(str(exc), requeue=True) from exc
    except ExceptionGroup as exc:
        if exc.split((LedgerError, BrokerError))[1] is not None:
            raise
        log.warning("task.handed_back", extra={"because": str(exc.exceptions[0])})
        _stopping.wait(PAUSE_S)
        raise Reject(str(exc), requeue=True) from exc


def _wanted(mill: Worker, batch: Batch, *, attempt: bool = False) -> dict[str, Prompt]:
    """The batch's prompts that still want work.

    Raises: Ignore if there are none; HandedBack if the batch is for another recipe's worker.
    """
    ours = batch.recipe_hash == mill.recipe.hash
    prompts = mill.ledger.begin(batch.run, batch.id, attempt=attempt and ours)
    if not prompts:
        raise Ignore
    if not ours:
        if batch.recipe_hash not in _foreign:
            _foreign.add(batch.recipe_hash)
            log.warning("task.other_recipe", extra={"run": batch.run, "hash": batch.recipe_hash})
        _stopping.wait(PAUSE_S)
        raise HandedBack("another recipe's batch")
    return prompts


@app.task(name=GENERATE)  # type: ignore[untyped-decorator]
def generate(message: dict[str, str], generator: str) -> dict[str, Any]:
    """Answer a batch's prompts with one model; failures are data."""
    with _handing_back():
        mill, batch = current(), Batch.from_json(message)
        prompts = _wanted(mill, batch, attempt=True)
        model = mill.recipe.generator(generator)
        work = steps.generate(mill.calls, model, prompts)
        done = mill.calls.run(work, timeout_s=TASK_BUDGET_S)
        return {key: generation_to_json(generation) for key, generation in done.items()}


@app.task(name=GROUP)  # type: ignore[untyped-decorator]
def group(headers: list[dict[str, Any]], message: dict[str, str]) -> dict[str, list[Any]]:
    """Join what the models answered: each prompt with exactly one generation a slot."""
    with _handing_back():
        mill, batch = current(), Batch.from_json(message)
        keys = _wanted(mill, batch)
        arrived = [
            (key, generation_from_json(data)) for header in headers for key, data in header.items()
        ]
        slots = [generator.name for generator in mill.recipe.generators]
        joined = by_prompt(arrived, slots, keys)
        if len(joined) < len(keys):
            log.warning("group.incomplete", extra={"batch": batch.id, "of": len(keys)})
        return {key: [generation_to_json(g) for g in grouped] for key, grouped in joined.items()}


@app.task(name=JUDGE)  # type: ignore[untyped-decorator]
def judge(grouped: dict[str, list[Any]], message: dict[str, str]) -> dict[str, Any]:
    """Rate each prompt's generations against each other."""
    with _handing_back():
        mill, batch = current(), Batch.from_json(message)
        prompts = _wanted(mill, batch)
        generations = {
            key: [generation_from_json(g) for g in data] for key, data in grouped.items()
        }
        work = steps.judge(mill.calls, mill.recipe, prompts, generations)
        done = mill.calls.run(work, timeout_s=TASK_BUDGET_S)
        judged = {
            key: [judgement_to_json(j) for j in judgements] for key, judgements in done.items()
        }
        return {"generations": grouped, "judgements": judged}


@app.task(name=SINK)  # type: ignore[untyped-decorator]
def sink(judged: dict[str, Any], message: dict[str, str]) -> None:
    """Enter outcomes and rows into the ledger, then forget the answers they came from."""
    with _handing_back():
        mill, batch = current(), Batch.from_json(message)
        outcomes = steps.conclude(
            mill.recipe,
            {k: [generation_from_json(g) for g in v] for k, v in judged["generations"].items()},
            {k: [judgement_from_json(j) for j in v] for k, v in judged["judgements"].items()},
        )
        # A stale batch commits nothing: its prompts' answers are needed by a newer one.
        if mill.ledger.commit(batch.run, batch.id, outcomes):
            mill.calls.run(mill.calls.cache.forget([outcome.key for outcome in outcomes]))


@app.task(name=RECONCILE)  # type: ignore[untyped-decorator]
def reconcile_run() -> None:
    """Publish again what was lost."""
    with _handing_back():
        mill = current()
        reconcile(app, mill.ledger, mill.broker, mill.recipe)


@worker_init.connect  # type: ignore[untyped-decorator]
def _open(**_: Any) -> None:
    """Refuse to start rather than take messages that cannot be worked on."""
    try:
        current()
    except ConfigurationError as exc:
        raise SystemExit(f"prefmill: {exc}") from exc


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _end_with_grace(**_: Any) -> None:
    """On SIGTERM let calls go on for a while, then hand what is left back."""
    _stopping.set()
    timer = threading.Timer(worker.GRACE_S, current().stop_calls)
    timer.daemon = True
    timer.start()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    current().close()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    """Celery leaves logging alone when someone answers this signal."""
    if not logging.getLogger().handlers:
        logs.configure()


class Beat(Scheduler):  # type: ignore[misc]
    """Celery's beat with its schedule in memory: nothing in it is worth a file."""

    def setup_schedule(self) -> None:
        """The one thing to do in time: look for what was lost."""
        recipe = current().recipe
        every = interval_s(recipe)
        entry = {
            "task": RECONCILE,
            "schedule": every,
            # A tick that waited longer than to the next one is worth nothing.
            "options": {"queue": queue(recipe.name, "sink"), "expires": every},
        }
        self.merge_inplace({f"reconcile-{recipe.name}": entry})
