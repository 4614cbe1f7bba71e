"""A dataset folder belongs to the run that wrote it, and no other run replaces it."""

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from producer import owner
from producer.columns import SourceColumns
from producer.export import export_dataset
from producer.guards import locked
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.errors import SettingsError
from workers.ledger import Ledger
from workers.recipe_file import load
from workers.records import PAIRED, Generation, Judgement, Outcome, Pair, Prompt, Rating

#: Where nothing answers: what is refused before anything starts asks nobody.
NOWHERE = "http://127.0.0.1:9/v1"


def opened(path: Path, run: str = "mill") -> Ledger:
    ledger = Ledger(f"sqlite:///{path / 'ledger.db'}")
    ledger.open_run(run, "hash", {})
    return ledger


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def runs_in(ledger: Path) -> list[str]:
    with sqlite3.connect(ledger) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM runs ORDER BY name")]
    connection.close()
    return names


def refused(one: Mill, there: str, *options: str, out: str = "prefmill-data") -> str:
    """What a refused run says, which is one line."""
    meant = yaml.safe_load(one.recipe.read_text())["name"]
    done = one.call("run", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    for part in (f"--out {out}: ", f"{out}/dataset", repr(meant), there, "; accepted: --out"):
        assert part in line
    return line


def test_a_second_recipe_is_refused_and_changes_no_byte(tmp_path: Path, llm: LlmServer) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 6)
    first = recipe(llm.base_url, {"file": "prompts.jsonl"})
    data = tmp_path / "prefmill-data"
    with mill(tmp_path, first) as one:
        assert one.call("run").returncode == 0
    before, asked = contents(data / "dataset"), llm.stats()["models"]
    with mill(tmp_path, {**first, "name": "second"}) as one:
        refused(one, "'mill'")
        assert contents(data / "dataset") == before
        assert llm.stats()["models"] == asked
        assert runs_in(data / "ledger.db") == ["mill"]
        shutil.copytree(data / "dataset", tmp_path / "other/dataset")
        refused(one, "'mill'", "--out", "other", out="other")
    with mill(tmp_path, first) as one:
        assert one.call("run").returncode == 0
    assert contents(data / "dataset") == before


def test_an_interrupted_run_keeps_its_folder(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 8)
    with LlmServer(latency="fixed:0.5", slots=2) as llm:
        first = recipe(llm.base_url, {"file": "prompts.jsonl"})
        with mill(tmp_path, first) as one:
            process = one.start("run")
            eventually(lambda: llm.stats()["models"], within_s=60, what="a first call")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=20) == 130
        assert not (tmp_path / "prefmill-data/dataset").exists()
        with mill(tmp_path, {**first, "name": "second"}) as one:
            refused(one, "'mill'")
        with mill(tmp_path, first) as one:
            done = one.call("run")
            assert done.returncode == 0, done.stderr
            assert one.status()["rows"] == 8
    assert load_dataset(str(tmp_path / "prefmill-data/dataset"), split="train").num_rows == 8


