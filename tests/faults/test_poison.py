"""Work that outlives its message's time, and prompts that kill whoever works on them."""

import json
from pathlib import Path

import pytest

from tests.faults.fleet import ROLES, VISIBILITY_TIMEOUT_S, Fleet, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def test_work_longer_than_the_visibility_timeout_is_done_once(
    tmp_path: Path, broker_url: str, database_url: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": database_url}
    with LlmServer(latency=f"fixed:{2.5 * VISIBILITY_TIMEOUT_S}") as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8})
        with fleet(tmp_path, data, **urls) as one:
            one.begin(*ROLES)
            one.enqueue(16)
            one.settle(16)
            calls = one.accounted(llm, 16, paired=16)
            received = one.logs().count("Task prefmill.generate[")
    print(f"{received=}")
    assert calls["requests"] == 48
    assert received == 4


def _keep_alive(one: Fleet, role: str, accepted: int, **fault: str) -> int:
    """Start a role again whenever it dies, until everything has ended; returns how often."""
    deaths = 0

    def ended() -> bool:
        nonlocal deaths
        if one.roles[role].poll() is not None:
            deaths += 1
            one.begin(role, **fault)
        counts = one.counts()
        assert counts.accepted == accepted
        return counts.in_flight == 0

    eventually(ended, within_s=300, what=f"everything ends\n{one.logs()}")
    return deaths


@pytest.mark.parametrize("role", ["generate.a", "judge"])
def test_a_prompt_that_kills_its_worker_each_time_is_poison_and_all_others_finish(
    tmp_path: Path, broker_url: str, database_url: str, role: str
) -> None:
    urls = {"PREFMILL_BROKER_URL": broker_url, "PREFMILL_DATABASE_URL": database_url}
    fault = {"FAULT": "workers.calls:complete", "FAULT_NTH": "0", "FAULT_TEXT": "Task 13:"}
    with LlmServer(latency="fixed:0.3") as llm:
        data = recipe(
            llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 8, "deadline": 30}
        )
        with fleet(tmp_path, data, **urls) as one:
            one.begin(*(name for name in ROLES if name != role))
            one.begin(role, **fault)
            one.enqueue(64)
            deaths = _keep_alive(one, role, 64, **fault)
            one.accounted(llm, 64, paired=63, failed={"poison": 1})
            (failure,) = json.loads(one.call("failures", "--json").stdout)["failed"]
    print(f"{deaths=}", failure)
    assert deaths == 3
    assert failure["instruction"].startswith("Task 13:")
    assert failure["attempts"] == 3
