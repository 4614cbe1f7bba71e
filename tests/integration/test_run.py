"""`prefmill run`: from prompts to a dataset that loads, killed and run again."""

import json
import os
import signal
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.llm_server import LlmServer
from tests.mill import Mill, alive, balances, descendants, eventually, mill, recipe, write_prompts

#: Slots a model of the LLM server that is interrupted.
SLOTS = 8

EIGHT = [
    "prompt",
    "prompt_id",
    "chosen",
    "chosen_model",
    "chosen_rating",
    "rejected",
    "rejected_model",
    "rejected_rating",
]


def test_a_run_ends_with_every_prompt_accounted_for_and_a_dataset_that_loads(
    tmp_path: Path,
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 60)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"topic": "none"}\nnot json\n{"instruction": "Task 1: say something."}\n')
    with (
        LlmServer(latency="fixed:0.02", judge_500=0.1, judge_malformed=0.1, judge_equal=0.1) as llm,
        mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one,
    ):
        done = one.call("run")
        assert done.returncode == 0, done.stderr + one.logs()
        status = one.status()
        calls = llm.stats()["models"]
        again = one.call("run")
        assert again.returncode == 0, again.stderr
        assert one.status() == status
        assert llm.stats()["models"] == calls
    print(json.dumps(status))
    assert status["accepted"] == 60
    assert status["in_flight"] == 0
    assert status["skipped"] == {"no_instruction": 1, "not_json": 1}
    assert set(status["failed"]) == {"judge_server_error", "unparsable_judgement"}
    assert set(status["rejected"]) == {"tie"}
    assert "one pair" in done.stdout
    rows = load_dataset(str(tmp_path / "prefmill-data/dataset"), split="train")
    full = load_dataset(str(tmp_path / "prefmill-data/dataset"), "full", split="train")
    assert rows.column_names == ["topic", *EIGHT]
    assert rows.num_rows == full.num_rows == status["rows"] == status["paired"]
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert [message["role"] for message in row["chosen"]] == ["assistant"]
        assert row["chosen"] != row["rejected"]
        assert row["chosen_rating"] > row["rejected_rating"]
        assert {row["chosen_model"], row["rejected_model"]} == {"model-a", "model-b"}
        assert row["topic"] == f"t{int(row['prompt'][0]['content'].split(':')[0][5:]) % 7}"
    assert status["calls"]["a"]["ok"] == calls["model-a"]["ok"] == 60


@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_a_killed_run_leaves_nothing_alive_and_the_next_one_pays_for_no_answer_twice(
    tmp_path: Path, whole_group: bool
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 120)
    with LlmServer(latency="fixed:0.3", slots=SLOTS) as llm:
        with mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one:
            _kill_in_the_middle(one, llm, whole_group=whole_group)
            done = one.call("run")
            assert done.returncode == 0, done.stderr + one.logs()
            status, models = one.status(), llm.stats()["models"]
        assert status["accepted"] == status["paired"] == status["rows"] == 120
        aborted, repeated, paid_twice = (
            sum(model[count] for model in models.values())
            for count in ("aborted", "repeated", "repeated_answered")
        )
        cached = sum(calls["cached"] for calls in status["calls"].values())
        print(f"{whole_group=} {aborted=} {repeated=} {paid_twice=} {cached=}")
        assert cached > 0
        # Nothing but what was in flight, or on its way to be read, at the moment of the kill.
        assert repeated <= aborted + paid_twice
        assert paid_twice <= SLOTS * len(models)


def _kill_in_the_middle(one: Mill, llm: LlmServer, *, whole_group: bool) -> None:
    process = one.start("run")
    eventually(
        lambda: llm.stats()["models"].get("judge-model", {}).get("ok", 0) > 10,
        within_s=60,
        what="some judgements",
    )
    started = descendants(process.pid)
    assert len(started) >= 6
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    eventually(lambda: not any(map(alive, started)), within_s=5, what="nothing it started is alive")


def test_ctrl_c_stops_everything_and_the_next_run_resumes(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 60)
    with (
        LlmServer(latency="fixed:0.3", slots=8) as llm,
        mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one,
    ):
        process = one.start("run")
        eventually(lambda: llm.stats()["models"], within_s=60, what="a first call")
        started = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert not any(map(alive, started))
        assert balances(one.status())
        assert one.call("run").returncode == 0
        status = one.status()
    assert status["accepted"] == status["rows"] == 60


def test_more_failures_than_allowed_end_with_exit_code_1(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 4)
    with LlmServer(latency="fixed:0.0") as llm:
        llm.script(
            [{"model": "model-a", "contains": None, "times": None, "reply": {"status": 422}}]
        )
        with mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one:
            done = one.call("run")
            status = one.status()
            assert one.call("run", "--max-failed", "100%").returncode == 0
    assert done.returncode == 1, done.stderr
    assert status["failed"] == {"too_few_generations": 4}
    assert "no pairs" in done.stdout
    assert not list((tmp_path / "prefmill-data/dataset").rglob("*.parquet"))
