"""What is around the arguments in a message of ours: Celery's protocol 2, and kombu's; pure.

Celery trusts what a message says of itself: a time limit that is no pair ends the worker, a date
that is none has the message discarded, an `eta` holds it for ever, a `compression` is unpacked. We
use next to nothing of all that, so each field has the form that ours have.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from workers.forms import LIST, NULL, OBJECT, TEXT, Form, check, like, only, or_null

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SLUG = "[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"
_BATCH = "[0-9a-f]{32}"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?\+00:00", re.ASCII)

UUID = like(_UUID, "a UUID")
SLUG = like(_SLUG, "a name of a-z, 0-9 and -")
BATCH_ID = like(_BATCH, "32 of 0-9 and a-f")
RECIPE_HASH = like("[0-9a-f]{64}", "64 of 0-9 and a-f")

_TASK_ID = like(
    rf"{_BATCH}\.(?:group|judge|sink|generate\.{_SLUG})|{_UUID}", "<batch>.<step> or a UUID"
)
_CHORD_ID = like(rf"{_UUID}|{_SLUG}\.{_BATCH}", "a UUID or <run>.<batch>")
_TRACE = like(r"[\x20-\x7e]{0,8192}", "at most 8,192 printable characters")


def _is_moment(found: object) -> bool:
    try:
        return isinstance(found, str) and bool(
            _MOMENT.fullmatch(found) and datetime.fromisoformat(found)
        )
    except ValueError:
        return False


_FIELDS = {
    "body": TEXT,
    "content-encoding": only("utf-8"),
    "content-type": only("application/json"),
    "headers": OBJECT,
    "properties": OBJECT,
}

#: Celery's headers, beat's, kombu's on a message that comes again, and those of tracing (W3C),
#: which nobody reads.
HEADERS = {
    "lang": only("py"),
    "task": TEXT,
    "id": _TASK_ID,
    "shadow": NULL,
    "eta": NULL,
    "expires": or_null(Form(_is_moment, "a moment in UTC")),
    "group": or_null(_CHORD_ID),
    "group_index": or_null(
        Form(lambda found: type(found) is int and 0 <= found < 10**6, "0 to 999,999")
    ),
    "retries": only(0),
    "timelimit": only([None, None]),
    "root_id": _TASK_ID,
    "parent_id": or_null(_TASK_ID),
    "argsrepr": TEXT,
    "kwargsrepr": TEXT,
    "origin": TEXT,
    "ignore_result": only(None, False, True),
    "replaced_task_nesting": only(0),
    "stamped_headers": NULL,
    "stamps": only({}),
    "celery_beat_task": only(True),
    "redelivered": only(True),
    "traceparent": _TRACE,
    "tracestate": _TRACE,
    "baggage": _TRACE,
}

PROPERTIES = {
    "correlation_id": _TASK_ID,
    "reply_to": like(f"(?:{_UUID})?", "a UUID or no text"),
    "delivery_mode": only(2),
    "delivery_info": OBJECT,
    "delivery_tag": UUID,
    "priority": only(0),
    "expiration": like("[0-9]{1,12}", "milliseconds"),
    "body_encoding": only("base64"),
}

#: What Celery does once a task has ended.
EMBEDDED = {
    "callbacks": NULL,
    "errbacks": NULL,
    "chain": or_null(LIST),
    "chord": or_null(OBJECT),
}

#: A step that Celery is to publish, and what joins a chord: all steps after it.
_SIGNATURE = {"args": LIST, "kwargs": OBJECT, "options": OBJECT, "immutable": only(False)}
_STEP = {**_SIGNATURE, "task": TEXT, "kwargs": only({}), "subtask_type": NULL}
_CHAIN = {
    **_SIGNATURE,
    "task": only("celery.chain"),
    "args": only([]),
    "subtask_type": only("chain"),
}


def headers_of(message: object, queue: str) -> dict[str, Any]:
    """The headers of a message that lies in a queue, all of it but the body being as it should.

    Raises: ValueError.
    """
    fields = check(message, _FIELDS, "field", _FIELDS)
    # It comes back to its queue by these.
    way = {"exchange": only(""), "routing_key": only(queue), "redelivered": only(True, False)}
    needed = ("delivery_info", "delivery_tag", "body_encoding")
    properties = check(fields["properties"], PROPERTIES, "property", needed)
    check(properties["delivery_info"], way, "delivery_info", ("exchange", "routing_key"))
    return check(fields["headers"], HEADERS, "header", ("task", "id"))


def check_step(
    signature: object, task: str, task_id: str, queue: str, batch: Mapping[str, str]
) -> None:
    """Whether a signature publishes this step of a batch. Raises: ValueError."""
    forms = {**_STEP, "task": only(task), "args": only([dict(batch)])}
    found = check(signature, forms, "a later step's", forms)
    options = {
        "task_id": only(task_id),
        "queue": only(queue),
        "reply_to": UUID,
        "group_id": or_null(_CHORD_ID),
    }
    check(found["options"], options, "a later step's option", ("task_id", "queue"))


def chained(signature: object, task_id: str) -> list[Any]:
    """The signatures in what joins a chord. Raises: ValueError."""
    found = check(signature, _CHAIN, "the chord's", _CHAIN)
    check(found["options"], {"task_id": only(task_id)}, "the chord's option")
    tasks: list[Any] = check(found["kwargs"], {"tasks": LIST}, "the chord's", ("tasks",))["tasks"]
    return tasks
