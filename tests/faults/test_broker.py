"""A broker that dies, is wiped, fills up, or falls silent: the ledger is the only memory."""

import json
import time
from pathlib import Path

import pytest

from tests.faults.fleet import ROLES, Fleet, fleet
from tests.faults.proxy import Proxy
from tests.faults.server import Server
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

PROMPTS = 96
SLOTS = 8

#: Calls of one prompt: two generators and a judge.
CALLS = 3


def _fleet_data(llm: LlmServer, **sections: int) -> dict[str, object]:
    return recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 4, **sections})


def _answers(llm: LlmServer) -> int:
    return sum(model["ok"] for model in llm.stats()["models"].values())


def _wait(seconds: float) -> None:
    """Let a fault last."""
    since = time.monotonic()
    eventually(
        lambda: time.monotonic() - since >= seconds, within_s=seconds + 5, what="time passes"
    )


def _resumes(one: Fleet, within_s: float) -> float:
    """Wait for another outcome than there are; returns the seconds."""
    since, before = time.monotonic(), one.counts().finished
    one.finished(before + 1, within_s=within_s)
    return time.monotonic() - since


@pytest.mark.timeout(180)
def test_a_broker_killed_for_10_s_loses_nothing(
    tmp_path: Path, server: Server, ledger_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": server.url, "PREFMILL_DATABASE_URL": ledger_url}
    with (
        LlmServer(latency="fixed:0.4", slots=SLOTS) as llm,
        fleet(tmp_path, _fleet_data(llm), **urls) as one,
    ):
        one.begin(*ROLES)
        one.enqueue(PROMPTS)
        one.finished(8)
        server.kill()
        _wait(10)
        server.start()
        print(f"resumed {_resumes(one, 30):.1f} s after the broker was back")
        one.settle(PROMPTS)
        calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
        assert all(one.roles[role].poll() is None for role in ROLES)
    assert calls["repeated"] == 0


@pytest.mark.timeout(180)
def test_a_wiped_broker_costs_the_calls_in_flight_at_most(
    tmp_path: Path, server: Server, ledger_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": server.url, "PREFMILL_DATABASE_URL": ledger_url}
    with (
        LlmServer(latency="fixed:0.4", slots=SLOTS) as llm,
        fleet(tmp_path, _fleet_data(llm, deadline=6), **urls) as one,
    ):
        one.begin(*ROLES)
        one.enqueue(PROMPTS)
        eventually(lambda: _answers(llm) > 24, within_s=30, what=f"answers\n{one.logs()}")
        with server.client() as client:
            wiped = client.dbsize()
            client.flushall()
        in_flight = one.counts().in_flight
        print(f"resumed {_resumes(one, 60):.1f} s after the wipe")
        one.settle(PROMPTS)
        calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    print(f"{wiped} keys were wiped while {in_flight} prompts were in flight")
    assert wiped > in_flight / 4
    assert calls["repeated"] <= CALLS * in_flight


@pytest.mark.timeout(180)
def test_a_result_store_that_is_away_during_fan_in_delays_the_body_only(
    tmp_path: Path, server: Server, ledger_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": server.url, "PREFMILL_DATABASE_URL": ledger_url}
    with (
        LlmServer(latency="fixed:0.4", slots=SLOTS) as llm,
        Proxy(server.path) as proxy,
        fleet(tmp_path, _fleet_data(llm), **urls) as one,
    ):
        one.begin(*ROLES, RESULTS_URL=proxy.redis_url)
        one.enqueue(PROMPTS)
        one.finished(4)
        proxy.cut()
        before = _answers(llm)
        _wait(10)
        during = _answers(llm) - before
        proxy.heal()
        print(f"{during} answers while no header could end; then {_resumes(one, 30):.1f} s")
        one.settle(PROMPTS)
        calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
        assert not [name for name in ROLES if one.roles[name].poll() is not None]
    assert proxy.accepted > 0
    assert during > 0
    assert calls["repeated"] == 0


@pytest.mark.timeout(180)
def test_a_full_broker_pauses_the_producer_with_one_clear_message(
    tmp_path: Path, server: Server, ledger_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": server.url, "PREFMILL_DATABASE_URL": ledger_url}
    instruction = "say something. " + "x" * 20_000
    with (
        LlmServer(latency="fixed:0.02") as llm,
        server.client() as client,
        fleet(tmp_path, _fleet_data(llm, deadline=6), **urls) as one,
    ):
        one.begin(*ROLES)
        one.enqueue(PROMPTS // 2)
        one.settle(PROMPTS // 2)
        client.set("ballast", b"x" * 20_000_000)
        client.config_set("maxmemory", "20mb")
        with (tmp_path / "prompts.jsonl").open("a") as file:
            for number in range(PROMPTS // 2, PROMPTS):
                line = {"instruction": f"Task {number}: {instruction}", "topic": "t0"}
                file.write(json.dumps(line) + "\n")
        feeding = one.start("enqueue")
        log = next(tmp_path.glob("*-enqueue.log"))
        eventually(lambda: "feed.paused" in log.read_text(), within_s=30, what="a pause")
        _wait(6)
        told = [line for line in log.read_text().splitlines() if "feed.paused" in line]
        print("\n".join(told))
        assert len(told) == 1
        assert "maxmemory" in told[0]
        assert feeding.poll() is None
        client.delete("ballast")
        assert feeding.wait(timeout=30) == 0, log.read_text()
        one.settle(PROMPTS)
        one.accounted(llm, PROMPTS, paired=PROMPTS)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_connection_to_the_broker_that_falls_silent_for_60_s_heals_by_itself(
    tmp_path: Path, server: Server, ledger_url: str
) -> None:
    with LlmServer(latency="fixed:0.4", slots=SLOTS) as llm, Proxy(server.path) as proxy:
        urls = {"PREFMILL_BROKER_URL": proxy.redis_url, "PREFMILL_DATABASE_URL": ledger_url}
        with fleet(tmp_path, _fleet_data(llm, deadline=20), **urls) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            one.finished(8)
            proxy.black_hole()
            _wait(60)
            proxy.heal()
            print(f"resumed {_resumes(one, 60):.1f} s after the network was back")
            one.settle(PROMPTS, within_s=120)
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
            assert not [name for name in ROLES if one.roles[name].poll() is not None]
    assert calls["repeated_answered"] == 0
