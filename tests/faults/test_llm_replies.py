"""Every way in which an LLM can answer, in one run: a typed end for each, and never a text."""

import json
import socket
import sqlite3
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.llm_server import LlmServer
from tests.mill import Mill, mill

NEVER_DATA = "must never be data"

# name -> the reply to generator `a`, how often (None: always), why its generation is missing
CASES: dict[str, tuple[dict[str, Any], int | None, str | None]] = {
    "fine": ({"content": "A fine answer."}, None, None),
    "429 and seconds": ({"status": 429, "headers": {"Retry-After": "1"}}, 2, None),
    "429 and nothing": ({"status": 429}, 2, None),
    "429 for ever": ({"status": 429}, None, "rate_limited"),
    "500 twice": ({"status": 500}, 2, None),
    "500 for ever": ({"status": 500}, None, "server_error"),
    "503 while loading": (
        {"status": 503, "body": {"error": "loading", "estimated_time": 1}},
        1,
        None,
    ),
    "401 once": ({"status": 401}, 1, None),
    "402 once": ({"status": 402}, 1, None),
    "403 for this one": ({"status": 403}, None, "unauthorized"),
    "404 once": ({"status": 404}, 1, None),
    "404 for this one": ({"status": 404}, None, "not_found"),
    "422": ({"status": 422}, None, "bad_request"),
    "silence": ({"hang": True}, None, "timeout"),
    "a byte each 5 s": ({"trickle_s": 5}, None, "timeout"),
    "cut in the middle": ({"cut": True}, None, "connection"),
    "no byte at all": ({"drop": True}, None, "connection"),
    "length": ({"content": "Half an ans", "finish_reason": "length"}, None, "truncated"),
    "filtered": (
        {"content": NEVER_DATA, "finish_reason": "content_filter"},
        None,
        "content_filter",
    ),
    "null": ({"content": None}, None, "empty_reply"),
    "empty": ({"content": ""}, None, "empty_reply"),
    "blank": ({"content": " \n\t "}, None, "empty_reply"),
    "invalid JSON": ({"raw": f'{{"choices": [{{"message": "{NEVER_DATA}'}, None, "malformed_reply"),
    "no completion": ({"body": {"text": NEVER_DATA}}, None, "malformed_reply"),
    "an error in a 200": ({"body": {"error": {"code": 400, "message": "no"}}}, None, "bad_request"),
    "an error without a code": ({"body": {"error": NEVER_DATA}}, 2, None),
    "half by an error": ({"content": NEVER_DATA, "finish_reason": "error"}, 2, None),
    "withheld": ({"content": NEVER_DATA, "finish_reason": "SAFETY"}, None, "content_filter"),
    "thoughts": ({"content": f"<think>{NEVER_DATA}</think>\n\nA fine answer."}, None, None),
    "nothing but thoughts": ({"content": f"<think>{NEVER_DATA}</think>"}, None, "empty_reply"),
    "cut in thoughts": ({"content": None, "finish_reason": "length"}, None, "truncated"),
    "another model": ({"model": "some-other-model"}, None, None),
}

# name -> the judge's reply, how the prompt fails
JUDGED: dict[str, tuple[dict[str, Any], str]] = {
    "judge 500": ({"status": 500}, "judge_server_error"),
    "judge silence": ({"hang": True}, "judge_timeout"),
    "judge prose": ({"content": "Both are nice."}, "unparsable_judgement"),
    "judge length": ({"content": "{}", "finish_reason": "length"}, "unparsable_judgement"),
    "judge thinks": ({"content": None, "finish_reason": "length"}, "judge_truncated"),
    "judge filtered": ({"content": "x", "finish_reason": "content_filter"}, "judge_content_filter"),
    "judge empty": ({"content": ""}, "judge_empty_reply"),
    "judge invalid JSON": ({"raw": "<html>"}, "judge_malformed_reply"),
}


def _marked(name: str) -> str:
    return f"Case [{name}]: say something."


