"""Workers that die: whatever is killed and whenever, each prompt ends once and is paid once."""

import time
from pathlib import Path

import pytest

from tests.faults.fleet import RECOVERY_S, ROLES, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

PROMPTS = 72

#: A message that was popped and not yet noted is gone with its worker: the reconciler's part.
DEADLINE_S = 10

#: Slots a model of the LLM server, so what a killed worker can be about to read of one.
SLOTS = 8


@pytest.mark.timeout(240)
def test_a_worker_killed_in_the_middle_of_its_batches_costs_no_row_and_no_answer(
    tmp_path: Path, broker_url: str, fleet_url: str
) -> None:
    with LlmServer(latency="fixed:0.4", slots=SLOTS) as llm:
        data = recipe(
            llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8, "deadline": DEADLINE_S}
        )
        urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": fleet_url}
        with fleet(tmp_path, data, **urls) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            killed_at = {}
            for role, outcomes in (("generate.a", 1), ("judge", 9), ("sink", 17)):
                one.finished(outcomes)
                one.kill(role)
                killed_at[role] = time.monotonic()
                one.begin(role)
            one.settle(PROMPTS, within_s=90)
            resumed_s = {role: time.monotonic() - at for role, at in killed_at.items()}
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    print(
        {role: f"all done {seconds:.1f} s after its death" for role, seconds in resumed_s.items()}
    )
    assert resumed_s["sink"] < RECOVERY_S + 30  # what was left of the work included
    _paid_once(calls, 2 * SLOTS)


@pytest.mark.timeout(240)
def test_a_fleet_killed_as_a_whole_goes_on_where_it_was(
    tmp_path: Path, broker_url: str, fleet_url: str
) -> None:
    with LlmServer(latency="fixed:0.4", slots=SLOTS) as llm:
        data = recipe(
            llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8, "deadline": DEADLINE_S}
        )
        urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": fleet_url}
        with fleet(tmp_path, data, **urls) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            one.finished(8)
            one.kill(*ROLES)
            before = one.counts()
            killed_at = time.monotonic()
            one.begin(*ROLES)
            one.finished(before.finished + 1, within_s=RECOVERY_S)
            print(f"resumed {time.monotonic() - killed_at:.1f} s after the kill")
            one.settle(PROMPTS)
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    _paid_once(calls, 3 * SLOTS)


def _paid_once(calls: dict[str, int], on_its_way: int) -> None:
    """Nothing is asked again but what was in flight, or about to be read, when a worker died."""
    assert calls["repeated"] <= calls["aborted"] + calls["repeated_answered"]
    assert calls["repeated_answered"] <= on_its_way


DEATHS = {
    "between the pop and the table of unacknowledged messages": (
        "judge",
        {"FAULT": "kombu.transport.redis:QoS.append", "FAULT_NTH": "2"},
    ),
    "between the chord's completion and its body": (
        "generate.b",
        {"FAULT": "workers.results:Results._publish", "FAULT_NTH": "1"},
    ),
    "before the sink's commit": (
        "sink",
        {"FAULT": "workers.ledger:Ledger.commit", "FAULT_NTH": "2"},
    ),
    "after the sink's commit": (
        "sink",
        {"FAULT": "workers.ledger:Ledger.commit", "FAULT_NTH": "2", "FAULT_WHEN": "after"},
    ),
}


def _answers(llm: LlmServer, model: str) -> int:
    models = llm.stats()["models"]
    return int(models[model]["ok"]) if model in models else 0


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", DEATHS)
def test_a_death_in_the_worst_moment_costs_no_row(
    tmp_path: Path, broker_url: str, database_url: str, moment: str
) -> None:
    role, fault = DEATHS[moment]
    with LlmServer(latency="fixed:0.05") as llm:
        data = recipe(
            llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8, "deadline": 6}
        )
        urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": database_url}
        with fleet(tmp_path, data, **urls) as one:
            others = [name for name in ROLES if name != role]
            one.begin(*others)
            one.enqueue(40)
            if role == "generate.b":  # the last to end its headers, so the one that joins
                eventually(lambda: _answers(llm, "model-a") == 40, within_s=30, what=one.logs())
            one.begin(role, **fault, FAULT_ONCE=str(tmp_path / "killed"))
            one.wait_for_death(role)
            died_at = time.monotonic()
            one.begin(role)
            one.settle(40, within_s=3 * (6 + RECOVERY_S / 3))
            print(f"{moment}: all done {time.monotonic() - died_at:.1f} s later")
            calls = one.accounted(llm, 40, paired=40)
    _paid_once(calls, 40)
