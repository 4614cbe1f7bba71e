"""A prompt is never lost over a column that nobody asked for: what does not fit is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from producer.feed import Feed
from tests.hub_server import WRITE_TOKEN, HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import Mill, mill, recipe
from workers.app import make_app
from workers.ledger import Ledger
from workers.recipe import Recipe
from workers.shapes import source_schema

#: More than one transaction accepts.
FIRST = 100


def write(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def first_rows(**columns: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"Question {n}?", **columns} for n in range(FIRST)]


def test_odd_values_are_left_out_and_no_prompt_is_lost(tmp_path: Path, llm: LlmServer) -> None:
    write(
        tmp_path / "prompts.jsonl",
        *first_rows(score=3, tags=["a"], meta={"id": 1}),
        {"instruction": "Half a point?", "score": 4.5},
        {"instruction": "A new column?", "score": 3, "reference": ["yes"]},
        {"instruction": "A text?", "score": "high"},
        {"instruction": "Mixed?", "tags": [1], "meta": {"id": 1, "new": True}},
        {"instruction": "Half a character?", "meta": "\ud800"},
        {"instruction": "Plain?", "score": 2},
    )
    with mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one:
        done = one.call("run")
        assert done.returncode == 0, done.stderr + one.logs()
        status, shown = one.status(), one.call("status")
    assert (status["accepted"], status["skipped"]) == (FIRST + 6, {})
    assert status["left_out"] == {"reference": 1, "score": 1, "tags": 1, "meta": 2}
    assert "left out values  5  (meta 2, reference 1, score 1, tags 1)" in shown.stdout
    assert done.stderr.count("column 'meta' holds") == 1
    assert "column 'reference' is new; accepted: 'score', 'tags', 'meta'" in done.stderr
    rows = load_dataset(str(tmp_path / "prefmill-data/dataset"), split="train")
    assert str(rows.features["score"].dtype) == "float64"
    by_prompt = {row["prompt"][0]["content"]: row for row in rows}
    assert by_prompt["Half a point?"]["score"] == 4.5
    assert by_prompt["Question 7?"]["score"] == 3.0
    assert by_prompt["A text?"]["score"] is None
    assert by_prompt["Mixed?"]["tags"] is None


def test_types_stay_once_rows_were_delivered(tmp_path: Path, llm: LlmServer) -> None:
    data = recipe(
        llm.base_url, {"file": "prompts.jsonl"}, hub={"repo_id": "me/pairs", "private": True}
    )
    with HubServer() as hub:
        environment = hub_environment(hub, tmp_path / "hf") | {"HF_TOKEN": WRITE_TOKEN}
        with mill(tmp_path, data, **environment) as one:
            status = _run_twice(one)
    assert (status["accepted"], status["left_out"]) == (FIRST + 1, {"score": 1})
    assert status["deliveries"]["hub"]["pending"] == 0


def _run_twice(one: Mill) -> dict[str, Any]:
    """Whole numbers are delivered, then comes a fraction."""
    path = one.folder / "prompts.jsonl"
    write(path, *first_rows(score=3))
    assert one.call("run").returncode == 0
    write(path, {"instruction": "Half a point?", "score": 4.5})
    done = one.call("run")
    assert done.returncode == 0, done.stderr + one.logs()
    return one.status()


def test_a_value_is_counted_once_however_often_it_is_read(tmp_path: Path, broker_url: str) -> None:
    ledger, feed = _feed(tmp_path, broker_url, *first_rows(score=3), {"instruction": "A"})
    feed().run()
    odd = {"instruction": "Odd?", "score": "high"}
    write(tmp_path / "prompts.jsonl", odd, odd, {**odd, "instruction": "Question 1?"})
    feed().run()
    write(tmp_path / "prompts.jsonl", odd)
    feed().run()
    assert ledger.counts("mill").left_out == {"score": 1}
    ledger.close()


def test_no_producer_undoes_what_another_did_to_the_columns(
    tmp_path: Path, broker_url: str
) -> None:
    ledger, feed = _feed(tmp_path, broker_url, *first_rows(score=None, other=1))
    feed().run()
    one, other = feed(), feed()
    for late in (one, other):
        late._schema = ledger.stored_schema("mill")
    one._accept(_rows(tmp_path / "a.jsonl", {"instruction": "a", "score": "text"}))
    other._accept(_rows(tmp_path / "b.jsonl", {"instruction": "b", "score": 1, "other": 2}))
    schema = source_schema(ledger.stored_schema("mill"))
    assert str(schema.field("score").type) == "string"
    assert ledger.counts("mill").left_out == {"score": 1}
    ledger.close()


def test_the_columns_that_are_counted_are_bounded(tmp_path: Path, broker_url: str) -> None:
    odd = [{"instruction": f"New {n}?", f"column {n}": n} for n in range(250)]
    ledger, feed = _feed(tmp_path, broker_url, *first_rows(score=3), *odd)
    feed().run()
    left_out = ledger.counts("mill").left_out
    assert len(left_out) <= 201
    assert sum(left_out.values()) == 250
    assert left_out["(other columns)"] == 50
    ledger.close()


def _feed(tmp_path: Path, broker_url: str, *rows: dict[str, Any]) -> Any:
    """A ledger with its run, and what makes producers for it."""
    write(tmp_path / "prompts.jsonl", *rows)
    source = {"file": str(tmp_path / "prompts.jsonl")}
    made = Recipe.model_validate(recipe("http://127.0.0.1:9/v1", source))
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.open_run(made.name, made.hash, made.fingerprint())
    app = make_app(broker_url, 60.0)
    return ledger, lambda: Feed(app, ledger, made)


def _rows(path: Path, *rows: dict[str, Any]) -> Any:
    from producer.sources import read
    from workers.recipe import Source

    write(path, *rows)
    return list(read(Source(file=str(path)), position=None))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_files_of_either_kind_keep_their_prompts(
    tmp_path: Path, broker_url: str, kind: str
) -> None:
    path = tmp_path / f"odd.{kind}"
    if kind == "csv":
        path.write_bytes(b"instruction,note\nfine,text\nodd,caf\xe9\n")
    else:
        path.write_bytes(b'{"instruction": "fine"}\n{"instruction": "odd", "note": "caf\xe9"}\n')
    made = Recipe.model_validate(recipe("http://127.0.0.1:9/v1", {"file": str(path)}))
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.open_run(made.name, made.hash, made.fingerprint())
    Feed(make_app(broker_url, 60.0), ledger, made).run()
    counts = ledger.counts("mill")
    assert (counts.accepted, counts.skipped, counts.left_out) == (2, {}, {"note": 1})
    ledger.close()
