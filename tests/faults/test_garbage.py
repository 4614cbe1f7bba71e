"""Messages that nothing can be done with: no worker ends, none is lost, each is listed."""

import base64
import json
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.fleet import ROLES, Fleet, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

QUEUES = ("generate.a", "judge", "sink")


def _message(task: str, arguments: object, **changes: Any) -> bytes:
    body = json.dumps([arguments, {}, {}]).encode()
    whole: dict[str, Any] = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": task, "id": f"x-{time.monotonic_ns()}", "lang": "py"},
        "properties": {
            "delivery_tag": f"t-{time.monotonic_ns()}",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "any"},
            "body_encoding": "base64",
        },
    }
    return json.dumps({**whole, **changes}).encode()


def _arguments(queue: str, batch: dict[str, str]) -> tuple[str, list[Any]]:
    """The task of a queue, and arguments of its form."""
    if queue.startswith("generate"):
        return "prefmill.generate", [batch, "a"]
    return f"prefmill.{queue}", [{}, batch]


def _garbage(queue: str, batch: dict[str, str]) -> dict[str, bytes]:
    """What is pushed, by a part of the reason it is listed with."""
    task, arguments = _arguments(queue, batch)
    other_run = _arguments(queue, {**batch, "run": "other"})
    other_version = _arguments(queue, {**batch, "priority": "high"})
    pickled = base64.b64encode(pickle.dumps([arguments, {}, {}])).decode()
    return {
        "not JSON": b"garbage \x80\x04",
        "no object": b"[1, 2]",
        "a body that is not": _message(task, [], body=base64.b64encode(b"[1]").decode()),
        "content-type is 'application/x-python-serialize'": _message(
            task, [], **{"content-type": "application/x-python-serialize", "body": pickled}
        ),
        "task 'os.system' is unknown": _message("os.system", ["true"]),
        "a batch of run 'other'": _message(*other_run),
        "a batch of another version": _message(*other_version),
    }


def _real_batch(client: "redis.Redis") -> dict[str, str]:
    """The batch of a message that waits."""
    raw = json.loads(client.lindex("mill.v1.generate.a", 0))
    (batch, _), _, _ = json.loads(base64.b64decode(raw["body"]))
    return dict(batch)


def _handled(one: Fleet, client: "redis.Redis") -> bool:
    waiting = sum(client.llen(f"mill.v1.{queue}") for queue in QUEUES)
    return not waiting and not client.hlen("unacked")


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_garbage_in_every_queue_ends_no_worker_and_is_listed(
    tmp_path: Path, broker_url: str
) -> None:
    path = broker_url.removeprefix("redis+socket://")
    with LlmServer(latency="fixed:0.05") as llm, redis.Redis(unix_socket_path=path) as client:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"deadline": 4})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.enqueue(24)
            batch = _real_batch(client)
            pushed = Counter[str]()
            for queue in QUEUES:
                for why, raw in _garbage(queue, batch).items():
                    client.lpush(f"mill.v1.{queue}", raw)
                    client.rpush(f"mill.v1.{queue}", raw)
                    pushed[why] += 2
                foreign = _arguments(queue, {**batch, "recipe_hash": "other"})
                client.rpush(f"mill.v1.{queue}", _message(*foreign))
            # While no generate worker is there, garbage waits and lost work is still looked for.
            one.begin("beat", "sink")
            eventually(
                lambda: not client.llen("mill.v1.sink"), within_s=40, what=f"sink\n{one.logs()}"
            )
            one.begin("generate.a", "generate.b", "judge")
            one.settle(24)
            eventually(lambda: _handled(one, client), within_s=40, what=one.logs())
            assert not [role for role in ROLES if one.roles[role].poll() is not None]
            one.accounted(llm, 24, paired=24, failed={})
            listed = json.loads(one.call("failures", "--json").stdout)["set_aside"]
            shown = one.call("failures").stdout
            logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    reasons = Counter(entry["reason"] for entry in listed)
    print(reasons)
    for why, number in pushed.items():
        assert sum(n for reason, n in reasons.items() if why in reason) >= number, why
    assert sum(reasons.values()) == sum(pushed.values())
    assert f"{len(listed)} messages set aside" in shown
    assert "task.broke" not in logs
    assert 1 <= logs.count(" task.other_recipe ") <= len(QUEUES)
