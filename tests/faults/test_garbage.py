"""Messages that nothing can be done with: no worker ends, none is lost, each is listed."""

import base64
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.fleet import ROLES, Fleet, fleet
from tests.llm_server import LlmServer
from tests.messages import generate, packed, step
from tests.mill import eventually, recipe

QUEUES = ("generate.a", "judge", "sink")


def _step(queue: str, batch: dict[str, str]) -> dict[str, Any]:
    """A message for a queue."""
    if queue.startswith("generate"):
        return generate(batch, "a")
    return step(queue, {}, batch)


def _garbage(queue: str, batch: dict[str, str]) -> dict[str, bytes]:
    """What is pushed, by a part of the reason it is listed with."""
    ours = _step(queue, batch)
    pickled = base64.b64encode(pickle.dumps([[], {}, {}])).decode()
    return {
        "not JSON": b"garbage \x80\x04",
        "field [1, 2] is no object": b"[1, 2]",
        "a body that is not": packed({**ours, "body": [1]}),
        "'content-type' is 'application/x-python-serialize'": packed(
            {**ours, "content-type": "application/x-python-serialize", "body": pickled}
        ),
        "task 'os.system' is unknown": packed(
            {**ours, "headers": {**ours["headers"], "task": "os.system"}}
        ),
        "header 'timelimit' is 'x'": packed(
            {**ours, "headers": {**ours["headers"], "timelimit": "x"}}
        ),
        "a batch of run 'other'": packed(_step(queue, {**batch, "run": "other"})),
        "a batch of another version": packed(_step(queue, {**batch, "priority": "high"})),
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
                foreign = _step(queue, {**batch, "recipe_hash": "0" * 64})
                client.rpush(f"mill.v1.{queue}", packed(foreign))
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
