"""What a worker takes from a queue, and what is set aside instead of ending it."""

import base64
import json
from typing import Any

import pytest

from workers.guard import KEPT_CHARACTERS, MAX_MESSAGE_BYTES, guarded

QUEUE = "mill.v1.judge"
BATCH = {"run": "mill", "recipe_hash": "h", "id": "b"}


def message(
    task: str, arguments: object, named: dict[str, str] | None = None, **changes: Any
) -> bytes:
    body = json.dumps([arguments, named or {}, {"chord": None}]).encode()
    whole = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": task, "id": "b.step"},
        "properties": {
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "body_encoding": "base64",
        },
        **changes,
    }
    return json.dumps(whole).encode()


def set_aside(raw: bytes) -> tuple[str, str, str]:
    """The text, reason and queue of the message that took this one's place."""
    made = json.loads(guarded(raw, QUEUE))
    assert made["headers"]["task"] == "prefmill.set_aside"
    assert guarded(json.dumps(made).encode(), QUEUE) == json.dumps(made).encode()
    (text, why, queue), _, _ = json.loads(base64.b64decode(made["body"]))
    return text, why, queue


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("prefmill.generate", [BATCH, "a"]),
        ("prefmill.group", [[{"key": {}}, {}], BATCH]),
        ("prefmill.judge", [{"key": []}, BATCH]),
        ("prefmill.sink", [{"generations": {}, "judgements": {}}, BATCH]),
        ("prefmill.reconcile", []),
    ],
)
def test_a_message_of_ours_passes_as_it_came(task: str, arguments: list[Any]) -> None:
    raw = message(task, arguments)
    assert guarded(raw, QUEUE) is raw


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"garbage", "not JSON"),
        (b"\x80\x04\x95", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"", "not JSON"),
        (b"[1, 2]", "the message is no object"),
        (b"null", "the message is no object"),
        (b"{}", "headers is no object"),
        (message("prefmill.judge", [{}, BATCH], headers=[]), "headers is no object"),
        (message("prefmill.judge", [{}, BATCH], headers={"task": "prefmill.judge"}), "no id"),
        (message("prefmill.judge", [{}, BATCH], properties={}), "delivery_info is no object"),
        (message("prefmill.judge", [{}, BATCH], body=[1]), "no body"),
        (message("prefmill.judge", [{}, BATCH], body="[1]"), "body that cannot be read"),
        (
            message("prefmill.judge", [{}, BATCH], body=base64.b64encode(b"[1]").decode()),
            "not [args, kwargs, embedded]",
        ),
        (
            message(
                "prefmill.judge", [{}, BATCH], **{"content-type": "application/x-python-serialize"}
            ),
            "not JSON",
        ),
        (message("os.system", [{}, BATCH]), "'os.system' is unknown"),
        (message("prefmill.judge", [BATCH]), "has other arguments"),
        (message("prefmill.generate", [BATCH, 3]), "has other arguments"),
        (message("prefmill.group", [[[1]], BATCH]), "results that are no objects"),
        (message("prefmill.judge", [{}, {**BATCH, "run": "other"}]), "a batch of run 'other'"),
        (message("prefmill.judge", [{}, {**BATCH, "more": "x"}]), "another version than v1"),
        (message("prefmill.judge", [{}, {"run": "mill"}]), "another version than v1"),
        (message("prefmill.judge", [{}, {**BATCH, "id": 7}]), "ids are no text"),
        (message("prefmill.judge", [{}, {**BATCH, "base_url": "http://h"}]), "another version"),
        (message("prefmill.generate", [BATCH, "a", "http://h"]), "has other arguments"),
        (
            message("prefmill.judge", [{}, BATCH], named={"base_url": "http://h"}),
            "'base_url' by name",
        ),
        (
            message(
                "prefmill.judge",
                [{}, BATCH],
                headers={"task": "prefmill.judge", "id": "b.step", "api_key": "sk"},
            ),
            "header 'api_key'; accepted: none with an address or a key",
        ),
    ],
)
def test_what_no_worker_can_work_on_is_set_aside_with_the_reason(raw: bytes, why: str) -> None:
    text, said, queue = set_aside(raw)
    assert why in said
    assert queue == QUEUE
    assert text == raw.decode("utf-8", "replace")[:KEPT_CHARACTERS]


def test_a_large_message_is_kept_in_part() -> None:
    text, _, _ = set_aside(b"x" * 1_000_000)
    assert len(text) == KEPT_CHARACTERS


def test_a_message_that_is_too_large_is_not_even_read() -> None:
    text, why, _ = set_aside(b"[" + b" " * MAX_MESSAGE_BYTES)
    assert why == f"{MAX_MESSAGE_BYTES + 1:,} bytes; accepted: at most {MAX_MESSAGE_BYTES:,}"
    assert len(text) == KEPT_CHARACTERS


def test_headers_of_beat_and_of_tracing_are_let_through() -> None:
    headers = {
        "task": "prefmill.reconcile",
        "id": "x",
        "celery_beat_task": True,
        "traceparent": "0",
    }
    raw = message("prefmill.reconcile", [], headers=headers)
    assert guarded(raw, QUEUE) is raw
