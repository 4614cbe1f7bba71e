"""Messages that are delivered twice: each slot is filled once, each prompt ends once."""

import time
from pathlib import Path

import pytest
import redis

from tests.faults.fleet import Fleet, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe


def _client(broker_url: str) -> "redis.Redis":
    return redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://"))


def _waiting(client: "redis.Redis", one: Fleet, queue: str, count: int) -> list[bytes]:
    """The raw messages of a queue, once there are so many."""

    def look() -> list[bytes]:
        found: list[bytes] = client.lrange(f"mill.v1.{queue}", 0, -1)
        return found if len(found) >= count else []

    found: list[bytes] = eventually(look, within_s=60, what=f"{queue} fills\n{one.logs()}")
    return found


@pytest.mark.timeout(180)
def test_a_header_that_comes_twice_with_another_text_fills_its_slot_once(
    tmp_path: Path, broker_url: str, fleet_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": fleet_url}
    with LlmServer(latency="fixed:0.02") as llm, _client(broker_url) as client:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8})
        with fleet(tmp_path, data, **urls) as one:
            one.enqueue(16)
            copies = _waiting(client, one, "generate.a", 2)
            llm.script(
                [{"model": "model-a", "times": 16, "contains": None, "reply": {"content": "one"}}]
            )
            one.begin("generate.a")
            eventually(
                lambda: not client.llen("mill.v1.generate.a") and not client.hlen("unacked"),
                within_s=60,
                what="the first delivery\n" + one.logs(),
            )
            assert llm.stats()["models"]["model-a"]["ok"] == 16
            # As if Redis had forgotten that it was answered: the second delivery asks again.
            for key in client.scan_iter("prefmill:mill:answers:*"):
                client.delete(key)
            client.lpush("mill.v1.generate.a", *copies)
            eventually(
                lambda: llm.stats()["models"]["model-a"]["ok"] == 32,
                within_s=60,
                what="the second delivery\n" + one.logs(),
            )
            one.begin("generate.b", "judge", "sink")
            one.settle(16)
            one.accounted(llm, 16, paired=16)
            for row in one.rows("full"):
                assert row["generation_models"] == ["model-a", "model-b"]
                assert row["generations"][0] == "one"


@pytest.mark.timeout(180)
def test_bodies_that_come_twice_at_once_on_two_workers_make_one_row(
    tmp_path: Path, broker_url: str, fleet_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": fleet_url}
    with LlmServer(latency="fixed:0.02") as llm, _client(broker_url) as client:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8})
        with fleet(tmp_path, data, **urls) as one:
            one.begin("generate.a", "generate.b")
            one.enqueue(32)
            groups = _waiting(client, one, "sink", 4)
            client.lpush("mill.v1.sink", *groups)
            since = time.monotonic()
            one.begin("sink#1", "sink#2")
            judged = _waiting(client, one, "judge", 4)
            client.lpush("mill.v1.judge", *judged)
            one.begin("judge#1", "judge#2")
            one.settle(32)
            eventually(
                lambda: not client.hlen("unacked") and not client.llen("mill.v1.sink"),
                within_s=60,
                what="the copies are worked on\n" + one.logs(),
            )
            print(
                f"{len(groups)} groups and {len(judged)} judgements twice: "
                f"{time.monotonic() - since:.1f} s"
            )
            calls = one.accounted(llm, 32, paired=32)
    assert calls["repeated_answered"] == 0