def _foreign(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("---\ntags: [dpo]\n---\n\n# mill\n")


def _file(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")


def _link_to_nothing(folder: Path) -> None:
    folder.parent.mkdir()
    folder.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("put", "there"),
    [(_foreign, "did not write"), (_file, "no folder"), (_link_to_nothing, "no folder")],
)
def test_what_prefmill_did_not_write_is_left_alone(
    tmp_path: Path, put: Callable[[Path], None], there: str
) -> None:
    folder = tmp_path / "prefmill-data/dataset"
    put(folder)
    before = contents(tmp_path / "prefmill-data")
    with mill(tmp_path, recipe(NOWHERE, {"file": "prompts.jsonl"})) as one:
        refused(one, there)
    assert contents(tmp_path / "prefmill-data") == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["dataset"]


@pytest.mark.parametrize("out", ["here/prompts.jsonl", "here/prompts.jsonl/x", "/proc/prefmill"])
def test_a_folder_that_cannot_be_made_gives_one_line(tmp_path: Path, out: str) -> None:
    with mill(tmp_path / "here", recipe(NOWHERE, {"file": "prompts.jsonl"})) as one:
        write_prompts(one.folder / "prompts.jsonl", 1)
        done = one.call("run", "--out", out.replace("here", str(one.folder)))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "--out" in line
    assert "accepted: a folder" in line


def _as_before(dataset: Path) -> None:
    """The folder as versions wrote it that kept no owner."""
    card = dataset / "README.md"
    _, header, body = card.read_text().split("---\n", 2)
    data = yaml.safe_load(header)
    assert data.pop("prefmill") == {"run": "mill"}
    card.write_text(f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n{body}")
    (dataset.parent / "dataset.owner").unlink()


def test_a_folder_of_the_version_before_goes_by_name_and_ledger(tmp_path: Path) -> None:
    ledger, folder = opened(tmp_path), tmp_path / "dataset"
    begun = ledger.identity("mill")
    export_dataset(ledger, "mill", folder)
    owner.check(folder, "mill", begun)
    _as_before(folder)
    owner.check(folder, "mill", begun)
    for run, identity in (("second", "1.0"), ("second", None), ("mill", "")):
        with pytest.raises(SettingsError, match="belongs to"):
            owner.check(folder, run, identity)
    export_dataset(ledger, "mill", folder)
    with pytest.raises(SettingsError, match="another ledger"):
        owner.check(folder, "mill", "1.0")


def test_a_namesake_of_another_ledger_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    data = tmp_path / "prefmill-data"
    data.mkdir()
    ledger = opened(data)
    export_dataset(ledger, "mill", data / "dataset")
    ledger.close()
    before = contents(data / "dataset")
    with mill(tmp_path, recipe(NOWHERE, {"file": "prompts.jsonl"})) as one:
        elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
        refused(one, "another ledger", "--database", elsewhere)
        assert runs_in(tmp_path / "elsewhere.db") == []
        (data / "ledger.db").unlink()
        refused(one, "another ledger")
    assert contents(data / "dataset") == before


def test_a_kill_between_two_renames_costs_neither_claim_nor_data(tmp_path: Path) -> None:
    ledger, folder = opened(tmp_path), tmp_path / "dataset"
    export_dataset(ledger, "mill", folder)
    before = contents(folder)
    folder.rename(tmp_path / ".dataset.old")
    (tmp_path / ".dataset.partial").mkdir()
    ledger.open_run("second", "hash", {})
    with pytest.raises(SettingsError, match="belongs to run 'mill'"):
        export_dataset(ledger, "second", folder)
    assert contents(folder) == before
    assert export_dataset(ledger, "mill", folder) == 0
    names = ["dataset", "dataset.owner"]
    assert [p.name for p in sorted(tmp_path.iterdir()) if "ledger" not in p.name] == names


def test_a_claim_holds_no_data_and_ends_with_the_dataset(tmp_path: Path) -> None:
    ledger, folder = opened(tmp_path), tmp_path / "dataset"
    folder.mkdir()
    owner.claim(folder, "mill", ledger.identity("mill"))
    with pytest.raises(Exception, match="contain any data files"):
        load_dataset(str(folder))
    folder.rmdir()
    with pytest.raises(SettingsError, match="belongs to run 'mill'"):
        owner.check(folder, "second")
    export_dataset(ledger, "mill", folder)
    with pytest.raises(SettingsError, match="belongs to run 'mill'"):
        owner.check(folder, "second")
    shutil.rmtree(folder)
    owner.check(folder, "second", "")


def test_a_dataset_is_written_where_a_link_leads_to(tmp_path: Path) -> None:
    ledger, folder = opened(tmp_path), tmp_path / "dataset"
    (tmp_path / "disk/mine").mkdir(parents=True)
    folder.symlink_to("disk/mine")
    for _ in range(2):
        export_dataset(ledger, "mill", folder)
        assert folder.is_symlink()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["mine"]
    assert (tmp_path / "disk/mine/README.md").is_file()


# Pairs that change after the dataset was written


def filled(one: Mill, database: str = "prefmill-data/ledger.db") -> Ledger:
    """A ledger with ten pairs of margins 1 to 4, as a run leaves them."""
    loaded = load(str(one.recipe))
    ledger = Ledger(f"sqlite:///{one.folder / database}")
    ledger.open_run(loaded.name, loaded.hash, loaded.fingerprint())
    prompts = [Prompt(f"Task {number}.", {}) for number in range(10)]
    keys = [prompt.key(loaded.name) for prompt in prompts]
    (batch,) = ledger.accept(
        loaded.name,
        dict(zip(keys, prompts, strict=True)),
        [],
        source="file",
        position={"line": 10},
        schema=SourceColumns().to_text(),
        batch_size=10,
    )
    ledger.commit(loaded.name, batch, [_ended(key, n) for n, key in enumerate(keys)], ())
    return ledger


def _ended(key: str, number: int) -> Outcome:
    pair = Pair(f"Good {number}.", "model-a", 5.0, f"Bad {number}.", "model-b", number % 4 + 1.0)
    generations = (
        Generation("a", "model-a", text=pair.chosen),
        Generation("b", "model-b", text=pair.rejected),
    )
    ratings = (Rating(5.0, "right"), Rating(pair.rejected_rating, "wrong"))
    judgement = Judgement("judge", "judge-model", "overall-rating", ratings, (0, 1))
    return Outcome(key, PAIRED, None, "", generations, (judgement,), (pair,))


def _stricter(one: Mill) -> None:
    data: dict[str, Any] = yaml.safe_load(one.recipe.read_text())
    one.recipe.write_text(json.dumps({**data, "pairs": {"min_margin": 3.0}}))


def _rows(folder: Path) -> int:
    return int(load_dataset(str(folder), split="train").num_rows)


def test_a_rebuild_writes_the_dataset_of_its_run_again(tmp_path: Path) -> None:
    with mill(tmp_path, recipe(NOWHERE, {"file": "prompts.jsonl"})) as one:
        folder = tmp_path / "prefmill-data/dataset"
        ledger = filled(one)
        assert export_dataset(ledger, "mill", folder) == _rows(folder) == 10
        _stricter(one)
        before = contents(folder)
        assert one.call("rebuild", "--dry-run").returncode == 0
        with locked(folder.parent):
            done = one.call("rebuild", "--yes")
            assert done.returncode == 0, done.stderr
            assert "prefmill-data/dataset holds the earlier pairs until" in done.stdout
        assert contents(folder) == before
        done = one.call("rebuild", "--yes")
        assert done.returncode == 0, done.stderr
        assert "wrote 6 rows to prefmill-data/dataset" in done.stdout
        assert _rows(folder) == len(one.rows()) == 6


@pytest.mark.parametrize("database", ["prefmill-data/ledger.db", "mine.db"])
def test_a_rebuild_without_a_dataset_of_its_own_says_what_writes_one(
    tmp_path: Path, database: str
) -> None:
    with mill(tmp_path, recipe(NOWHERE, {"file": "prompts.jsonl"})) as one:
        filled(one, database)
        folder = tmp_path / "prefmill-data/dataset"
        export_dataset(opened(folder.parent, "second"), "second", folder)
        before = contents(folder)
        done = one.call("rebuild", "--yes", "--database", f"sqlite:///{database}")
        assert done.returncode == 0, done.stderr
        command = f"`prefmill run {one.recipe} --out DIR --database sqlite:///{database}`"
        assert command in done.stdout
        assert contents(folder) == before
