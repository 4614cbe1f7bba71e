"""`prefmill metrics` beside a real fleet: its figures, and what it says when a store is away."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import make_url

from producer.children import stop
from producer.valkey import start_valkey
from tests.faults.proxy import Proxy
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.ledger import Ledger

CANARY = "canary-5f1c9a7e"

#: A scrape takes this long at most, in seconds, whatever the stores do.
BOUND_S = 4.5


class Scraped:
    """A `prefmill metrics` process, and what it says."""

    def __init__(self, one: Mill, *options: str) -> None:
        self.process = one.start("metrics", "--port", "0", *options)
        log = one.folder / f"{len(one.processes) - 1}-metrics.log"
        self.url = eventually(
            lambda: log.read_text().partition(" at ")[2].partition("\n")[0],
            within_s=20,
            what=one.logs(),
        )
        self.texts: list[str] = []

    def get(self, path: str = "/metrics") -> str:
        """The body, which must come in time."""
        since = time.monotonic()
        with urllib.request.urlopen(self.url.removesuffix("/metrics") + path, timeout=20) as reply:
            text: str = reply.read().decode()
        assert time.monotonic() - since < BOUND_S
        self.texts.append(text)
        return text

    def now(self) -> dict[str, dict[tuple[str, ...], float]]:
        """By metric, values by label values but the run's, in the order of the labels' names."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in parse(self.get()):
            for sample in family.samples:
                labels = dict(sample.labels)
                assert labels.pop("run", "mill") == "mill"
                key = tuple(labels[name] for name in sorted(labels))
                found.setdefault(sample.name.removeprefix("prefmill_"), {})[key] = sample.value
        return found

    def up(self) -> tuple[float, float]:
        """Whether broker and ledger answer."""
        up = self.now()["up"]
        return up["broker",], up["ledger",]


def _equal(found: dict[str, dict[tuple[str, ...], float]], status: dict[str, Any]) -> None:
    """The figures are those of `status --json`."""
    prompts = found["prompts"]
    assert found["prompts_accepted_total"][()] == sum(prompts.values()) == status["accepted"]
    assert prompts["", "in_flight"] == status["in_flight"]
    assert prompts["", "paired"] == status["paired"]
    for state in ("rejected", "failed"):
        assert {key[0]: n for key, n in prompts.items() if key[1] == state and n} == status[state]
    assert found["rows_total"][()] == status["rows"]
    assert {key[0]: n for key, n in found["skipped_rows_total"].items()} == status["skipped"]
    for name, of in status["calls"].items():
        ended = {key[1]: n for key, n in found["calls_total"].items() if key[0] == name}
        assert ended["ok"] == of["ok"]
        assert ended["failed"] + ended["unparsable"] == of["failed"]
        assert found["calls_retried_total"][name,] == of["retried"]
        assert found["calls_cached_total"][name,] == of["cached"]
        for way in ("input", "output"):
            assert found["tokens_total"][way, name] == of[f"{way}_tokens"]
    for name, of in status["judging"].items():
        assert found["calls_total"][name, "unparsable"] == of["unparsable"]
        assert found["judge_compared_total"][name,] == of["compared"]
        assert found["judge_flipped_total"][name,] == of["flipped"]
    for name, of in status["deliveries"].items():
        assert found["deliveries"][name, "pending"] == of["pending"]
        assert found["deliveries"][name, "delivered"] == of["delivered"]


def _prompts(folder: Path, count: int, start: int = 0) -> None:
    path = write_prompts(folder / "prompts.jsonl", count, start)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": ""}) + "\n")
        file.write(json.dumps({"instruction": f"{CANARY}\n# {start}", "topic": "t"}) + "\n")


def _always(reply: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"model": None, "contains": None, "times": None, "reply": reply}]


