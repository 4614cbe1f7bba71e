"""The guard in front of real workers: what Celery would die of, lose or hold for ever."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.app import make_app
from workers.guard import guarded

QUEUE = "mill.v1.generate.a"

HEADERS: list[tuple[str, Any]] = [
    ("timelimit", "x"),
    ("timelimit", [1]),
    ("timelimit", 7),
    ("stamps", "x"),
    ("stamped_headers", 5),
    ("compression", "nope"),
    ("compression", 7),
    ("compression", "gzip"),
    ("eta", "not a date"),
    ("eta", "2099-01-01T00:00:00+00:00"),
    ("expires", "never"),
    ("expires", "2020-01-01T00:00:00+00:00"),
    ("group_index", None),
    ("retries", "x"),
    ("origin", {"__type__": "nope", "__value__": 1}),
]

IDS = ["a\0b", "\ud800", "x" * 100_000]


def _bad(real: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """What is pushed, each made of a real message: a part of its reason, and the message."""
    for name, value in HEADERS:
        made = {**real, "headers": {**real["headers"], name: value}}
        yield "'nope'" if name == "origin" else f"header {name!r}", json.dumps(made).encode()
    for batch_id in IDS:
        body = base64.b64decode(real["body"]).decode()
        (batch, generator), named, embedded = json.loads(body)
        changed = [[{**batch, "id": batch_id}, generator], named, embedded]
        text = base64.b64encode(json.dumps(changed).encode()).decode()
        yield "a batch's 'id'", json.dumps({**real, "body": text}).encode()
        whole = body.replace(batch["id"], json.dumps(batch_id)[1:-1])
        text = base64.b64encode(whole.encode()).decode()
        headers = {**real["headers"], "id": f"{batch_id}.generate.a"}
        yield "header 'id'", json.dumps({**real, "body": text, "headers": headers}).encode()
    mistyped = {**real, "properties": {**real["properties"], "priority": "high"}}
    yield "property 'priority'", json.dumps(mistyped).encode()
    yield "not JSON", json.dumps(real).encode("utf-16")


@contextmanager
def _client(url: str) -> Iterator["Redis"]:
    with Redis.from_url(url.replace("redis+socket://", "unix://", 1)) as client:
        yield client


def _set_aside(one: Mill) -> list[dict[str, Any]]:
    done = one.call("failures", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["set_aside"]
    return found


@pytest.mark.timeout(180)
def test_what_celery_dies_of_or_loses_is_set_aside_and_the_batch_behind_it_is_finished(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 4)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one, _client(broker_url) as client:
        assert one.call("enqueue").returncode == 0
        bad = list(_bad(json.loads(client.lindex(QUEUE, 0))))
        client.rpush(QUEUE, *(raw for _, raw in bad))  # taken before the batch
        workers = [one.start("worker", q) for q in ("generate.a", "generate.b", "judge", "sink")]
        eventually(lambda: one.status()["paired"] == 4, within_s=60, what=one.logs())
        listed = eventually(
            lambda: len(found := _set_aside(one)) >= len(bad) and found,
            within_s=30,
            what=one.logs(),
        )
        assert [worker.poll() for worker in workers] == [None] * 4
        assert not client.hlen("unacked")
    reasons = sorted(entry["reason"] for entry in listed)
    assert len(reasons) == len(bad)
    for why in {why for why, _ in bad}:
        expected = sum(why == other for other, _ in bad)
        assert sum(why in reason for reason in reasons) == expected, (why, reasons)
    log = (tmp_path / "0-worker.log").read_text()
    assert "ready." in log
    assert log.count("message.set_aside") == len(bad)
    assert "Traceback" not in log


def _look(client: "Redis", one: Mill, url: str, short: str) -> None:
    """Hold the first message of a queue to the guard, as it waits and once it was handed back."""
    queue = f"mill.v1.{short}"
    eventually(lambda: client.llen(queue), within_s=60, what=f"{queue}\n{one.logs()}")
    raw = client.lindex(queue, -1)
    assert guarded(raw, queue) is raw
    with make_app(url).connection_for_read() as connection:
        connection.default_channel.basic_get(queue).reject(requeue=True)
    again = next(raw for raw in client.lrange(queue, 0, -1) if b"redelivered" in raw)
    assert guarded(again, queue) is again


@pytest.mark.timeout(180)
def test_every_message_that_our_own_code_publishes_is_let_through(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 4)
    places = {"hub": {"repo_id": "someone/something"}}
    data = recipe(llm.base_url, {"file": "prompts.jsonl"}, **places)
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one, _client(broker_url) as client:
        assert one.call("enqueue").returncode == 0
        # Nobody takes from a queue before it was looked into.
        for short in ("generate.a", "generate.b"):
            _look(client, one, broker_url, short)
            one.start("worker", short)
        _look(client, one, broker_url, "sink")  # group
        grouping = one.start("worker", "sink")
        _look(client, one, broker_url, "judge")
        grouping.terminate()
        grouping.wait(timeout=30)
        one.start("worker", "judge")
        _look(client, one, broker_url, "sink")
        one.start("worker", "sink")
        eventually(lambda: one.status()["paired"] == 4, within_s=60, what=one.logs())
        one.start("beat")
        _look(client, one, broker_url, "deliver")
        assert _set_aside(one) == []
