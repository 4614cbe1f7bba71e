"""What a worker takes from a queue, and what is set aside instead of ending it."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages import BATCH, GROUP_ID, again, generate, packed, queue_of, step, tick
from workers.envelope import EMBEDDED, HEADERS, PROPERTIES
from workers.guard import KEPT_CHARACTERS, MAX_MESSAGE_BYTES, guarded

QUEUE = "mill.v1.judge"


def judge(**changes: Any) -> bytes:
    """A message for the judge in which fields are changed."""
    return packed({**step("judge", {}), **changes})


def with_body(arguments: object, named: object = None, embedded: object = None) -> bytes:
    message = step("judge", {})
    message["body"] = [arguments, named or {}, message["body"][2] if embedded is None else embedded]
    return packed(message)


def with_value(part: str, name: str, value: object) -> bytes:
    """A message for the judge with one header or property changed."""
    message = step("judge", {})
    message[part][name] = value
    return packed(message)


def set_aside(raw: bytes, queue: str = QUEUE) -> tuple[str, str]:
    """The text and the reason of the message that took this one's place."""
    made = guarded(raw, queue)
    assert json.loads(made)["headers"]["task"] == "prefmill.set_aside"
    assert guarded(made, queue) == made
    (text, why, where), _, _ = json.loads(base64.b64decode(json.loads(made)["body"]))
    assert where == queue
    assert why.isascii()
    return text, why


OURS = [
    generate(),
    generate(generator="a-2"),
    step("group", [{"key": [{"text": "\0 \ud800"}]}, {}]),
    step("judge", {"key": []}),
    step("sink", {"generations": {}, "judgements": {}}),
    tick(),
    tick("deliver", "hub", short="deliver"),
]


@pytest.mark.parametrize("message", OURS, ids=lambda message: str(message["headers"]["task"]))
def test_a_message_of_ours_passes_as_it_came_and_when_it_comes_again(message: Any) -> None:
    raw = packed(message)
    assert guarded(raw, queue_of(message)) is raw
    raw = packed(again(json.loads(json.dumps(message))))
    assert guarded(raw, queue_of(message)) is raw


