"""Messages as our own code publishes them, made by hand, so that tests can change one thing.

A message is a dictionary whose body is still an object; `packed` makes the bytes in a queue of it.
"""

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any

BATCH = {"run": "mill", "recipe_hash": "5cfa0f73" * 8, "id": "31f3f6cc725440a6bb706dc642a1c409"}

#: By a task's short name, its queue's; the order is that of a batch's way.
QUEUES = {"group": "sink", "judge": "judge", "sink": "sink"}

GROUP_ID = "34d2cf54-492f-41f6-b67d-fdb8c8df37ca"
REPLY_TO = "0d3d10d6-3966-3235-974e-54c262308b49"


def generate(batch: Mapping[str, str] = BATCH, generator: str = "a") -> dict[str, Any]:
    """Of one model's work in a chord."""
    steps = [_later(step, batch) for step in QUEUES]
    chord = {
        "task": "celery.chain",
        "args": [],
        "kwargs": {"tasks": steps},
        "options": {"task_id": f"{batch['id']}.sink"},
        "subtask_type": "chain",
        "immutable": False,
    }
    made = _message("generate", [dict(batch), generator], f"generate.{generator}", batch)
    made["headers"] |= {"group": GROUP_ID, "group_index": 0, "ignore_result": None}
    made["body"][2]["chord"] = chord
    return made


def step(name: str, given: Any, batch: Mapping[str, str] = BATCH) -> dict[str, Any]:
    """Of a later step, with what the one before it gives to it."""
    names = list(QUEUES)
    made = _message(name, [given, dict(batch)], QUEUES[name], batch)
    after = names[names.index(name) + 1 :]
    made["body"][2]["chain"] = [_later(one, batch) for one in reversed(after)]
    return made


def tick(name: str = "reconcile", *arguments: str, short: str = "sink") -> dict[str, Any]:
    """Of beat."""
    made = _message(name, list(arguments), short, None)
    expires = "2026-11-25T23:04:08.308639+00:00"
    made["headers"] |= {"expires": expires, "celery_beat_task": True}
    made["properties"]["expiration"] = "1000"
    return made


def again(message: dict[str, Any]) -> dict[str, Any]:
    """A message that was handed back, or whose worker died, as kombu changes it."""
    message["headers"]["redelivered"] = True
    message["properties"]["delivery_info"]["redelivered"] = True
    return message


def packed(message: Mapping[str, Any]) -> bytes:
    """As it lies in its queue; a body that is text already stays."""
    body = message["body"]
    if isinstance(body, list):
        body = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps({**message, "body": body}).encode()


def queue_of(message: Mapping[str, Any]) -> str:
    """The queue it belongs in."""
    return str(message["properties"]["delivery_info"]["routing_key"])


def _message(
    name: str, arguments: list[Any], short: str, batch: Mapping[str, str] | None
) -> dict[str, Any]:
    step = short if name == "generate" else name
    task_id = f"{batch['id']}.{step}" if batch else str(uuid.uuid4())
    return {
        "body": [arguments, {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))],
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": f"prefmill.{name}",
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": "(…)",
            "kwargsrepr": "{}",
            "origin": "gen5195@vm",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": REPLY_TO,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": f"mill.v1.{short}"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def _later(name: str, batch: Mapping[str, str]) -> dict[str, Any]:
    options = {
        "task_id": f"{batch['id']}.{name}",
        "queue": f"mill.v1.{QUEUES[name]}",
        "reply_to": REPLY_TO,
    }
    return {
        "task": f"prefmill.{name}",
        "args": [dict(batch)],
        "kwargs": {},
        "options": options | ({"group_id": GROUP_ID} if name == "sink" else {}),
        "subtask_type": None,
        "immutable": False,
    }
