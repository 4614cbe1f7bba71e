"""Texts that play tricks: kept to the byte or refused with field and limit, harmless when shown.

They come as instructions, columns, system prompts, replies of models, names of files and errors.
"""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.llm_server import LlmServer
from tests.mill import Mill, mill, recipe

KEPT = {
    "path": "../../x",
    "formula": '=cmd|"/C calc"!A0',
    "script": "<script>alert(1)</script>",
    "markup": "[bold red]no markup[/bold red] [link=http://h]x[/link] :warning:",
    "lines": "one\r\n2026-01-01T00:00:00.000+00:00 ERROR   forged\u2028more\u0085end",
    "ansi": "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b31m\b\b",
    "bidi": "\u202eexe.txt\u202c\u2066x\u2069\u200f",
    "variable": "${HOME} $(id) `id` {{ 7*7 }} {% raw %}",
    "escaped": "\\u0000 \\ud800 %00 %n",
    "astral": "\U0001f600\ufeff\ufffe",
}
REFUSED = {
    "nul": ("a\0b", "not_text", "the row holds a NUL character"),
    "half": ("\ud800", "not_text", "'\\ud800', which is no character"),
    "large": ("x" * 1_000_001, "too_large", "'instruction' has 1,000,001 bytes; accepted: at most"),
    "huge": ("x" * 5_000_000, "too_large", "the line is longer than 4,000,000 bytes"),
    "blank": ("\u2028\x1f", "empty", "'instruction' is empty"),
}
#: Its other column cannot be kept.
ODD = "Task 90: x"
REPLY = "Answer: \x1b[2J../x =1+1 <b>\r\n\u202e\u2028 half "


def _line(instruction: str, **more: Any) -> str:
    return json.dumps({"instruction": instruction, **more}) + "\n"


def _write(folder: Path) -> None:
    kept = [
        _line(f"Task {number}: {text}", system=f"{text} be brief", **{"=a\x1b[1m": text})
        for number, text in enumerate(KEPT.values())
    ]
    refused = [_line(text) for text, _, _ in REFUSED.values()]
    odd = [_line(ODD, system="be brief", **{"=a\x1b[1m": "x\0y"})]
    (folder / "p\x1b[31m\n\u202e.jsonl").write_text("".join([*kept, *refused, *odd, "\x1b{\n"]))


def _recipe(llm: LlmServer) -> dict[str, Any]:
    columns = {"instruction": "instruction", "system_prompt": "system"}
    data = recipe(llm.base_url, {"file": "p\x1b[31m\n\u202e.jsonl", "columns": columns})
    data["generators"][0]["system_prompt"] = "\x1b[2J\u202e"
    return data


def _harmless(text: str) -> None:
    for number, line in enumerate(text.split("\n")):
        assert line.isprintable(), (number, line[:300])


@pytest.fixture
def tricky(tmp_path: Path, llm: LlmServer) -> Any:
    """A mill that went through all of it; what `run` said; and its folder."""
    replies = [
        {"model": "model-a", "contains": "Task 1:", "reply": {"content": REPLY + "\ud800\0"}},
        {
            "model": "model-b",
            "contains": "Task 2:",
            "reply": {"status": 400, "body": {"error": "\x1b[2Jno\r\nforged\0\u202e"}},
        },
    ]
    llm.script(replies)
    with mill(tmp_path / "mill", _recipe(llm)) as one:
        _write(one.folder)
        done = one.call("run", "--max-failed", "100%")
        assert done.returncode == 0, done.stderr + one.logs()
        one.environment["PREFMILL_DATABASE_URL"] = "sqlite:///prefmill-data/ledger.db"
        yield one, done.stdout, done.stderr


def test_tricks_are_kept_to_the_byte_or_refused_and_never_act_on_a_terminal(
    tricky: tuple[Mill, str, str], llm: LlmServer
) -> None:
    one, printed, said = tricky
    rows = one.rows("full")
    _check_rows(rows)
    parquet = one.folder / "full.parquet"
    done = one.call("export", "--config", "full", "--format", "parquet", "--out", str(parquet))
    assert done.returncode == 0, done.stderr
    assert pq.read_table(parquet).to_pylist() == rows
    _check_ledger(one)
    _check_skips(one, said)
    _harmless(printed + said)
    for command in (["status"], ["failures"], ["check"], ["sync"], ["failures", "--json"]):
        done = one.call(*command)
        _harmless(done.stdout + done.stderr)
    done = one.call("try", KEPT["ansi"] + KEPT["markup"])
    _harmless(done.stdout + done.stderr)
    assert ":warning:" in done.stdout
    logs = [log.read_text() for log in (one.folder / "prefmill-data/logs").glob("*.log")]
    assert not any("\x1b[2J" in log or "\u202e" in log for log in logs)
    assert Counter(path.name for path in one.folder.parent.iterdir()) == {"mill": 1}


def _check_rows(rows: list[dict[str, Any]]) -> None:
    expected = {f"Task {number}: {text}" for number, text in enumerate(KEPT.values())}
    failed = f"Task 2: {KEPT['script']}"
    assert {row["instruction"] for row in rows} == {*(expected - {failed}), ODD}
    for row in rows:
        text = row["instruction"].partition(": ")[2]
        if row["instruction"] == ODD:
            assert row["=a\x1b[1m"] is None
            continue
        assert row["=a\x1b[1m"] == text
        assert row["system_prompt"] == f"{text} be brief"
    (formula,) = [row for row in rows if row["instruction"].startswith("Task 1:")]
    assert REPLY + "\ufffd\0" in formula["generations"]


def _check_ledger(one: Mill) -> None:
    with sqlite3.connect(one.folder / "prefmill-data/ledger.db") as ledger:
        inputs = [json.loads(text) for (text,) in ledger.execute("SELECT input FROM prompts")]
        details = [
            text for (text,) in ledger.execute("SELECT detail FROM prompts WHERE detail<>''")
        ]
    ledger.close()
    assert {one_input["instruction"] for one_input in inputs} == {
        *(f"Task {number}: {text}" for number, text in enumerate(KEPT.values())),
        ODD,
    }
    assert len(details) == 1
    assert "\0" not in details[0]
    assert "forged" in details[0]


def _check_skips(one: Mill, said: str) -> None:
    skipped = [line for line in said.split("\n") if line.startswith("skipped ")]
    assert len(skipped) == len(REFUSED) + 1
    for _, reason, detail in REFUSED.values():
        assert [line for line in skipped if f": {reason}: " in line and detail in line], detail
    reasons = Counter(reason for _, reason, _ in REFUSED.values())
    status = one.status()
    assert status["skipped"] == reasons + Counter(not_json=1)
    assert status["left_out"] == {"=a\x1b[1m": 1}


@pytest.mark.parametrize("name", ["../x", "a\0", "a\n\x1b[2J"])
def test_no_name_becomes_a_path_unless_it_is_a_slug(
    tmp_path: Path, llm: LlmServer, name: str
) -> None:
    data = recipe(llm.base_url, {"stdin": True})
    generators = [{**data["generators"][0], "name": name}, data["generators"][1]]
    for changed in ({**data, "name": name}, {**data, "generators": generators}):
        with mill(tmp_path / "mill", changed) as one:
            done = one.call("status")
            assert done.returncode == 2
            assert "accepted: 1 to 64 of a-z, 0-9 and -" in done.stderr
            _harmless(done.stderr)
            assert done.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "mill").iterdir()] == ["recipe.yaml"]
