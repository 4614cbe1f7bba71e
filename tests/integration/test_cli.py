"""The command line as people meet it: messages, exit codes, files."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.llm_server import LlmServer
from tests.mill import mill, recipe, write_prompts

GOOD = recipe("http://127.0.0.1:9/v1", {"file": "prompts.jsonl"})


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    (GOOD | {"colour": 1}, ["colour", "unknown key", "generators"]),
    (GOOD | {"name": "My Run"}, ["name", "'My Run'", "a-z"]),
    (_without("judges"), ["judges", "missing"]),
    (GOOD | {"source": {"stdin": True, "file": "x.jsonl"}}, ["source", "exactly one of"]),
    (GOOD | {"generators": GOOD["generators"][:1]}, ["generators", "at least two"]),
    (GOOD | {"generators": [GOOD["generators"][0]] * 2}, ["generators[1].name", "'a'"]),
    (GOOD | {"judges": [GOOD["judges"][0] | {"endpoint": "moon"}]}, ["'moon'", "mock"]),
    (GOOD | {"fleet": {"batch_size": 0}}, ["fleet.batch_size", "0", "greater than or equal to 1"]),
    (GOOD | {"judging": {"order": "random"}}, ["judging.order", "'random'", "shuffled"]),
    (GOOD | {"endpoints": {"mock": {"base_url": "ftp://x"}}}, ["base_url", "http"]),
    (GOOD | {"source": {"file": "prompts.xml"}}, ["source.file", ".xml", ".jsonl"]),
    (
        GOOD | {"endpoints": {"mock": {"base_url": "http://x/v1", "api_key_env": "NO_SUCH_KEY"}}},
        ["NO_SUCH_KEY", "not set", "endpoints.mock.api_key_env"],
    ),
]


@pytest.mark.parametrize(("data", "said"), BROKEN, ids=lambda value: str(value)[:30])
def test_a_broken_recipe_gives_one_line_and_exit_code_2(
    tmp_path: Path, data: dict[str, Any], said: list[str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    with mill(tmp_path, data) as one:
        done = one.call("run")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(part in done.stderr for part in said), done.stderr


def test_a_changed_recipe_is_refused_until_the_change_is_accepted(
    tmp_path: Path, llm: LlmServer
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 8)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    with mill(tmp_path, data) as one:
        assert one.call("run").returncode == 0
    with mill(tmp_path, data | {"seed": 7}) as one:
        refused = one.call("run")
        assert refused.returncode == 2
        assert "seed changed" in refused.stderr
        assert "--accept-changes" in refused.stderr
        assert one.call("run", "--accept-changes").returncode == 0
        assert one.status()["rows"] == 8


def test_a_shipped_recipe_is_written_to_be_edited_and_passes_its_check(tmp_path: Path) -> None:
    with mill(tmp_path, GOOD) as one:
        written = one.call("init", "local")
        assert written.returncode == 0, written.stderr
        assert (tmp_path / "samples/prompts.jsonl").is_file()
        assert one.call("init", "local").returncode == 2
        checked = one.call("check", "local.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "16 prompts: 48 calls" in checked.stdout


def test_a_check_that_fails_says_why(tmp_path: Path) -> None:
    with mill(tmp_path, GOOD) as one:
        checked = one.call("check")
    assert checked.returncode == 2
    assert "FAIL  source" in checked.stdout
    assert "FAIL  endpoint mock" in checked.stdout


def test_a_try_prints_each_step(tmp_path: Path, llm: LlmServer) -> None:
    with mill(tmp_path, recipe(llm.base_url, {"stdin": True})) as one:
        tried = one.call("try", "Which are the top cities in Spain?")
    assert tried.returncode == 0, tried.stderr
    steps = [line for line in tried.stdout.splitlines() if line and not line.startswith(" ")]
    assert steps == [
        "generate a",
        "generate b",
        "group",
        "judge judge: overall-rating",
        "outcome",
        "format",
    ]
    assert llm.stats()["models"]["judge-model"]["requests"] == 1


def test_exports_hold_the_same_rows_in_either_form(tmp_path: Path, llm: LlmServer) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 16)
    with mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one:
        assert one.call("run").returncode == 0
        database = ["--database", "sqlite:///prefmill-data/ledger.db"]
        for config in ("default", "full"):
            parquet = tmp_path / f"{config}.parquet"
            options = ["--config", config, "--out", str(parquet)]
            assert one.call("export", *options, *database).returncode == 0
            assert pq.read_table(parquet).to_pylist() == one.rows(config)
        (full, *_) = one.rows("full")
        named = one.call("export", "--config", "full", "--out", "named.ndjson", *database)
        assert named.returncode == 0, named.stderr
        assert (tmp_path / "named.ndjson").read_bytes() == (tmp_path / "full.jsonl").read_bytes()
        nothing = one.call("export", "--config", "human", "--out", "human.jsonl", *database)
        assert nothing.stdout.startswith("0 rows: no pairs follow from people's ratings")
        folder = one.call("export", "--out", "prefmill-data", *database)
        assert folder.returncode == 2
        assert "prefmill-data: is no file; accepted: a file path" in folder.stderr
    assert len(full["generations"]) == len(full["ratings"]) == len(full["rationales"]) == 2
    assert [message["role"] for message in full["chosen"]] == ["user", "assistant"]
    assert full["generation_models"] == ["model-a", "model-b"]
    assert json.loads(full["metadata"])["judgements"][0]["judge"] == "judge"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "x.csv"], ["--out x.csv", "'.csv'", "accepted: .parquet, .jsonl, .ndjson"]),
        (["--out", "x.jsonl.gz", "--format", "jsonl"], ["--out x.jsonl.gz", "'.gz'"]),
        (["--out", "x.JSONL", "--format", "parquet"], ["--format parquet", "--out x.JSONL"]),
        (["--out", "x.parquet", "--format", "jsonl"], ["--format jsonl", "--out x.parquet"]),
        (["--out", "x.jsonl"], ["no ledger"]),
    ],
)
def test_an_export_under_a_wrong_name_writes_nothing(
    tmp_path: Path, options: list[str], said: list[str]
) -> None:
    with mill(tmp_path, GOOD) as one:
        done = one.call("export", *options)
    assert done.returncode == 2
    assert all(part in done.stderr for part in said), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.chaos
def test_an_endpoint_that_takes_no_schema_is_asked_for_text(tmp_path: Path, llm: LlmServer) -> None:
    refusal = {"model": None, "contains": None, "times": None, "reply": {"refuse_schema": True}}
    llm.script([refusal])
    write_prompts(tmp_path / "prompts.jsonl", 8)
    with mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one:
        assert one.call("run").returncode == 0
        assert one.status()["paired"] == 8