def test_a_message_that_was_set_aside_may_come_again_as_well() -> None:
    made = again(json.loads(guarded(b"garbage", QUEUE)))
    assert guarded(packed(made), QUEUE) == packed(made)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"garbage", "not JSON"),
        (b"\x80\x04\x95", "not JSON"),
        (json.dumps(step("judge", {})).encode("utf-16"), "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * 100 + b"]" * 100, "nested too deep"),
        (b"", "not JSON"),
        (b"[1, 2]", "field [1, 2] is no object"),
        (b"null", "field None is no object"),
        (b"{}", "field 'body' is missing; accepted: text"),
        (judge(headers=[]), "field 'headers' is []; accepted: an object"),
        (judge(headers={"task": "prefmill.judge"}), "header 'id' is missing"),
        (judge(properties={}), "property 'delivery_info' is missing"),
        (judge(more=1), "field 'more'; accepted: body, "),
        (judge(body=[1, 2]), "a body that is not [args, kwargs, embedded]"),
        (judge(body=7), "field 'body' is 7; accepted: text"),
        (judge(body="[1]"), "body that cannot be read"),
        (judge(body="\u00e9"), "body that cannot be read"),
        (judge(body=base64.b64encode(b"[\xff]").decode()), "body that cannot be read"),
        (
            judge(**{"content-type": "application/x-python-serialize"}),
            "'content-type' is 'application/x-python-serialize'; accepted: 'application/json'",
        ),
        (judge(**{"content-encoding": "nope"}), "'content-encoding' is 'nope'; accepted: 'utf-8'"),
        (with_value("headers", "task", "os.system"), "task 'os.system' is unknown"),
        (with_body([BATCH]), "has other arguments"),
        (with_body([{}, {**BATCH, "run": "other"}]), "a batch of run 'other'; accepted: 'mill'"),
        (with_body([{}, {**BATCH, "more": "x"}]), "another version than v1"),
        (with_body([{}, {"run": "mill"}]), "another version than v1"),
        (with_body([{}, {**BATCH, "base_url": "http://h"}]), "another version"),
        (with_body([{}, {**BATCH, "id": 7}]), "'id' is 7; accepted: 32 of 0-9 and a-f"),
        (with_body([{}, {**BATCH, "id": "a\0b"}]), r"'id' is 'a\x00b'; accepted: 32 of"),
        (with_body([{}, {**BATCH, "id": "\ud800"}]), r"'id' is '\ud800'; accepted: 32 of"),
        (with_body([{}, {**BATCH, "id": BATCH["id"] + "\n"}]), "accepted: 32 of 0-9 and a-f"),
        (with_body([{}, {**BATCH, "recipe_hash": "h"}]), "'recipe_hash' is 'h'; accepted: 64 of"),
        (with_body([{}, {**BATCH, "id": "0" * 32}]), f"header 'id' is '{BATCH['id']}.judge'"),
        (with_body([{}, BATCH], {"base_url": "http://h"}), "'base_url' by name"),
        (
            with_body([{"x": {"__type__": "nope", "__value__": 1}}, BATCH]),
            "a value of type 'nope'; accepted: plain JSON",
        ),
        (with_body([{}, BATCH], embedded={}), "0 later steps; accepted: 1"),
        (with_value("headers", "api_key", "sk-1"), "header 'api_key'; accepted: lang, task, "),
        (with_value("headers", "\u202e", 1), r"header '\u202e'; accepted: lang"),
    ],
)
def test_what_no_worker_can_work_on_is_set_aside_with_the_reason(raw: bytes, why: str) -> None:
    text, said = set_aside(raw)
    assert why in said
    assert "sk-1" not in said
    assert text == raw.decode("utf-8", "replace")[:KEPT_CHARACTERS]


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "lang": ["php", None],
        "task": [None, 7, ["prefmill.judge"]],
        "id": [None, 7, "x", f"{BATCH['id']}.sink", f"{BATCH['id']}.judge\0", GROUP_ID],
        "shadow": ["x", 7, ""],
        "eta": ["not a date", "2099-01-01T00:00:00+00:00", 7, ""],
        "expires": ["never", 7, "2020-01-01T00:00:00+00:00", "2020-13-01T00:00:00+00:00"],
        "group": ["x", 7, {}, f"mill.{BATCH['id']}\n"],
        "group_index": [-1, "0", 1.0, True, 10**6],
        "retries": [1, "0", None, False, 0.0],
        "timelimit": ["x", [1], 7, [1, 2], [None], None, "", {}],
        "root_id": [None, 7, "\ud800"],
        "parent_id": [7, "x"],
        "argsrepr": [None, 7, []],
        "kwargsrepr": [None, 7, []],
        "origin": [None, 7],
        "ignore_result": [0, 1, "no"],
        "replaced_task_nesting": [1, "x", None],
        "stamped_headers": [5, [], ["stamps"], "x"],
        "stamps": ["x", {"a": 1}, [], None],
        "celery_beat_task": [1, False, "x"],
        "redelivered": [1, False, "x"],
        "traceparent": [7, None, "a\nb", "\ud800"],
        "tracestate": [7],
        "baggage": [7, "x" * 8193],
    }.items(),
)
def test_each_header_has_the_values_of_ours_and_no_other(name: str, values: list[Any]) -> None:
    for value in values:
        _, why = set_aside(with_value("headers", name, value))
        assert f"header {name!r} is " in why, value
        assert "; accepted: " in why
        assert len(why) < 400


@pytest.mark.parametrize("name", ["compression", "meth", "utc", "x-death", "headers", "args"])
def test_headers_that_ours_never_have_are_set_aside_whatever_they_hold(name: str) -> None:
    for value in ("nope", 7, None, "application/x-gzip"):
        _, why = set_aside(with_value("headers", name, value))
        assert f"header {name!r}; accepted: " in why


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "correlation_id": [None, 7, "x"],
        "reply_to": [None, 7, "x"],
        "delivery_mode": ["2", 1, None],
        "delivery_info": [None, [], {}, {"exchange": ""}],
        "delivery_tag": [None, 7, "t", ["t"]],
        "priority": [9, "high", None],
        "expiration": [7, "-1", "x"],
        "body_encoding": [None, "utf-8", "rot13", 7],
        "headers": [{}],
    }.items(),
)
def test_each_property_has_the_values_of_ours_and_no_other(name: str, values: list[Any]) -> None:
    for value in values:
        _, why = set_aside(with_value("properties", name, value))
        assert name in why or "delivery_info" in why


@pytest.mark.parametrize(
    "way",
    [
        {"exchange": "x", "routing_key": QUEUE},
        {"exchange": "", "routing_key": "mill.v1.sink"},
        {"exchange": "", "routing_key": QUEUE, "redelivered": "x"},
        {"exchange": "", "routing_key": QUEUE, "consumer_tag": "x"},
    ],
)
def test_a_message_goes_back_to_its_own_queue_alone(way: dict[str, str]) -> None:
    _, why = set_aside(with_value("properties", "delivery_info", way))
    assert why.startswith("delivery_info ")


