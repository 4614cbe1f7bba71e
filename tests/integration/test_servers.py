"""The tests' own servers do what they say: otherwise no other integration test means anything."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer, hub_environment
from tests.llm_server import JUDGE_MARK, LlmServer

REPOSITORY = "argilla/10Kprompts-mini"
SCHEMA = {"properties": {"texts": {"type": "array", "minItems": 3}}}
JUDGED = f"{JUDGE_MARK.decode()}: Task 7 <text 1> a <text 2> b"


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    with LlmServer(latency="fixed:0.02", slots="64,narrow=1", judge_malformed=0.0) as running:
        yield running


@pytest.fixture
def llm(server: LlmServer) -> LlmServer:
    server.reset()
    return server


def ask(llm: LlmServer, prompt: str, *, timeout: float = 10, **more: Any) -> httpx.Response:
    asked = {"model": "a", "messages": [{"role": "user", "content": prompt}], **more}
    headers = {"Authorization": "Bearer key-1"}
    url = f"{llm.base_url}/chat/completions"
    with httpx.Client(timeout=timeout, trust_env=False, verify=False) as client:
        return client.post(url, json=asked, headers=headers)


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def counts(llm: LlmServer, model: str = "a") -> dict[str, Any]:
    found: dict[str, Any] = llm.stats()["models"][model]
    return found


def eventually(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "the deadline passed"
        time.sleep(0.01)


def test_the_same_body_gets_the_same_answer_and_is_counted_as_answered_twice(
    llm: LlmServer,
) -> None:
    assert content(ask(llm, "Task 1")) == content(ask(llm, "Task 1"))
    assert content(ask(llm, "Task 2")) != content(ask(llm, "Task 1"))
    seen = counts(llm)
    assert (seen["requests"], seen["ok"], seen["unique"], seen["repeated"]) == (4, 4, 2, 2)
    assert seen["repeated_answered"] == 2
    assert [times for _, times in seen["repeats"]] == [3]
    assert llm.stats()["keys"] == ["Bearer key-1"]


def test_a_repeat_after_an_error_was_not_answered_twice(llm: LlmServer) -> None:
    llm.script([{"times": 1, "reply": {"status": 500}}])
    assert [ask(llm, "Task 1").status_code for _ in range(2)] == [500, 200]
    seen = counts(llm)
    assert (seen["errors"], seen["repeated"], seen["repeated_answered"]) == (1, 1, 0)


def test_each_choice_is_another_text(llm: LlmServer) -> None:
    choices = ask(llm, "Task 1", n=3).json()["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 3


def test_a_model_serves_no_more_than_its_slots_and_the_rest_wait(llm: LlmServer) -> None:
    llm.script([{"times": 1, "reply": {"raw": "{}", "trickle_s": 0.3}}])
    threads = [
        threading.Thread(target=ask, args=(llm, f"Task {n}"), kwargs={"model": "narrow"})
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = counts(llm, "narrow")
    assert (seen["ok"], seen["max_active"], seen["active"], seen["waiting"]) == (4, 1, 0, 0)
    assert seen["max_waiting"] >= 1
    assert seen["busy_s"] >= seen["nominal_s"] == pytest.approx(0.08)


def test_a_client_that_leaves_frees_its_slot_and_its_place_in_the_queue(llm: LlmServer) -> None:
    llm.script([{"contains": "hold", "reply": {"hang": True}}])

    def hold() -> None:
        with pytest.raises(httpx.ReadTimeout):
            ask(llm, "hold", model="narrow", timeout=1.0)

    holder = threading.Thread(target=hold)
    holder.start()
    eventually(lambda: llm.stats()["models"].get("narrow", {}).get("active") == 1)
    with pytest.raises(httpx.ReadTimeout):
        ask(llm, "queued", model="narrow", timeout=0.1)
    holder.join()
    eventually(lambda: counts(llm, "narrow")["aborted"] == 2)
    assert content(ask(llm, "queued", model="narrow"))
    seen = counts(llm, "narrow")
    assert (seen["aborted_unique"], seen["active"], seen["waiting"]) == (2, 0, 0)
    assert (seen["repeated"], seen["repeated_answered"]) == (1, 0)


def test_a_judge_rates_each_text_differently_in_the_form_asked_for(llm: LlmServer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "ratings", "schema": SCHEMA}}
    texts = json.loads(content(ask(llm, JUDGED, response_format=form)))["texts"]
    assert [list(text) for text in texts] == [["id", "rationale", "rating"]] * 3
    assert len({text["rating"] for text in texts}) == 3
    words = content(ask(llm, JUDGED, model="judge-1"))
    ratings = re.findall(r"#### Output for Text \d\nRationale: .+\nRating: (\d)", words)
    assert len(set(ratings)) == 2


def test_a_judge_fault_follows_the_instruction_not_the_attempt() -> None:
    with LlmServer(judge_500=0.3, judge_malformed=0.3, judge_equal=0.3) as llm:
        first, second = (
            [ask(llm, f"Task {n}. {attempt}", model="judge").status_code for n in range(40)]
            for attempt in ("first", "second")
        )
        assert first == second
        assert set(first) == {200, 500}
        faults = counts(llm, "judge")["faults"]
        assert {"http_500", "equal", "prose", "rating_word"} <= set(faults)


def test_rules_are_followed_in_order_for_their_times(llm: LlmServer) -> None:
    too_many = {"status": 429, "headers": {"Retry-After": "1"}, "body": {"error": "slow down"}}
    llm.script(
        [
            {"model": "a", "contains": "Task 1", "times": 2, "reply": too_many},
            {"contains": "Task 1", "reply": {"content": None, "finish_reason": "length"}},
            {"contains": "Task 2", "reply": {"usage": None, "model": "other"}},
            {"contains": "Task 3", "reply": {"raw": "<html>", "status": 200}},
        ]
    )
    assert content(ask(llm, "Task 9"))
    refused = ask(llm, "Task 1")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.json() == {"error": "slow down"}
    assert [rule["times"] for rule in llm.remaining() if "times" in rule] == [1]
    ask(llm, "Task 1")
    choice = ask(llm, "Task 1").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    answered = ask(llm, "Task 2").json()
    assert (answered["model"], "usage" in answered) == ("other", False)
    assert ask(llm, "Task 3").text == "<html>"


def test_a_rule_may_refuse_schemas_only(llm: LlmServer) -> None:
    llm.script([{"reply": {"refuse_schema": True}}])
    form = {"type": "json_schema", "json_schema": {"name": "ratings", "schema": SCHEMA}}
    refused = ask(llm, JUDGED, response_format=form)
    assert refused.status_code == 400
    assert "response_format" in refused.json()["error"]["message"]
    assert content(ask(llm, JUDGED)).startswith("#### Output for Text 1")


@pytest.mark.parametrize(
    ("reply", "timeout", "error"),
    [
        ({"hang": True}, 0.2, httpx.ReadTimeout),
        ({"trickle_s": 1.0}, 0.2, httpx.ReadTimeout),
        ({"cut": True}, 5.0, httpx.RemoteProtocolError),
        ({"drop": True}, 5.0, httpx.RemoteProtocolError),
    ],
)
def test_a_rule_may_break_the_connection(
    llm: LlmServer, reply: dict[str, Any], timeout: float, error: type[Exception]
) -> None:
    llm.script([{"times": 1, "reply": reply}])
    with pytest.raises(error):
        ask(llm, "Task 1", timeout=timeout)
    eventually(lambda: counts(llm)["errors"] + counts(llm)["aborted"] == 1)
    assert content(ask(llm, "Task 1"))
    seen = counts(llm)
    assert (seen["ok"], seen["repeated_answered"], seen["active"]) == (1, 0, 0)


def test_a_mistyped_rule_is_refused(llm: LlmServer) -> None:
    with pytest.raises(RuntimeError, match="staus"):
        llm.script([{"reply": {"staus": 500}}])


def test_the_llm_server_ends_with_its_context() -> None:
    with LlmServer() as llm:
        pid = llm.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def parquet(*instructions: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": list(instructions)}), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_datasets_are_read_whole_and_streamed_at_any_revision(tmp_path: Path) -> None:
    program = """
