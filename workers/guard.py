"""Whether a message is one that a worker can work on; pure.

Celery takes messages on trust: garbage ends a worker process, and a body that it cannot unpack goes
back to the queue and ends the next one. So each message is looked at as it is popped, before
Celery sees it, and one that nothing can be done with becomes a message for `set_aside`.
"""

import base64
import binascii
import json
import re
import uuid
from typing import Any

from workers.messages import (
    DELIVER,
    GENERATE,
    GROUP,
    JUDGE,
    RECONCILE,
    SET_ASIDE,
    SINK,
    VERSION,
    Batch,
    run_of,
)

#: Bytes of the largest message that is read. A batch's answers travel in one; this bounds what a
#: worker unpacks at once, before it knows whose message it is.
MAX_MESSAGE_BYTES = 128 * 1024 * 1024

#: Headers that would name an address or a key. Nobody reads them: who sends one means harm, or is
#: mistaken about what a worker does. Others may be there, such as those of tracing.
_NAMES_A_WAY = re.compile("url|proxy|key|token|secret|password|authorization", re.IGNORECASE)

#: How much of a message that is set aside is kept, in characters.
KEPT_CHARACTERS = 16_384


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
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON: {type(exc).__name__}") from exc
    envelope = _object(message, "the message")
    headers = _object(envelope.get("headers"), "headers")
    if found := next(filter(_NAMES_A_WAY.search, headers), None):
        raise ValueError(f"header {found[:80]!r}; accepted: none with an address or a key")
    properties = _object(envelope.get("properties"), "properties")
    delivery = _object(properties.get("delivery_info"), "delivery_info")
    if not all(isinstance(delivery.get(name), str) for name in ("exchange", "routing_key")):
        raise ValueError("a delivery_info without exchange or routing_key")
    if properties.get("body_encoding") not in (None, "utf-8", "base64"):
        raise ValueError(f"body_encoding is {str(properties.get('body_encoding'))[:80]!r}")
    for name in ("content-type", "content-encoding", "body"):
        if not isinstance(envelope.get(name), str):
            raise ValueError(f"no {name}")
    if envelope["content-type"] != "application/json":
        raise ValueError(f"content-type is {envelope['content-type'][:80]!r}, not JSON")
    if not isinstance(headers.get("id"), str) or not isinstance(
        properties.get("delivery_tag"), str
    ):
        raise ValueError("no id or delivery_tag")
    _check_arguments(headers.get("task"), _arguments(envelope, properties), run_of(queue))


def _arguments(envelope: dict[str, Any], properties: dict[str, Any]) -> list[Any]:
    text = envelope["body"]
    try:
        if properties.get("body_encoding") == "base64":
            text = base64.b64decode(text, validate=True)
        body = json.loads(text)
    except (ValueError, binascii.Error, RecursionError) as exc:
        raise ValueError(f"a body that cannot be read: {type(exc).__name__}") from exc
    match body:
        case [list() as arguments, dict() as named, dict()]:
            if named:
                raise ValueError(f"argument {next(iter(named))[:80]!r} by name; accepted: none")
            return arguments
    raise ValueError("a body that is not [args, kwargs, embedded]")


def _check_arguments(task: object, arguments: list[Any], run: str) -> None:
    match task, arguments:
        case (str(), [dict() as message, str()]) if task == GENERATE:
            pass
        case (str(), [list() as headers, dict() as message]) if task == GROUP:
            if not all(isinstance(header, dict) for header in headers):
                raise ValueError("results that are no objects")
        case (str(), [dict(), dict() as message]) if task in (JUDGE, SINK):
            pass
        case (str(), [str(), str(), str()]) if task == SET_ASIDE:
            return
        case (str(), []) if task == RECONCILE:
            return
        case (str(), [str()]) if task == DELIVER:
            return
        case _:
            raise ValueError(f"task {str(task)[:80]!r} is unknown or has other arguments")
    try:
        batch = Batch.from_json(message)
    except TypeError as exc:
        raise ValueError(f"a batch of another version than {VERSION}") from exc
    if not all(isinstance(value, str) for value in message.values()):
        raise ValueError("a batch whose ids are no text")
    if batch.run != run:
        raise ValueError(f"a batch of run {batch.run[:80]!r}")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object")
    return value


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