def _rules() -> list[dict[str, Any]]:
    rules = [
        {"model": "model-a", "contains": _marked(name), "times": times, "reply": reply}
        for name, (reply, times, _) in CASES.items()
    ]
    date = {"status": 429, "headers": {"Retry-After": formatdate(time.time() + 15, usegmt=True)}}
    rules.append(
        {"model": "model-a", "contains": _marked("429 and a date"), "times": 1, "reply": date}
    )
    rules += [
        {"model": "judge-model", "contains": _marked(name), "times": None, "reply": reply}
        for name, (reply, _) in JUDGED.items()
    ]
    keep = {"content": "Half, but kept", "finish_reason": "length"}
    rules.append({"model": "model-b", "contains": _marked("length"), "times": None, "reply": keep})
    # Its own endpoint asks for hours once; a minute is the most that anyone waits.
    hours = {"status": 429, "headers": {"Retry-After": "9999"}}
    rules.append({"model": "model-c", "contains": _marked("fine"), "times": 1, "reply": hours})
    return rules


def _recipe(llm: LlmServer, closed_port: int) -> dict[str, Any]:
    def endpoint(url: str) -> dict[str, Any]:
        return {"base_url": url, "max_concurrency": 64, "timeout": 2}

    return {
        "name": "mill",
        "source": {"file": "prompts.jsonl"},
        "endpoints": {
            "main": endpoint(llm.base_url),
            "patient": endpoint(llm.base_url.replace("127.0.0.1", "localhost")),
            "closed": endpoint(f"http://127.0.0.1:{closed_port}/v1"),
        },
        "generators": [
            {"name": "a", "endpoint": "main", "model": "model-a"},
            {"name": "b", "endpoint": "main", "model": "model-b", "truncated": "keep"},
            {"name": "c", "endpoint": "patient", "model": "model-c"},
            {"name": "d", "endpoint": "closed", "model": "model-d"},
        ],
        "judges": [{"name": "judge", "endpoint": "main", "model": "judge-model"}],
    }


def _ends(one: Mill) -> dict[str, dict[str, Any]]:
    """How each case ended, by name, as it lies in the ledger."""
    with sqlite3.connect(one.folder / "prefmill-data/ledger.db") as ledger:
        found = ledger.execute("SELECT input, state, reason, detail, generations FROM prompts")
        ends = {}
        for text, state, reason, detail, generations in found:
            name = json.loads(text)["instruction"].split("[")[1].split("]")[0]
            slots = {made["generator"]: made for made in json.loads(generations)}
            ends[name] = {"state": state, "reason": reason, "detail": detail, **slots}
        return ends


@pytest.mark.timeout(330)
def test_every_reply_of_an_llm_has_its_typed_end_and_no_error_is_ever_a_text(
    tmp_path: Path,
) -> None:
    names = [*CASES, "429 and a date", *JUDGED]
    lines = [json.dumps({"instruction": _marked(name)}) for name in names]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    with LlmServer(latency="fixed:0.02") as llm, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        with mill(tmp_path, _recipe(llm, closed.getsockname()[1])) as one:
            llm.script(_rules())
            since = time.monotonic()
            done = one.call("run", timeout_s=280)
            took_s = time.monotonic() - since
            assert done.returncode == 0, done.stderr + one.logs()
            status, ends = one.status(), _ends(one)
            failures = json.loads(one.call("failures", "--json", *_database(one)).stdout)
            rows = one.rows("full")
    print(f"{len(names)} cases in {took_s:.0f} s", json.dumps(status["failed"]))
    assert status["in_flight"] == 0
    assert status["accepted"] == len(names) == len(ends)
    for name, (_, _, reason) in CASES.items():
        made = ends[name]["a"]
        assert (made["reason"], made["text"] is None) == (reason, reason is not None), (name, made)
        assert ends[name]["state"] in ("paired", "rejected"), (name, ends[name])
    assert ends["429 and a date"]["a"]["reason"] is None
    assert ends["another model"]["a"]["reported_model"] == "some-other-model"
    assert ends["length"]["b"]["text"] == "Half, but kept"
    assert all(end["d"]["reason"] == "connection" for end in ends.values())
    assert all(end["c"]["reason"] is None for end in ends.values())
    for name, (_, reason) in JUDGED.items():
        assert (ends[name]["state"], ends[name]["reason"]) == ("failed", reason), ends[name]
    listed = {failure["instruction"]: failure["reason"] for failure in failures["failed"]}
    assert listed == {_marked(name): reason for name, (_, reason) in JUDGED.items()}
    texts = [text for row in rows for text in row["generations"]]
    assert NEVER_DATA not in json.dumps(rows)
    assert all(text.strip() for text in texts)
    assert "Half an ans" not in texts
    assert took_s < 240  # three times what it takes


def _database(one: Mill) -> list[str]:
    return ["--database", f"sqlite:///{one.folder / 'prefmill-data/ledger.db'}"]