import json, sys
from datasets import load_dataset
from huggingface_hub import HfApi
name, first = sys.argv[1:]
read = {
    "whole": load_dataset(name, split="train")["instruction"][:],
    "streamed": [row["instruction"] for row in load_dataset(name, split="train", streaming=True)],
    "first": load_dataset(name, split="train", revision=first)["instruction"][:],
    "sha": HfApi().dataset_info(name).sha,
}
print(json.dumps(read))
"""
    with HubServer(token="hf_secret") as hub:
        readme = b"---\nlicense: apache-2.0\n---\n"
        first = hub.put(
            REPOSITORY,
            {"data/train-00000-of-00001.parquet": parquet("a", "b"), "README.md": readme},
        )
        second = hub.put(REPOSITORY, {"data/train-00000-of-00001.parquet": parquet("c", "d", "e")})
        assert first != second
        done = subprocess.run(
            [sys.executable, "-c", program, REPOSITORY, first],
            env={**os.environ, **hub_environment(hub, tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["whole"] == read["streamed"] == ["c", "d", "e"]
    assert (read["first"], read["sha"]) == (["a", "b"], second)


@pytest.mark.parametrize(
    ("key", "repository", "status"),
    [("hf_secret", REPOSITORY, 200), ("hf_wrong", REPOSITORY, 401), ("hf_secret", "no/such", 404)],
)
def test_the_hub_shows_a_repository_only_to_its_token(
    key: str, repository: str, status: int
) -> None:
    with HubServer(token="hf_secret") as hub:
        hub.put(REPOSITORY, {"README.md": b""})
        url = f"{hub.endpoint}/api/datasets/{repository}"
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(url, headers=headers, trust_env=False).status_code == status
        assert hub.requests == [("GET", f"/api/datasets/{repository}")]
