"""TRL trains on what prefmill makes, unchanged; and what it does with rows that the gate refuses.

    pytest -m trl -s tests/trl

TRL and torch live in an environment of their own, kept in pytest's cache: a first run installs them
for minutes.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import Mill, clean_environment, mill, recipe
from workers.gate import why_refused
from workers.records import Pair, Prompt
from workers.rows import default_row

pytestmark = [pytest.mark.trl, pytest.mark.timeout(1200)]

SCRIPT = Path(__file__).with_name("train.py")
# torch first: the others would bring any torch that they find.
INSTALLED = (["torch==2.13.0"], ["torch==2.13.0", "trl", "transformers", "datasets", "pyarrow"])
PREFERENCE = ["DPOTrainer", "RewardTrainer", "ORPOTrainer"]
PROMPTS = 24


@pytest.fixture(scope="session")
def python(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment with TRL."""
    folder = Path(pytestconfig.cache.mkdir("trl"))
    found, ready = folder / "venv/bin/python", folder / "ready.json"
    if not ready.exists() or json.loads(ready.read_text()) != list(INSTALLED):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        for packages in INSTALLED:
            subprocess.run([found, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.write_text(json.dumps(INSTALLED))
    return found


def train(
    python: Path, folder: Path, *arguments: object, **environment: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """What the script says, by dataset and trainer."""
    done = subprocess.run(
        [python, SCRIPT, *map(str, arguments)],
        # TRL tells a chat from a text by whichever column a set of names gives first: by the seed
        # of its hashes, a row with an empty column raises or trains.
        env=clean_environment(
            **{"HF_HOME": str(folder / "hf"), "PYTHONHASHSEED": "0", **environment}
        ),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print(done.stdout)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert found, done.stderr[-3000:]
    assert done.returncode == int(any("error" in result for result in found))
    return {(result["dataset"], result["trainer"]): result for result in found}


def write_chats(path: Path) -> None:
    """Prompts of one turn and of three, with columns under names that TRL acts on."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(PROMPTS):
            chat = [{"role": "user", "content": f"Task {number}: say something über 日本."}]
            if number % 2:
                told = {"role": "assistant", "content": "About what?"}
                chat = [{"role": "system", "content": "Be brief."}, *chat, told, *chat]
            acting = {"margin": 9.5, "images": "none", "label": "x", "completion": "c"}
            file.write(json.dumps({"chat": chat, "topic": f"t{number % 3}", **acting}) + "\n")


def made(one: Mill) -> dict[str, Path]:
    """A run's dataset folder, and its exports for the reward and KTO trainers."""
    done = one.call("run")
    assert done.returncode == 0, done.stderr + one.logs()
    paths = {"dataset": one.folder / "prefmill-data/dataset"}
    for name in ("reward", "kto"):
        paths[name] = one.folder / f"{name}.parquet"
        exported = one.call("export", "--config", name, "--out", str(paths[name]))
        assert exported.returncode == 0, exported.stderr
    return paths


def test_trl_trains_on_a_runs_dataset_just_as_it_is(python: Path, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    source = {"file": "chats.jsonl", "columns": {"messages": "chat"}}
    with (
        LlmServer(latency="fixed:0.02") as llm,
        mill(tmp_path, recipe(llm.base_url, source)) as one,
    ):
        paths = made(one)
    dataset, reward, kto = map(str, paths.values())
    results = train(python, tmp_path, dataset, reward, "--kto", kto, HF_HUB_OFFLINE="1")
    asked = [(name, trainer) for name in (dataset, reward) for trainer in PREFERENCE]
    assert list(results) == [*asked, (kto, "KTOTrainer")]
    assert all(result["steps"] == 2 and result["loss"] > 0 for result in results.values())
    assert {result["rows"] for result in results.values()} == {PROMPTS, 2 * PROMPTS}

    files = {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in Path(dataset).rglob("*")
        if path.is_file()
    }
    with HubServer() as hub:
        hub.put("me/pairs", files)
        results = train(
            python, tmp_path, "me/pairs", "--only", "DPOTrainer", **hub_environment(hub, tmp_path)
        )
    assert results["me/pairs", "DPOTrainer"]["rows"] == PROMPTS


def good(number: int) -> dict[str, Any]:
    pair = Pair(f"Words {number} are good.", "model-a", 4.0, f"No {number}.", "model-b", 2.0)
    return {"topic": "t", **default_row(Prompt(f"Task {number}: say something."), pair)}


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Yes."}

#: What changes a good row into one that the gate refuses: why, and the trainers that raise on it.
#: The others train in silence.
WRONG: Mapping[str, Any] = {
    "identical": (lambda row: {"rejected": row["chosen"]}, "identical_texts", ""),
    "blank": (lambda row: {"rejected": [ANSWER | {"content": ""}]}, "blank_answer", ""),
    "null": (lambda row: {"rejected": [ANSWER | {"content": None}]}, "not_one_answer", ""),
    "no-answer": (lambda row: {"rejected": []}, "not_one_answer", "DPO Reward ORPO"),
    "doubled": (doubled, "prompt_repeated", ""),
    "two-answers": (lambda row: {"rejected": [ANSWER, ANSWER]}, "not_one_answer", ""),
    "answer-of-a-user": (
        lambda row: {"rejected": [ANSWER | {"role": "user"}]},
        "not_one_answer",
        "",
    ),
    "answered-prompt": (lambda row: {"prompt": [*row["prompt"], ANSWER]}, "bad_prompt", ""),
    "late-system": (lambda row: {"prompt": [*row["prompt"], SYSTEM]}, "bad_prompt", "ORPO"),
    "reversed": (lambda row: {"chosen_rating": 1.0}, "rating_order", ""),
    "text-prompt": (lambda row: {"prompt": "Task"}, "bad_prompt", "DPO Reward ORPO"),
    "seeds-form": (lambda row: {"prompt": "Task"} | doubled(row), "bad_prompt", "DPO Reward"),
    "no-prompt": (lambda row: {"prompt": []}, "bad_prompt", "DPO ORPO"),
    "null-answer": (lambda row: {"rejected": None}, "not_one_answer", "DPO Reward ORPO"),
    "margin": (lambda row: {"margin": 100.0}, "column_name", ""),
    "margin-text": (lambda row: {"margin": "wide"}, "column_name", "Reward"),
    "images": (lambda row: {"images": []}, "column_name", "DPO"),
    "tools": (lambda row: {"tools": "hammer"}, "column_name", "DPO Reward"),
    "label": (lambda row: {"label": "x"}, "column_name", "ORPO"),
    "input-ids": (lambda row: {"x_input_ids": "x"}, "column_name", "ORPO"),
    "logps": (lambda row: {"ref_chosen_logps": "x"}, "column_name", "DPO ORPO"),
}


def test_trl_passes_most_of_what_the_gate_refuses_in_silence(python: Path, tmp_path: Path) -> None:
    for name, (change, reason, _) in WRONG.items():
        rows = [row | change(row) for row in map(good, range(8))]
        refusal = why_refused(rows[0])
        assert refusal is not None, name
        assert refusal.reason == reason, (name, refusal)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = [str(tmp_path / f"{name}.jsonl") for name in WRONG]
    results = train(python, tmp_path, *files, HF_HUB_OFFLINE="1")
    raised = {
        name: {trainer for trainer in PREFERENCE if "error" in results[file, trainer]}
        for name, file in zip(WRONG, files, strict=True)
    }
    assert raised == {
        name: {f"{trainer}Trainer" for trainer in raising.split()}
        for name, (_, _, raising) in WRONG.items()
    }
    margin = results[str(tmp_path / "margin.jsonl"), "RewardTrainer"]
    assert margin["loss"] > 50, "the reward loss takes any column of this name for its margin"
