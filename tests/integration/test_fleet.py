"""The fleet by hand: each process started on its own, as docker-compose would."""

import json
import time
from pathlib import Path

import pytest

from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts


def _workers(one: Mill, *queues: str) -> None:
    for queue in queues:
        one.start("worker", queue)


def _content(rows: list[dict[str, object]]) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in rows}


def test_a_fleet_by_hand_makes_the_same_dataset_as_run(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 50)
    with mill(tmp_path / "run", recipe(llm.base_url, {"file": str(prompts)})) as local:
        assert local.call("run").returncode == 0
        expected = {name: _content(local.rows(name)) for name in ("default", "full")}
    data = recipe(llm.base_url, {"stdin": True})
    with mill(tmp_path / "fleet", data, PREFMILL_BROKER_URL=broker_url) as fleet:
        _workers(fleet, "generate.a", "generate.b", "judge", "sink")
        fleet.start("beat")
        watching = fleet.start("status", "--watch")
        done = fleet.call("enqueue", input=prompts.read_text())
        assert done.returncode == 0, done.stderr
        assert "accepted 50 prompts" in done.stderr
        eventually(
            lambda: fleet.status()["paired"] == 50, within_s=60, what="50 pairs\n" + fleet.logs()
        )
        made = {name: _content(fleet.rows(name)) for name in ("default", "full")}
        assert watching.poll() is None or "no ledger" in fleet.logs()
    assert len(expected["default"]) == 50
    assert made == expected


def test_celerys_own_worker_command_works_as_well(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    import subprocess
    import sys

    write_prompts(tmp_path / "prompts.jsonl", 8)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as fleet:
        assert fleet.call("enqueue").returncode == 0
        queues = ",".join(
            f"mill.v1.{name}" for name in ("generate.a", "generate.b", "judge", "sink")
        )
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", queues]
        with (tmp_path / "celery.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=fleet.environment, stdout=log, stderr=log, text=True
            )
        fleet.processes.append(process)  # ended with the others
        eventually(lambda: fleet.status()["paired"] == 8, within_s=60, what=fleet.logs())


def test_following_a_growing_file_accepts_every_line_once_through_two_kills(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as fleet:
        _workers(fleet, "generate.a", "generate.b", "judge", "sink")
        for round_ in range(3):
            producer = fleet.start("enqueue", "--follow")
            for start in range(round_ * 300, (round_ + 1) * 300, 100):
                write_prompts(path, 100, start)
                eventually(
                    lambda floor=start: _accepted(fleet) > floor,
                    within_s=30,
                    what=f"lines after {start}\n" + fleet.logs(),
                )
            if round_ < 2:
                producer.kill()
                producer.wait()
        status = eventually(
            lambda: (s := fleet.status())["paired"] == 900 and s, within_s=60, what="900 pairs"
        )
        rows = fleet.rows()
    assert status["accepted"] == 900
    assert status["skipped"] == {}
    numbers = sorted(int(row["prompt"][0]["content"].split(":")[0][5:]) for row in rows)
    assert numbers == list(range(900))


def _accepted(fleet: Mill) -> int:
    done = fleet.call("status", "--json")
    return int(json.loads(done.stdout)["accepted"]) if done.returncode == 0 else 0


@pytest.mark.timeout(180)
def test_waiting_for_a_worker_is_no_failure_and_costs_no_call_twice(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 30)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"deadline": 3})
    with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as fleet:
        _workers(fleet, "generate.a", "judge", "sink")
        fleet.start("beat")
        assert fleet.call("enqueue").returncode == 0
        since = time.monotonic()
        eventually(lambda: time.monotonic() - since > 12, within_s=30, what="4 x deadline")
        assert fleet.status()["in_flight"] == 30
        _workers(fleet, "generate.b")
        status = eventually(
            lambda: (s := fleet.status())["in_flight"] == 0 and s, within_s=60, what=fleet.logs()
        )
        models = llm.stats()["models"]
    print(json.dumps(status), {name: model["requests"] for name, model in models.items()})
    assert status["paired"] == 30
    assert status["failed"] == {}
    assert all(model["repeated"] == 0 for model in models.values())
