"""The Celery tasks, thin: message in, one call of a step, message out.

A task either ends with data, or hands its message back (the worker shuts down, the ledger or the
broker is away), or drops it (its batch was published anew since), or sets it aside (it broke).
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.signals import (
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from workers import logs, steps, worker
from workers.admission import HandedBack, Settled
from workers.app import TASK_BUDGET_S, app
from workers.errors import BrokerError, ConfigurationError, LedgerError, PrefmillError
from workers.flow import publish
from workers.grouping import by_prompt
from workers.ledger import Work
from workers.liveness import Death
from workers.masking import masked
from workers.messages import (
    DELIVER,
    GENERATE,
    GROUP,
    JUDGE,
    RECONCILE,
    SET_ASIDE,
    SINK,
    Batch,
    short_name,
)
from workers.outcomes import conclude
from workers.quarantine import Quarantine
from workers.reconciler import look_after
from workers.records import generation_to_json, judgement_to_json
from workers.step import Step
from workers.worker import Worker, current

log = logging.getLogger(__name__)

#: A message that cannot be worked on now is kept this long before it goes back, in seconds: its
#: queue must not be spun through.
PAUSE_S = 2.0

#: A suspect waits this long for room in its quarantine, in seconds, before it goes back.
APART_S = 60.0

_stopping = threading.Event()
_foreign: set[str] = set()
_quarantine = Quarantine()


class _Later(PrefmillError):
    """A message cannot be worked on now; it goes back after a pause."""


@contextmanager
def _step(task: Task, message: dict[str, str], *, attempt: bool = False) -> Iterator[Step]:
    """Around the work of one step of a batch.

    Raises: Ignore if nothing wants work any more; Reject to hand the message back.
    """
    mill, batch = current(), Batch.from_json(message)
    with _ending(task, mill, batch):
        work = _wanted(mill, batch, attempt=attempt)
        with _apart(mill, work), mill.liveness.step(task.request.id, work.attempt) as death:
            if death is not None:
                _account_for(death, mill, batch)
                # What is left of it comes again, and meets its new place in the quarantine.
                raise HandedBack("a worker died on it")
            yield Step(mill, batch, work)


@contextmanager
def _apart(mill: Worker, work: Work) -> Iterator[None]:
    """Keep work that may kill its process apart from its like."""
    left = mill.recipe.fleet.max_attempts - work.attempt
    if not work.suspect or left > 1:
        yield
        return
    with _quarantine.room(alone=left <= 0, within_s=APART_S) as found:
        if not found or _stopping.is_set():
            raise HandedBack("other work that may have killed a worker goes first")
        yield


def _account_for(death: Death, mill: Worker, batch: Batch) -> None:
    """Note that a process died on a batch; publish its prompts one by one if that is due."""
    parts = mill.ledger.crashed(
        batch.run, batch.id, death.process, death.attempt, mill.recipe.fleet.max_attempts
    )
    extra = {"batch": batch.id, "worker": death.process, "attempt": death.attempt}
    log.warning("task.worker_died", extra=extra)
    publish(app, mill.ledger, mill.recipe, parts)


def _wanted(mill: Worker, batch: Batch, *, attempt: bool) -> Work:
    """The batch's prompts that still want work.

    Raises: Ignore if there are none; _Later if the batch is for another recipe's worker.
    """
    ours = batch.recipe_hash == mill.recipe.hash
    work = mill.ledger.start(batch.run, batch.id, batch.recipe_hash, attempt=attempt and ours)
    if not work.prompts:
        raise Ignore
    if not ours:
        if batch.recipe_hash not in _foreign:
            _foreign.add(batch.recipe_hash)
            log.warning("task.other_recipe", extra={"run": batch.run, "hash": batch.recipe_hash})
        raise _Later("another recipe's batch")
    return work


@contextmanager
def _ending(task: Task, mill: Worker, batch: Batch | None) -> Iterator[None]:
    """Every way in which work ends without a result."""
    try:
        yield
    except (Ignore, Reject):
        raise
    except (_Later, Settled) as exc:
        _stopping.wait(PAUSE_S)
        raise Reject(str(exc), requeue=True) from None
    except (HandedBack, CancelledError) as exc:
        raise Reject(str(exc), requeue=True) from None
    except (LedgerError, BrokerError) as exc:
        log.warning("task.handed_back", extra={"because": str(exc)})
        _stopping.wait(PAUSE_S)
        raise Reject(str(exc), requeue=True) from None
    except Exception as exc:
        # The edge: a bug must neither be lost nor spin. The reconciler publishes the batch again.
        log.exception("task.broke", extra={"task": task.request.id})
        error = masked(f"{type(exc).__name__}: {exc}")
        mill.broker.set_aside(str(task.request.id), f"broke: {error}", task.name)
        if batch is not None:
            with suppress(LedgerError):
                mill.ledger.note_error(batch.run, batch.id, error)
        raise Ignore from exc


@app.task(name=GENERATE, bind=True)  # type: ignore[untyped-decorator]
def generate(self: Task, message: dict[str, str], generator: str) -> dict[str, Any]:
    """Answer a batch's prompts with one model; failures are data."""
    with _step(self, message, attempt=True) as step:
        model = step.mill.recipe.generator(generator)
        work = steps.generate(step.mill.calls, step.mill.recipe, model, step.prompts, step.known)
        done = step.mill.calls.run(work, timeout_s=TASK_BUDGET_S)
        return {key: [generation_to_json(g) for g in made] for key, made in done.items()}


