"""The chord that carries one batch: generate by every model, then group, judge, sink.

    generate.<model A> ┐
    generate.<model B> ┴─► group ─► judge ─► sink

Tasks are named by string and never imported. Celery copies the body into every header message, so
it holds nothing but ids; what the models answered travels in the header's results.
"""

from collections.abc import Sequence

from celery import Celery, chain, chord
from celery.canvas import Signature
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, RedisError

from workers.errors import BrokerError
from workers.ledger import Ledger
from workers.messages import (
    GENERATE,
    GROUP,
    JUDGE,
    SINK,
    Batch,
    generate_queue,
    join_id,
    queue,
    task_id,
)
from workers.recipe import Recipe

#: Batches that one transaction notes as published.
NOTED_TOGETHER = 100


def publish(app: Celery, ledger: Ledger, recipe: Recipe, batches: Sequence[str]) -> None:
    """Publish one chord for each batch, then note it in the ledger.

    A crash in between leaves batches that count as unpublished; they are published again under a
    new id, which makes the first message stale. Raises: BrokerError, LedgerError.
    """
    recipe_hash = recipe.hash
    for start in range(0, len(batches), NOTED_TOGETHER):
        some = batches[start : start + NOTED_TOGETHER]
        try:
            for batch in some:
                _chord(app, recipe, Batch(recipe.name, recipe_hash, batch)).apply_async()
        except (OperationalError, RedisError, OSError) as exc:
            raise BrokerError(f"cannot publish: {_why(exc)}") from exc
        ledger.published(recipe.name, some)


def _why(exc: Exception) -> str:
    """What a person can do something about."""
    if isinstance(exc, OutOfMemoryError) or isinstance(exc.__cause__, OutOfMemoryError):
        return (
            "the broker is full (its maxmemory is reached); it goes on by itself once workers have "
            "emptied their queues or the limit is raised"
        )
    return str(exc)


def _chord(app: Celery, recipe: Recipe, batch: Batch) -> Signature:
    header = [
        _step(app, GENERATE, f"generate.{generator.name}", batch, generator.name).set(
            queue=generate_queue(batch.run, generator.name)
        )
        for generator in recipe.generators
    ]
    body = chain(
        _step(app, GROUP, "group", batch).set(queue=queue(batch.run, "sink")),
        _step(app, JUDGE, "judge", batch).set(queue=queue(batch.run, "judge")),
        _step(app, SINK, "sink", batch).set(queue=queue(batch.run, "sink")),
    )
    return chord(header, body, app=app, task_id=join_id(batch))


def _step(app: Celery, name: str, step: str, batch: Batch, *more: str) -> Signature:
    signature = app.signature(name, args=(batch.to_json(), *more))
    return signature.set(task_id=task_id(batch, step))