def test_metrics_follow_a_fleet_through_work_a_shut_door_and_the_brokers_death(
    tmp_path: Path,
) -> None:
    _prompts(tmp_path, 24)
    valkey = start_valkey(tmp_path / "valkey")
    try:
        with LlmServer(latency="fixed:0.15", slots=8, judge_malformed=0.3) as llm:
            data = recipe(
                llm.base_url,
                {"file": "prompts.jsonl"},
                judging={"order": "both"},
                hub={"repo_id": "me/preferences"},
            )
            data["endpoints"]["mock"] |= {
                "api_key_env": "LLM_KEY",
                "max_concurrency": 24,
                "timeout": 3,
            }
            keys = {"LLM_KEY": CANARY, "HF_TOKEN": CANARY, "PREFMILL_BROKER_URL": valkey.url}
            with mill(tmp_path, data, **keys) as fleet:
                scraped = Scraped(fleet)
                assert scraped.up() == (1, 0)  # no ledger yet
                llm.script(_always({"hang": True}))
                fleet.start("worker", "generate.a", "generate.b", "judge", "sink")
                assert fleet.call("enqueue").returncode == 0
                found = eventually(
                    lambda: (
                        (now := scraped.now()).get("model_calls_in_flight", {}).get(("mock", "a"))
                        and now
                    ),
                    within_s=20,
                    what="calls in flight\n" + fleet.logs(),
                )
                for name, calls in found["model_calls_in_flight"].items():
                    assert 0 <= calls <= found["model_calls_limit"][name] == 8
                assert 0 < found["endpoint_calls_in_flight"]["mock",] <= 24
                assert found["oldest_in_flight_seconds"][()] > 0
                assert sum(found["unacknowledged_messages"].values()) > 0
                assert found["workers"]["deliver",] == 0
                assert found["workers"]["generate.a",] == found["workers"]["judge",] == 1

                llm.script([])
                eventually(
                    lambda: (
                        (now := scraped.now()["prompts"])["", "paired"] and not now["", "in_flight"]
                    ),
                    within_s=40,
                    what="all done\n" + fleet.logs(),
                )
                status = fleet.status()
                assert status["judging"]["judge"]["unparsable"] > 0
                assert status["judging"]["judge"]["flipped"] > 0
                assert status["calls"]["a"]["retried"] > 0
                assert status["skipped"]
                assert status["rows"]
                found = scraped.now()
                _equal(found, status)
                assert found["delivery_lag_seconds"]["hub",] > 0
                assert found["oldest_in_flight_seconds"][()] == 0
                with ThreadPoolExecutor(16) as pool:
                    found_rows = pool.map(lambda _: scraped.now()["rows_total"][()], range(64))
                    assert set(found_rows) == {status["rows"]}

                llm.script(_always({"status": 401}))
                _prompts(tmp_path, 8, 24)
                assert fleet.call("enqueue").returncode == 0
                shut = eventually(
                    lambda: (
                        (now := scraped.now())["endpoint_shut"].get(("mock", "unauthorized"))
                        and now
                    ),
                    within_s=20,
                    what="a door that shuts\n" + fleet.logs(),
                )
                assert shut["model_shut"]["mock", "a", ""] == 0

                valkey.child.process.kill()
                eventually(
                    lambda: scraped.up() == (0, 1), within_s=10, what="a broker that is gone"
                )
                assert scraped.now()["rows_total"][()] == status["rows"]
                assert "workers" not in scraped.now()
                assert scraped.get("/healthz") == "ok\n"
                scraped.process.send_signal(signal.SIGTERM)
                assert scraped.process.wait(10) == 128 + signal.SIGTERM
                log = "".join(path.read_text() for path in tmp_path.glob("*-metrics.log"))
                assert CANARY not in "".join(scraped.texts) + log
                assert "Traceback" not in log
                for process in fleet.processes:
                    process.kill()  # without a broker they would take their time
    finally:
        stop([valkey.child], grace_s=5)


def test_stores_that_fall_silent_cost_a_scrape_seconds_and_come_back(
    tmp_path: Path, broker_url: str, postgres_url: str
) -> None:
    there = make_url(postgres_url)
    socket_file = f"{there.query['host']}/.s.PGSQL.{there.port or 5432}"
    ledger = Ledger(postgres_url)
    ledger.open_run("mill", "hash", {})
    ledger.close()
    with (
        Proxy(broker_url.removeprefix("redis+socket://")) as to_broker,
        Proxy(socket_file) as to_ledger,
    ):
        url = there.set(host="127.0.0.1", port=to_ledger.port, query={}, password=CANARY)
        data = recipe("http://127.0.0.1:9/v1", {"stdin": True})
        stores = {
            "PREFMILL_BROKER_URL": to_broker.redis_url,
            "PREFMILL_DATABASE_URL": url.render_as_string(hide_password=False),
        }
        with mill(tmp_path, data, **stores) as one:
            scraped = Scraped(one)
            eventually(lambda: scraped.up() == (1, 1), within_s=10, what=one.logs())
            to_ledger.black_hole()
            to_broker.cut()
            eventually(lambda: scraped.up() == (0, 0), within_s=10, what="both away")
            to_ledger.heal()
            to_broker.heal()
            eventually(lambda: scraped.up()[0] == 1, within_s=10, what="a broker that is back")
            assert CANARY not in "".join(scraped.texts) + one.logs()


def test_a_port_that_is_taken_and_paths_that_do_not_exist_are_told(
    tmp_path: Path, broker_url: str
) -> None:
    data = recipe("http://127.0.0.1:9/v1", {"stdin": True})
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
        scraped = Scraped(one)
        port = scraped.url.rpartition(":")[2].partition("/")[0]
        done = one.call("metrics", "--port", port)
        assert done.returncode == 2, done.stderr
        assert f"--port {port}" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        with socket.create_connection(("127.0.0.1", int(port))) as half:
            half.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more: holds up nobody
            assert scraped.up() == (1, 0)
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            scraped.get("/else")
        refused.value.close()
        del one.environment["PREFMILL_BROKER_URL"]
        assert one.call("metrics").returncode == 2
