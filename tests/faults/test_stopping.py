"""Workers that are told to stop under load: they leave in time and nothing is done twice."""

from pathlib import Path

import pytest

from tests.faults.fleet import ROLES, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

PROMPTS = 120

#: What Celery and the interpreter may take beside the calls under way, in seconds.
SLACK_S = 10


@pytest.mark.timeout(180)
def test_a_rolling_restart_of_every_worker_under_load_repeats_nothing(
    tmp_path: Path, broker_url: str
) -> None:
    latency_s = 0.4
    with LlmServer(latency=f"fixed:{latency_s}", slots=8) as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 4})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            took_s = {}
            for number, role in enumerate(ROLES):
                one.finished(1 + 12 * number)
                took_s[role], code = one.stop(role)
                assert code == 0, one.logs()
                one.begin(role)
            assert one.counts().in_flight > 0
            one.settle(PROMPTS)
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    print({role: f"ended after {seconds:.1f} s" for role, seconds in took_s.items()})
    assert max(took_s.values()) < SLACK_S
    assert calls["repeated"] == calls["aborted"] == 0


@pytest.mark.timeout(180)
def test_calls_longer_than_the_grace_period_are_cut_off_and_made_again(
    tmp_path: Path, broker_url: str
) -> None:
    with LlmServer(latency="fixed:8", slots=8) as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 4})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin("generate.a", options=["--grace", "2"])
            one.begin("generate.b", "judge", "sink")
            one.enqueue(8)
            eventually(lambda: _active(llm) == 8, within_s=30, what=one.logs())
            seconds, code = one.stop("generate.a")
            one.begin("generate.a")
            one.settle(8)
            calls = one.accounted(llm, 8, paired=8)
    log = (tmp_path / "generate.a.log").read_text()
    print(f"ended after {seconds:.1f} s")
    handed_back = [line for line in log.splitlines() if " reject requeue=True: " in line]
    assert len(handed_back) == 2, log  # a line for each batch
    assert all(" WARNING Task prefmill.generate[" in line for line in handed_back)
    assert "Traceback" not in log
    assert code == 0
    assert 2 <= seconds < 2 + SLACK_S
    assert calls["repeated"] == calls["aborted"] == 8


def _active(llm: LlmServer) -> int:
    models = llm.stats()["models"]
    return int(models["model-a"]["active"]) if "model-a" in models else 0