def _changed_step(**changes: Any) -> bytes:
    message = step("judge", {})
    message["body"][2]["chain"][0] |= changes
    return packed(message)


@pytest.mark.parametrize(
    "raw",
    [
        _changed_step(task="os.system"),
        _changed_step(args=[]),
        _changed_step(args=[{**BATCH, "id": "0" * 32}]),
        _changed_step(kwargs={"a": 1}),
        _changed_step(subtask_type="group"),
        _changed_step(immutable=True),
        _changed_step(chord_size=2),
        _changed_step(options={"queue": "mill.v1.sink"}),
        _changed_step(options={"task_id": f"{BATCH['id']}.sink", "queue": "other.v1.sink"}),
        _changed_step(
            options={"task_id": f"{BATCH['id']}.sink", "queue": "mill.v1.sink", "countdown": 9}
        ),
    ],
)
def test_what_celery_publishes_after_a_step_is_the_batchs_next_step(raw: bytes) -> None:
    _, why = set_aside(raw)
    assert why.startswith("a later step's ")


@pytest.mark.parametrize("name", [*EMBEDDED, "id", "timelimit", "delivery_info"])
@pytest.mark.parametrize("value", [7, "x", [None], {}, {"task": "os.system"}])
def test_nothing_else_is_embedded(name: str, value: object) -> None:
    for message in (generate(), step("judge", {}), step("sink", {}), tick()):
        message["body"][2][name] = value
        set_aside(packed(message), queue_of(message))


def test_a_header_of_a_chord_says_which_chord() -> None:
    for name in ("group", "group_index"):
        message = generate()
        message["headers"][name] = None
        _, why = set_aside(packed(message), queue_of(message))
        assert why == f"header {name!r} is None; accepted: a chord's"


def test_a_step_waits_in_its_own_queue_alone() -> None:
    message = step("sink", {})
    message["properties"]["delivery_info"]["routing_key"] = QUEUE
    _, why = set_aside(packed(message))
    assert why == "the queue of prefmill.sink is 'mill.v1.judge'; accepted: 'mill.v1.sink'"


def test_a_tick_has_no_id_of_a_step() -> None:
    message = tick()
    message["headers"]["id"] = f"{BATCH['id']}.sink"
    _, why = set_aside(packed(message), queue_of(message))
    assert "accepted: a UUID" in why


def test_a_chord_that_is_named_after_its_batch_is_let_through() -> None:
    message = generate()
    message["headers"]["group"] = f"mill.{BATCH['id']}"
    assert guarded(packed(message), queue_of(message)) == packed(message)


def test_headers_of_tracing_are_let_through() -> None:
    raw = with_value("headers", "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00-01")
    assert guarded(raw, QUEUE) is raw


def test_a_large_message_is_kept_in_part() -> None:
    text, _ = set_aside(b"x" * 1_000_000)
    assert len(text) == KEPT_CHARACTERS


def test_a_message_that_is_too_large_is_not_even_read() -> None:
    text, why = set_aside(b"[" + b" " * MAX_MESSAGE_BYTES)
    assert why == f"{MAX_MESSAGE_BYTES + 1:,} bytes; accepted: at most {MAX_MESSAGE_BYTES:,}"
    assert len(text) == KEPT_CHARACTERS


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(OURS),
    st.sampled_from(["headers", "properties", "delivery_info", "embedded", "batch", "whole"]),
    st.sampled_from([*HEADERS, *PROPERTIES, *EMBEDDED, "compression"]) | st.text(),
    _JSON,
)
def test_whatever_stands_in_a_message_the_guard_answers(
    message: dict[str, Any], part: str, name: str, value: Any
) -> None:
    copy = json.loads(json.dumps(message))
    parts = {
        "headers": copy["headers"],
        "properties": copy["properties"],
        "delivery_info": copy["properties"]["delivery_info"],
        "embedded": copy["body"][2],
        "batch": next((one for one in copy["body"][0] if isinstance(one, dict)), {}),
        "whole": copy,
    }
    parts[part][name] = value
    raw, queue = packed(copy), queue_of(message)
    made = guarded(raw, queue)
    assert made is raw or json.loads(made)["headers"]["task"] == "prefmill.set_aside"
    assert guarded(made, queue) is made