@app.task(name=GROUP, bind=True)  # type: ignore[untyped-decorator]
def group(
    self: Task, headers: list[dict[str, Any]], message: dict[str, str]
) -> dict[str, list[Any]]:
    """Join what the models answered: each prompt with exactly one generation a slot."""
    with _step(self, message) as step:
        arrived = [
            (key, generation)
            for header in headers
            for key, made in header.items()
            for generation in step.generations(key, made)
        ]
        joined = by_prompt(arrived, step.mill.recipe.slots, step.prompts)
        if len(joined) < len(step.prompts):
            extra = {"batch": step.batch.id, "of": len(step.prompts)}
            log.warning("group.incomplete", extra=extra)
        return {key: [generation_to_json(g) for g in grouped] for key, grouped in joined.items()}


@app.task(name=JUDGE, bind=True)  # type: ignore[untyped-decorator]
def judge(self: Task, grouped: dict[str, list[Any]], message: dict[str, str]) -> dict[str, Any]:
    """Rate each prompt's generations against each other."""
    with _step(self, message) as step:
        generations = {key: step.generations(key, data) for key, data in grouped.items()}
        work = steps.judge(
            step.mill.calls, step.mill.recipe, step.prompts, generations, step.work.judged
        )
        done = step.mill.calls.run(work, timeout_s=TASK_BUDGET_S)
        judged = {
            key: [judgement_to_json(j) for j in judgements] for key, judgements in done.items()
        }
        texts = {key: [generation_to_json(g) for g in made] for key, made in generations.items()}
        return {"generations": texts, "judgements": judged}


@app.task(name=SINK, bind=True)  # type: ignore[untyped-decorator]
def sink(self: Task, judged: dict[str, Any], message: dict[str, str]) -> None:
    """Enter outcomes and rows into the ledger, then forget the answers they came from."""
    with _step(self, message) as step:
        mill, batch = step.mill, step.batch
        both = {
            key: step.judged(key, generations, judged["judgements"].get(key, ()))
            for key, generations in judged["generations"].items()
        }
        outcomes = conclude(
            mill.recipe,
            {key: generations for key, (generations, _) in both.items()},
            {key: judgements for key, (_, judgements) in both.items()},
        )
        # A stale batch commits nothing: its prompts' answers are needed by a newer one.
        names = mill.recipe.destinations.values()
        if mill.ledger.commit(batch.run, batch.id, outcomes, names):
            mill.calls.run(mill.calls.admission.forget([outcome.key for outcome in outcomes]))


@app.task(name=RECONCILE, bind=True)  # type: ignore[untyped-decorator]
def reconcile_run(self: Task) -> None:
    """Publish again what was lost, and tidy up."""
    mill = current()
    with _ending(self, mill, None):
        look_after(app, mill.ledger, mill.broker, mill.doors, mill.recipe)


@app.task(name=DELIVER, bind=True)  # type: ignore[untyped-decorator]
def deliver(self: Task, destination: str) -> None:
    """Carry to Argilla or to the Hub what waits there, if it is worth it."""
    mill = current()
    with _ending(self, mill, None), mill.liveness.busy(self.request.id):
        mill.deliver(destination)


@app.task(name=SET_ASIDE, bind=True)  # type: ignore[untyped-decorator]
def set_aside(self: Task, message: str, why: str, queue_name: str) -> None:
    """List a message that nothing can be done with."""
    mill = current()
    with _ending(self, mill, None):
        log.warning("message.set_aside", extra={"queue": queue_name, "because": why})
        mill.broker.set_aside(message, why, queue_name)


@worker_init.connect  # type: ignore[untyped-decorator]
def _open(**_: Any) -> None:
    """Refuse to start rather than take messages that cannot be worked on."""
    try:
        mill = current([short_name(name) for name in app.amqp.queues.consume_from])
    except ConfigurationError as exc:
        raise SystemExit(f"prefmill: {exc}") from exc
    mill.open()


@worker_ready.connect  # type: ignore[untyped-decorator]
def _give_signs(sender: Any, **_: Any) -> None:
    """From now on renew what the consumer holds, also after it connected anew."""

    def held() -> list[str]:
        consumer = sender.task_consumer
        return list(consumer.channel.qos._delivered) if consumer is not None else []

    current().liveness.watch(app.amqp.queues.consume_from, held)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _end_with_grace(**_: Any) -> None:
    """On SIGTERM begin no call, let those under way end, and hand the rest back."""
    _stopping.set()
    current().drain()
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
