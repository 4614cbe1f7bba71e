"""Endpoints that fail for a while or for good, keys that expire, and people who pause a run."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import ROLES, Fleet, fleet
from tests.llm_server import JUDGE_FAULTS, JudgeFaults, LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts

pytestmark = pytest.mark.timeout(180)

#: Retry-After: 0 leaves a second at most between two of the six attempts at a call.
DOWN = {"status": 500, "headers": {"Retry-After": "0"}}
TOGETHER = {"fleet": {"batch_size": 4}}


def _always(reply: Mapping[str, Any], model: str | None = None) -> list[dict[str, Any]]:
    return [{"model": model, "contains": None, "times": None, "reply": dict(reply)}]


def _requests(llm: LlmServer) -> dict[str, int]:
    return {name: model["requests"] for name, model in sorted(llm.stats()["models"].items())}


def _answered(llm: LlmServer) -> int:
    return sum(model["ok"] for model in llm.stats()["models"].values())


def _quiet(llm: LlmServer) -> bool:
    return not any(model["active"] + model["waiting"] for model in llm.stats()["models"].values())


def _failures(one: Mill) -> dict[str, dict[str, Any]]:
    done = one.call("failures", "--json")
    assert done.returncode == 0, done.stderr
    return {failure["instruction"]: failure for failure in json.loads(done.stdout)["failed"]}


def _instructions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


def _said(one: Fleet, event: str) -> list[str]:
    """The lines of all workers together that tell of an event."""
    logs = [path.read_text(errors="replace") for path in one.folder.glob("*.log")]
    return [line for log in logs for line in log.splitlines() if f" {event} " in line]


@pytest.mark.chaos
def test_one_of_three_generators_that_is_down_costs_no_row(tmp_path: Path) -> None:
    data = recipe("", {"file": "prompts.jsonl"}, **TOGETHER)
    data["generators"].append({"name": "c", "endpoint": "mock", "model": "model-c"})
    write_prompts(tmp_path / "prompts.jsonl", 24)
    with LlmServer(latency="fixed:0.02") as llm:
        data["endpoints"]["mock"]["base_url"] = llm.base_url
        llm.script(_always(DOWN, "model-b"))
        with mill(tmp_path, data) as one:
            done = one.call("run")
            assert done.returncode == 0, done.stderr + one.logs()
            status, rows, full = one.status(), one.rows(), one.rows("full")
        requests = _requests(llm)
    print(json.dumps({**status, "requests": requests}))
    assert status["accepted"] == status["paired"] == len(rows) == len(full) == 24
    assert status["calls"]["b"]["failed"] == 24
    for row in full:
        assert row["generation_models"] == ["model-a", "model-c"]
        assert {row["chosen_model"], row["rejected_model"]} == {"model-a", "model-c"}
        assert json.loads(row["metadata"])["generations"][1]["failed"] == "server_error"


def test_what_failed_with_one_of_two_generators_is_run_again_without_paying_the_other(
    tmp_path: Path,
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 24)
    with (
        LlmServer(latency="fixed:0.02") as llm,
        mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"}, **TOGETHER)) as one,
    ):
        llm.script(_always(DOWN, "model-b"))
        assert one.call("run").returncode == 1
        _all_failed_for_b(one, 24)
        down = _requests(llm)
        llm.script([])
        retried = one.call("failures", "--retry")
        assert "next `prefmill run`" in retried.stderr, retried.stderr
        assert one.status()["in_flight"] == 24
        done = one.call("run")
        assert done.returncode == 0, done.stderr + one.logs()
        _reused(one, llm, down, 24)


@pytest.mark.chaos
def test_what_failed_in_a_fleet_is_tried_again_by_it_without_paying_twice(
    tmp_path: Path, broker_url: str
) -> None:
    with LlmServer(latency="fixed:0.02") as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, **TOGETHER)
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            llm.script(_always(DOWN, "model-b"))
            one.begin(*ROLES)
            one.enqueue(24)
            one.settle(24)
            _all_failed_for_b(one, 24)
            down = _requests(llm)
            llm.script([])
            retried = one.call("failures", "--retry")
            assert retried.returncode == 0, retried.stderr
            one.settle(24)
            _reused(one, llm, down, 24)


def _all_failed_for_b(one: Mill, prompts: int) -> None:
    failures = _failures(one)
    assert one.status()["failed"] == {"too_few_generations": prompts}
    assert len(failures) == prompts
    assert all("b: server_error HTTP 500" in failure["detail"] for failure in failures.values())


def _reused(one: Mill, llm: LlmServer, down: Mapping[str, int], prompts: int) -> None:
    status, healed = one.status(), _requests(llm)
    print(json.dumps({**status, "down": down, "healed": healed}))
    assert status["paired"] == status["rows"] == prompts
    assert down["model-a"] == healed["model-a"] == prompts
    assert healed["model-b"] - down["model-b"] == prompts
    assert _failures(one) == {}


def test_a_key_that_expires_pauses_the_fleet_and_fails_no_prompt(
    tmp_path: Path, broker_url: str
) -> None:
    with LlmServer(latency="lognormal:0.4:0.5") as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, **TOGETHER)
        data["endpoints"]["mock"]["max_concurrency"] = 12
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*ROLES)
            one.enqueue(60)
            _expires(one, llm, pauses=1, after=20)
            refused = sum(_requests(llm).values())
            since = time.monotonic()
            eventually(
                lambda: sum(_requests(llm).values()) > refused, within_s=15, what="a first probe"
            )
            probed_s = time.monotonic() - since
            assert sum(_requests(llm).values()) == refused + 1
            print(f"probed once after {probed_s:.1f} s: {_requests(llm)}")
            llm.script([])
            _goes_on(llm, within_s=15)
            _expires(one, llm, pauses=2, after=10)
            llm.script([])
            assert one.call("resume").returncode == 0
            _goes_on(llm, within_s=3)
            one.settle(60)
            calls = one.accounted(llm, 60, paired=60, failed={})
            print("\n".join(_said(one, "endpoint.paused") + _said(one, "endpoint.resumed")))
            assert len(_said(one, "endpoint.paused")) == 2
    assert probed_s > 3
    assert calls["repeated_answered"] == 0


def _expires(one: Fleet, llm: LlmServer, *, pauses: int, after: int) -> None:
    """From some moment on every request is refused; returns once nobody asks any more."""
    before = _answered(llm)
    eventually(lambda: _answered(llm) >= before + after, within_s=60, what=one.logs())
    llm.script(_always({"status": 401}))
    eventually(
        lambda: len(_said(one, "endpoint.paused")) == pauses and _quiet(llm),
        within_s=10,
        what=f"pause {pauses}\n{one.logs()}",
    )
    counts = one.counts()
    print(f"pause {pauses}: {counts.finished} of {counts.accepted} have ended")
    assert counts.in_flight > 0
    assert not counts.failed


def _goes_on(llm: LlmServer, *, within_s: float) -> None:
    before, since = _answered(llm), time.monotonic()
    eventually(lambda: _answered(llm) > before, within_s=within_s, what="an answer")
    print(f"went on after {time.monotonic() - since:.1f} s")


def test_an_answer_that_was_under_way_when_a_key_expired_blames_no_other_call(
    tmp_path: Path, broker_url: str
) -> None:
    slow = {"model": "model-a", "contains": "Task 0:", "times": 1, "reply": {"trickle_s": 0.001}}
    with LlmServer() as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, **TOGETHER)
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            llm.script([slow, *_always({"status": 401})])
            one.begin("generate.a")
            one.enqueue(2)
            eventually(lambda: _said(one, "endpoint.paused"), within_s=30, what=one.logs())
            assert not _answered(llm)
            one.begin(*(role for role in ROLES if role != "generate.a"))
            eventually(lambda: _answered(llm) == 1, within_s=30, what=one.logs())
            refused = sum(_requests(llm).values())
            eventually(
                lambda: sum(_requests(llm).values()) > refused, within_s=24, what="a first probe"
            )
            llm.script([])
            assert one.call("resume").returncode == 0
            one.settle(2)
            one.accounted(llm, 2, paired=2, failed={})
            assert len(_said(one, "endpoint.paused")) == 1


@pytest.mark.parametrize(
    ("number", "share"), [(300, 0.1), pytest.param(1000, 0.05, marks=pytest.mark.chaos)]
)
def test_a_judge_that_fails_now_and_then_costs_only_the_prompts_it_failed(
    tmp_path: Path, number: int, share: float
) -> None:
    faults = JudgeFaults(share, share, share)
    write_prompts(tmp_path / "prompts.jsonl", number)
    expected: dict[str, set[str]] = {"clean": set(), "equal": set(), "500": set(), "bad": set()}
    kinds = {"": "clean", "equal": "equal", "http_500": "500", **dict.fromkeys(JUDGE_FAULTS, "bad")}
    for n in range(number):
        text = f"Task {n}: say something."
        expected[kinds[faults.of(text)]].add(text)
    with (
        LlmServer(
            latency="fixed:0.02", judge_500=share, judge_malformed=share, judge_equal=share
        ) as llm,
        mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"}, **TOGETHER)) as one,
    ):
        since = time.monotonic()
        done = one.call("run", timeout_s=120)
        assert done.returncode == 0, done.stderr + one.logs()
        print(f"the run took {time.monotonic() - since:.0f} s")
        status, rows, failures = one.status(), one.rows(), _failures(one)
        drawn = llm.stats()["models"]["judge-model"]["faults"]
    print({kind: len(texts) for kind, texts in expected.items()}, drawn, json.dumps(status))
    assert all(len(texts) > 20 for texts in expected.values())
    assert set(JUDGE_FAULTS) < set(drawn)
    paired = _instructions(rows)
    assert len(paired) == len(set(paired)) == status["rows"]
    assert set(paired) == expected["clean"]
    assert not [row for row in rows if row["chosen"] == row["rejected"]]
    assert all(row["chosen_rating"] > row["rejected_rating"] for row in rows)
    reasons = {"judge_server_error": "500", "unparsable_judgement": "bad"}
    for reason, kind in reasons.items():
        assert {t for t, one in failures.items() if one["reason"] == reason} == expected[kind]
    assert status["failed"] == Counter(failure["reason"] for failure in failures.values())
    assert set(failures) == expected["500"] | expected["bad"]
    assert status["rejected"] == {"tie": len(expected["equal"])}
    assert status["in_flight"] == 0


def test_a_paused_run_asks_nothing_and_goes_on_where_it_was(
    tmp_path: Path, broker_url: str
) -> None:
    with LlmServer(latency="fixed:0.2") as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"})
        data["fleet"] = {"batch_size": 4, "window": 24}
        data["endpoints"]["mock"]["max_concurrency"] = 12
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*ROLES)
            write_prompts(tmp_path / "prompts.jsonl", 240)
            feeding = one.start("enqueue")
            feeding_log = next(tmp_path.glob("*-enqueue.log"))
            one.finished(8)
            assert one.call("pause").returncode == 0
            since = time.monotonic()
            eventually(lambda: _quiet(llm), within_s=2, what="calls under way end")
            settled_s, asked, accepted = time.monotonic() - since, _requests(llm), one.counts()
            eventually(
                lambda: time.monotonic() - since > 6 and ", paused" in feeding_log.read_text(),
                within_s=12,
                what="enqueue says that the run is paused",
            )
            print(f"settled after {settled_s:.1f} s: {asked}, then {_requests(llm)}")
            assert _requests(llm) == asked
            assert feeding.poll() is None
            assert 0 < one.counts().accepted == accepted.accepted < 240
            assert one.counts().in_flight > 0
            assert one.call("resume").returncode == 0
            assert feeding.wait(timeout=60) == 0
            one.settle(240)
            calls = one.accounted(llm, 240, paired=240, failed={})
    assert calls["repeated"] == 0
