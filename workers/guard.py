"""Whether a message is one that a worker can work on; pure.

Celery takes messages on trust: garbage ends a worker process, and a body that it cannot unpack goes
back to the queue and ends the next one. So each message is looked at as it is popped, before
Celery sees it. What our own code publishes passes, and nothing else: it becomes a message for
`set_aside`.
"""

import base64
import json
import uuid
from typing import Any

from workers import messages
from workers.envelope import (
    BATCH_ID,
    EMBEDDED,
    RECIPE_HASH,
    SLUG,
    UUID,
    chained,
    check_step,
    headers_of,
)
from workers.forms import NULL, check, check_nesting, hold, only, shown
from workers.messages import DELIVER, GENERATE, GROUP, JUDGE, RECONCILE, SET_ASIDE, SINK, Batch

#: Bytes of the largest message that is read. A batch's answers travel in one; this bounds what a
#: worker unpacks at once, before it knows whose message it is.
MAX_MESSAGE_BYTES = 128 * 1024 * 1024

#: How much of a message that is set aside is kept, in characters.
KEPT_CHARACTERS = 16_384

#: Levels of objects and lists in a message, at most; ours have about ten.
MAX_NESTING = 64

#: What comes after a step: each one's task, name and queue.
_LATER = (
    (GROUP, "group", "sink"),
    (JUDGE, "judge", "judge"),
    (SINK, "sink", "sink"),
)
_AFTER = {GENERATE: _LATER, GROUP: _LATER[1:], JUDGE: _LATER[2:], SINK: ()}


def guarded(raw: bytes, queue: str) -> bytes:
    """The message as it came, or one for `set_aside` that holds it as text and says why."""
    try:
        _check(raw, queue)
    except (ValueError, RecursionError) as exc:
        why = str(exc) or type(exc).__name__
        kept = raw[: 4 * KEPT_CHARACTERS].decode("utf-8", "replace")[:KEPT_CHARACTERS]
        return _message(SET_ASIDE, [kept, why, queue])
    return raw


def _check(raw: bytes, queue: str) -> None:
    """Raises: ValueError, RecursionError."""
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{len(raw):,} bytes; accepted: at most {MAX_MESSAGE_BYTES:,}")
    message = _loaded(raw, "not JSON")
    headers = headers_of(message, queue)
    arguments, embedded = _body(message["body"])
    batch = _batch(headers["task"], arguments, messages.run_of(queue))
    if batch is None:
        _check_alone(headers, embedded)
    else:
        _check_step(headers, arguments, batch, queue)
        _check_later(headers["task"], embedded, batch)


def _loaded(raw: bytes, trouble: str) -> Any:
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{trouble}: {type(exc).__name__}") from exc
    check_nesting(value, MAX_NESTING)
    return value


def _body(text: str) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, and what Celery does after the task."""
    trouble = "a body that cannot be read"
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise ValueError(f"{trouble}: {type(exc).__name__}") from exc
    body = _loaded(raw, trouble)
    match body:
        case [list() as arguments, dict() as named, dict() as embedded]:
            if named:
                raise ValueError(f"argument {shown(next(iter(named)))} by name; accepted: none")
            return arguments, check(embedded, EMBEDDED, "embedded")
    raise ValueError("a body that is not [args, kwargs, embedded]")


def _batch(task: str, arguments: list[Any], run: str) -> Batch | None:
    """The batch that a step is about; None for what is no step."""
    match arguments:
        case [dict() as message, str() as generator] if task == GENERATE:
            hold(generator, SLUG, "the generator")
        case [list() as results, dict() as message] if task == GROUP:
            if not all(isinstance(result, dict) for result in results):
                raise ValueError("results that are no objects")
        case [dict(), dict() as message] if task in (JUDGE, SINK):
            pass
        case [str(), str(), str()] if task == SET_ASIDE:
            return None
        case [] if task == RECONCILE:
            return None
        case [str() as destination] if task == DELIVER:
            hold(destination, SLUG, "the destination")
            return None
        case _:
            raise ValueError(f"task {shown(task)} is unknown or has other arguments")
    return _batch_of(message, run)


def _batch_of(message: dict[str, Any], run: str) -> Batch:
    try:
        batch = Batch.from_json(message)
    except TypeError as exc:
        raise ValueError(f"a batch of another version than {messages.VERSION}") from exc
    if batch.run != run:
        raise ValueError(f"a batch of run {shown(batch.run)}; accepted: {shown(run)}")
    hold(batch.recipe_hash, RECIPE_HASH, "a batch's 'recipe_hash'")
    hold(batch.id, BATCH_ID, "a batch's 'id'")
    return batch


def _check_alone(headers: dict[str, Any], embedded: dict[str, Any]) -> None:
    """What is no step has no step's id: Celery would forget that step when this one expires."""
    hold(headers["id"], UUID, "header 'id'")
    if headers["task"] == SET_ASIDE:  # beat's ticks are worth nothing after a while
        hold(headers.get("expires"), NULL, "header 'expires'")
    for name in ("chain", "chord"):
        hold(embedded.get(name), only(None, []), f"embedded {name!r}")


def _check_step(headers: dict[str, Any], arguments: list[Any], batch: Batch, queue: str) -> None:
    """A step's id and its queue follow from its batch, and it never expires."""
    if headers["task"] == GENERATE:
        step = short = f"generate.{arguments[1]}"
        for name in ("group", "group_index"):
            if headers.get(name) is None:
                raise ValueError(f"header {name!r} is None; accepted: a chord's")
    else:
        _, step, short = next(later for later in _LATER if later[0] == headers["task"])
    hold(queue, only(messages.queue(batch.run, short)), f"the queue of {headers['task']}")
    hold(headers["id"], only(messages.task_id(batch, step)), "header 'id'")
    hold(headers.get("expires"), NULL, "header 'expires'")


def _check_later(task: str, embedded: dict[str, Any], batch: Batch) -> None:
    """What Celery publishes after a step is the rest of its batch's way, and nothing else."""
    if task == GENERATE:
        hold(embedded.get("chain"), NULL, "embedded 'chain'")
        found = chained(embedded.get("chord"), messages.task_id(batch, "sink"))
    else:
        hold(embedded.get("chord"), NULL, "embedded 'chord'")
        found = (embedded.get("chain") or [])[::-1]  # Celery takes the last one first
    if len(found) != len(_AFTER[task]):
        raise ValueError(f"{len(found)} later steps; accepted: {len(_AFTER[task])}")
    for signature, (name, step, short) in zip(found, _AFTER[task], strict=True):
        queue = messages.queue(batch.run, short)
        check_step(signature, name, messages.task_id(batch, step), queue, batch.to_json())


def _message(task: str, arguments: list[Any]) -> bytes:
    """A message of our own in Celery's form (protocol 2)."""
    tag = str(uuid.uuid4())
    body = json.dumps(
        [arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    )
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "task": task,
                "id": tag,
                "root_id": tag,
                "lang": "py",
                "argsrepr": "",
                "kwargsrepr": "",
            },
            "properties": {
                "correlation_id": tag,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": arguments[2]},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        }
    ).encode()
