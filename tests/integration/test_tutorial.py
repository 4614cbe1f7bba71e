"""The shipped tutorial recipe: its dataset from a Hub server, its models behind a mock endpoint."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import load_dataset

from tests.hub_server import HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import mill
from workers.recipe_file import SHIPPED

LLAMA, MIXTRAL = "meta-llama/Meta-Llama-3-8B-Instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1"


def _shard(rows: int) -> bytes:
    table = pa.table(
        {
            "instruction": [f"Task {number}: explain it." for number in range(rows)],
            "topic": [f"topic {number % 5}" for number in range(rows)],
        }
    )
    pq.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


def test_the_tutorial_ends_with_topics_and_both_models_in_its_rows(tmp_path: Path) -> None:
    data = yaml.safe_load((SHIPPED / "tutorial.yaml").read_text())
    with HubServer() as hub, LlmServer(latency="fixed:0.05") as llm:
        hub.put("argilla/10Kprompts-mini", {"data/train-00000-of-00001.parquet": _shard(100)})
        data["endpoints"]["huggingface"]["base_url"] = llm.base_url
        environment = hub_environment(hub, tmp_path / "hf")
        environment["HF_TOKEN"] = "hf_made_up"
        with mill(tmp_path, data, **environment) as one:
            done = one.call("run")
            status = one.status()
        keys = llm.stats()["keys"]
    assert done.returncode == 0, done.stderr
    assert status["accepted"] == status["paired"] + sum(status["rejected"].values()) == 100
    assert keys == ["Bearer hf_made_up"]
    assert "hf_made_up" not in done.stdout + done.stderr + one.logs()
    rows = load_dataset(str(tmp_path / "prefmill-data/dataset"), split="train")
    assert rows.num_rows == status["rows"] == status["paired"]
    for row in rows:
        number = int(row["prompt"][0]["content"].split(":")[0][5:])
        assert row["topic"] == f"topic {number % 5}"
        assert {row["chosen_model"], row["rejected_model"]} == {LLAMA, MIXTRAL}


def test_a_missing_token_is_said_before_anything_is_enqueued(tmp_path: Path) -> None:
    data = yaml.safe_load((SHIPPED / "tutorial.yaml").read_text())
    with mill(tmp_path, data) as one:
        done = one.call("run")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "HF_TOKEN is not set" in done.stderr
    assert not (tmp_path / "prefmill-data").exists()
