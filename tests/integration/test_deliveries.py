"""Deliveries end to end: a real argilla-server, a Hub server that can fail, real commands.

What arrived is counted on the other side, never asked of prefmill alone.
"""

import io
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from producer.columns import SourceColumns
from tests.argilla_server import ANNOTATOR_KEYS, ArgillaServer
from tests.faults.proxy import Proxy
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, recipe, write_prompts
from workers.delivery import Delivery
from workers.ledger import Ledger
from workers.recipe_file import load
from workers.records import PAIRED, Generation, Judgement, Outcome, Pair, Prompt, Rating

REPO = "me/preferences"

LOAD = """
import json, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], sys.argv[2], split="train", streaming=sys.argv[3] == "stream")
print(json.dumps(list(rows)))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(WRITE_TOKEN) as server:
        yield server


class Delivering:
    """A mill with both destinations, and what is to be found there."""

    def __init__(self, one: Mill, hub: HubServer, argilla: ArgillaServer, dataset: str) -> None:
        self.one, self.hub, self.argilla, self.dataset = one, hub, argilla, dataset

    def loaded(self, configuration: str = "default", how: str = "") -> list[dict[str, Any]]:
        """The rows of a configuration, as `datasets` loads them from the Hub."""
        command = [sys.executable, "-c", LOAD, REPO, configuration, how]
        home = self.one.folder / f"hf-{uuid.uuid4().hex[:8]}"
        environment = {**self.one.environment, "HF_HOME": str(home)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def records(self) -> list[dict[str, Any]]:
        """All records of the Argilla dataset."""
        path = f"datasets/{self.dataset_id()}/records?include=responses&include=suggestions"
        found: list[dict[str, Any]] = []
        while True:
            page = self.argilla.request("GET", f"{path}&limit=500&offset={len(found)}")["items"]
            found += page
            if len(page) < 500:
                return found

    def dataset_id(self) -> str:
        """The id of the run's dataset in Argilla."""
        items = self.argilla.request("GET", "me/datasets")["items"]
        (mine,) = [item["id"] for item in items if item["name"] == self.dataset]
        return str(mine)

    def commits(self) -> int:
        """How often the repository was changed."""
        return len(self.hub.repositories[REPO].commits)

    def check(self, status: dict[str, Any]) -> None:
        """Every judged prompt is one record, every row is one row, and the card loads."""
        rows, full = self.loaded(), self.loaded("full")
        assert len(rows) == status["rows"] == status["deliveries"]["hub"]["delivered"]
        assert len(full) == len(rows)
        texts = Counter(json.dumps(row, sort_keys=True) for row in rows)
        assert texts == Counter(json.dumps(row, sort_keys=True) for row in self.one.rows())
        assert set(texts.values()) <= {1}
        keys = [record["external_id"] for record in self.records()]
        judged = status["paired"] + status["rejected"].get("tie", 0)
        assert len(keys) == len(set(keys)) == judged
        assert status["deliveries"]["argilla"] == {"pending": 0, "delivered": judged}
        assert status["deliveries"]["hub"]["pending"] == 0


def delivering(
    folder: Path,
    hub: HubServer,
    argilla: ArgillaServer,
    llm: LlmServer,
    *,
    api_url: str | None = None,
    endpoint: str | None = None,
    **more: str,
) -> Delivering:
    """A mill of 60 prompts whose recipe names both destinations; not started."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / "prompts.jsonl", 60)
    dataset = f"set-{uuid.uuid4().hex[:10]}"
    sections = {
        "argilla": {"workspace": argilla.workspace, "dataset": dataset},
        "hub": {"repo_id": REPO, "private": False},
    }
    environment = hub_environment(hub, folder / "hf") | {
        "HF_TOKEN": WRITE_TOKEN,
        "ARGILLA_API_URL": api_url or argilla.api_url,
        "ARGILLA_API_KEY": argilla.api_key,
        "PREFMILL_DATABASE_URL": f"sqlite:///{folder / 'prefmill-data/ledger.db'}",
    }
    if endpoint is not None:
        environment["HF_ENDPOINT"] = endpoint
    data = recipe(llm.base_url, {"file": "prompts.jsonl"}, **sections)
    return Delivering(Mill(folder, data, **(environment | more)), hub, argilla, dataset)


@pytest.fixture
def ties() -> Iterator[LlmServer]:
    """An LLM server whose judge lets about every twelfth prompt tie."""
    with LlmServer(latency="fixed:0.02", judge_equal=0.08) as server:
        yield server


def test_a_run_delivers_everything_once_and_a_second_one_adds_nothing(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, ties: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, ties)
    done = there.one.call("run", timeout_s=120)
    assert done.returncode == 0, done.stderr + there.one.logs()
    status = there.one.status()
    assert status["rejected"]["tie"] > 0
    there.check(status)
    assert there.loaded("default", "stream") == there.loaded()
    assert there.loaded("full", "stream") == there.loaded("full")
    for row in there.loaded("full"):
        assert len(row["generations"]) == len(row["ratings"]) == 2
    _check_suggestions(there)
    commits, records = there.commits(), there.records()
    again = there.one.call("run", timeout_s=120)
    assert again.returncode == 0, again.stderr
    assert there.commits() == commits
    assert there.records() == records
    assert there.one.status() == status
    for secret in (WRITE_TOKEN, argilla.api_key):
        assert secret not in done.stdout + done.stderr + there.one.logs()
        assert all(secret.encode() not in data for data in hub.repositories[REPO].files.values())


def _check_suggestions(there: Delivering) -> None:
    """What the judge said of each text is filled in, under its name."""
    rows = {row["prompt_id"]: row for row in there.loaded("full")}
    questions = there.argilla.request("GET", f"datasets/{there.dataset_id()}/questions")["items"]
    names = {question["id"]: question["name"] for question in questions}
    assert set(names.values()) == {
        f"generations-{n}-{what}" for n in (0, 1) for what in ("rating", "rationale")
    }
    found = {record["fields"]["id"]: record for record in there.records()}
    assert set(rows) <= set(found)
    for prompt_id, row in rows.items():
        record = found[prompt_id]
        said = {names[one["question_id"]]: one for one in record["suggestions"]}
        for n, (text, rating) in enumerate(zip(row["generations"], row["ratings"], strict=True)):
            assert record["fields"][f"generations-{n}"] == text
            assert record["metadata"][f"generations-{n}-score"] == rating
            assert said[f"generations-{n}-rating"]["value"] == rating
            assert said[f"generations-{n}-rating"]["agent"] == "judge"
            assert said[f"generations-{n}-rationale"]["value"] == row["rationales"][n]


def test_a_fleet_delivers_as_it_goes(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer, broker_url: str
) -> None:
    there = delivering(
        tmp_path,
        hub,
        argilla,
        llm,
        PREFMILL_BROKER_URL=broker_url,
        PREFMILL_DELIVER_EVERY="1",
    )
    try:
        for queue in ("generate.a", "generate.b", "judge", "sink", "deliver"):
            there.one.start("worker", queue)
        there.one.start("beat")
        assert there.one.call("enqueue").returncode == 0

        def arrived() -> bool:
            deliveries = there.one.status()["deliveries"]
            return [of["delivered"] for of in deliveries.values()] == [60, 60]

        eventually(arrived, within_s=90, what="60 records and rows\n" + there.one.logs())
        there.check(there.one.status())
    finally:
        there.one.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("down_s", [6, pytest.param(60, marks=pytest.mark.chaos)])
def test_destinations_that_are_down_for_a_while_lose_nothing(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer, down_s: int
) -> None:
    with (
        Proxy(argilla.api_url.removeprefix("http://")) as to_argilla,
        Proxy(hub.endpoint.removeprefix("http://")) as to_hub,
    ):
        there = delivering(
            tmp_path,
            hub,
            argilla,
            llm,
            api_url=f"http://127.0.0.1:{to_argilla.port}",
            endpoint=f"http://127.0.0.1:{to_hub.port}",
            PREFMILL_DELIVER_EVERY="1",
        )
        to_argilla.cut()
        to_hub.cut()
        process = there.one.start("run")
        since = time.monotonic()
        eventually(
            lambda: (tmp_path / "prefmill-data/dataset").exists(),
            within_s=90,
            what="the run itself\n" + there.one.logs(),
        )
        while time.monotonic() - since < down_s:
            assert process.poll() is None
            time.sleep(0.2)
        to_argilla.heal()
        to_hub.heal()
        assert process.wait(timeout=100) == 0, there.one.logs()
        there.check(there.one.status())


def made(
    there: Delivering,
    start: int,
    count: int,
    say: str = "say something.",
    words: tuple[str, str] = ("Good", "Bad"),
) -> None:
    """Enter prompts that end with one pair each, as the sink would, without calling any LLM.

    The first one asks for something of its own.
    """
    loaded = load(str(there.one.recipe))
    ledger = Ledger(there.one.environment["PREFMILL_DATABASE_URL"])
    ledger.open_run(loaded.name, loaded.hash, loaded.fingerprint())
    prompts = [
        Prompt(f"Task {n}: {say if n == start else 'say something.'}", {"topic": f"t{n}"})
        for n in range(start, start + count)
    ]
    columns = SourceColumns()
    assert columns.fit({"topic": "t"}, first=True) == {}
    (batch,) = ledger.accept(
        loaded.name,
        {prompt.key(loaded.name): prompt for prompt in prompts},
        [],
        source="file",
        position={"line": start},
        schema=columns.to_text(),
        batch_size=count,
    )
    outcomes = [ended(prompt.key(loaded.name), n, words) for n, prompt in enumerate(prompts, start)]
    names = loaded.destinations.values()
    assert ledger.commit(loaded.name, batch, outcomes, names) == count
    ledger.close()


def ended(key: str, number: int, words: tuple[str, str]) -> Outcome:
    """A pair of two texts of about 1 KB."""
    good, bad = (f"{word} answer {number}. " + "It goes on. " * 80 for word in words)
    generations = (Generation("a", "model-a", text=good), Generation("b", "model-b", text=bad))
    low = float(number % 4 + 1)
    ratings = (Rating(5.0, f"right {number}"), Rating(low, f"wrong {number}"))
    judgement = Judgement("judge", "judge-model", "overall-rating", ratings, (0, 1))
    pair = Pair(good, "model-a", 5.0, bad, "model-b", low)
    return Outcome(key, PAIRED, None, "", generations, (judgement,), (pair,))


def test_a_lost_answer_a_foreign_commit_and_a_busy_hub_still_make_every_row_once(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    made(there, 0, 20)
    lost = hub.fail("POST .*/commit/", status=500, applied=True)
    assert there.one.call("sync").returncode == 0
    assert lost.hits == 1
    assert len(there.loaded()) == 20
    made(there, 20, 20)
    stale = hub.fail("POST .*/commit/", status=412)
    busy = hub.fail("POST .*/commit/", status=429, headers={"Retry-After": "1"})
    cut = hub.fail("POST .*/commit/", cut=True)
    gone = hub.fail("POST .*/commit/", cut=True, applied=True)
    hub.put(REPO, {"notes.md": b"somebody's own file"})
    assert there.one.call("sync").returncode == 0
    assert [fault.hits for fault in (stale, busy, cut, gone)] == [1, 1, 1, 1]
    there.check(there.one.status())
    assert hub.repositories[REPO].files["notes.md"] == b"somebody's own file"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.chaos)])
def test_sigkill_during_delivery_again_and_again_makes_every_row_once(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer, times: int
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    hub.fail(".*", times=10_000, delay_s=0.06)
    rng, seen = random.Random(5), []
    for number in range(times):
        made(there, number * 40, 40)
        process = there.one.start("sync")
        begun = len(hub.exchanges)
        moment = rng.randint(1, 12)
        eventually(
            lambda n=begun + moment, p=process: len(hub.exchanges) >= n or p.poll() is not None,
            within_s=30,
            what=f"{moment} requests",
        )
        seen.append((process.poll() is None, len(hub.exchanges) - begun))
        process.kill()
        process.wait()
    at_work = sum(alive for alive, _ in seen)
    print(f"killed at work: {at_work} of {times}, after requests:")
    print(*(requests for _, requests in seen))
    done = there.one.call("sync")
    assert done.returncode == 0, done.stderr
    status = there.one.status()
    assert status["rows"] == 40 * times
    there.check(status)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
@pytest.mark.parametrize("times", [6, pytest.param(50, marks=pytest.mark.chaos)])
def test_every_delivery_costs_the_same_however_much_is_there_already(
    tmp_path: Path,
    hub: HubServer,
    argilla: ArgillaServer,
    llm: LlmServer,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    for name, value in there.one.environment.items():
        if name.startswith(("HF_", "ARGILLA_", "PREFMILL_")):
            monkeypatch.setenv(name, value)
    loaded = load(str(there.one.recipe))
    costs = []
    for number in range(times):
        made(there, number * 100, 100)
        ledger = Ledger(there.one.environment["PREFMILL_DATABASE_URL"])
        before = len(hub.exchanges)
        assert Delivery(ledger, loaded, "hub", threading.Event()).run(patience_s=10)
        ledger.close()
        spent = hub.exchanges[before:]
        costs.append((len(spent), sum(one.up + one.down for one in spent)))
    requests, sizes = zip(*costs, strict=True)
    print(f"requests {requests}\nbytes {sizes}")
    assert max(requests[1:]) == min(requests[1:])
    assert max(sizes) < 1.1 * sizes[1]
    assert len(there.loaded()) == 100 * times


def test_an_argilla_dataset_of_another_form_is_told_and_left_alone(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    (workspace,) = [
        one["id"]
        for one in argilla.request("GET", "me/workspaces")["items"]
        if one["name"] == argilla.workspace
    ]
    made = argilla.request(
        "POST", "datasets", {"name": there.dataset, "workspace_id": workspace, "guidelines": "-"}
    )
    path = f"datasets/{made['id']}"
    text = {"type": "text", "use_markdown": False}
    field = {"name": "text", "title": "Text", "required": True, "settings": text}
    argilla.request("POST", f"{path}/fields", field)
    argilla.request("POST", f"{path}/questions", {**field, "name": "said", "settings": text})
    argilla.request("PUT", f"{path}/publish")
    done = there.one.call("run", timeout_s=120)
    assert done.returncode == 2, done.stderr
    assert "field" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert llm.stats()["models"] == {}
    assert there.records() == []


def test_a_repository_that_holds_data_of_others_is_not_written_to(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    hub.put(REPO, {"data/train-00000-of-00001.parquet": b"theirs"})
    done = there.one.call("run", timeout_s=120)
    assert done.returncode == 2, done.stderr
    assert "hub.repo_id" in done.stderr
    assert "train-00000-of-00001.parquet" in done.stderr
    assert there.commits() == 1


def test_check_says_of_destinations_whether_they_are_there(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    said = there.one.call("check").stdout
    assert "the dataset will be made" in said
    assert "the repository will be made" in said
    assert hub.repositories == {}
    made(there, 0, 3)
    assert there.one.call("sync").returncode == 0
    assert there.one.call("check").stdout.count("is there") == 2
    there.one.environment["HF_TOKEN"] = READ_TOKEN
    refused = there.one.call("check")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stdout
    assert "may not write" in refused.stdout
    there.one.environment["HF_TOKEN"] = "hf_wrong_" + "x" * 20
    refused = there.one.call("check")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stdout
    assert "hf_wrong_" not in refused.stdout + refused.stderr


@pytest.mark.parametrize("variable", ["HF_TOKEN", "ARGILLA_API_KEY", "ARGILLA_API_URL"])
def test_a_missing_variable_is_told_before_anything_begins(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer, variable: str
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    del there.one.environment[variable]
    for command in (["run"], ["worker", "deliver"]):
        done = there.one.call(*command)
        assert done.returncode == 2, done.stderr
        assert f"{variable} is not set" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "prefmill-data/ledger.db").exists()


def answer(
    there: Delivering, record: dict[str, Any], ratings: dict[int, int], *, who: int, status: str
) -> None:
    """One annotator's answer to a record."""
    values = {f"generations-{n}-rating": {"value": value} for n, value in ratings.items()}
    body = {"values": values or None, "status": status}
    path, key = f"records/{record['id']}/responses", ANNOTATOR_KEYS[who]
    if values:
        there.argilla.request("POST", path, body, key=key)
        return
    # The server stores what is discarded without a value, and then fails to index it.
    with pytest.raises(urllib.error.HTTPError, match="500"):
        there.argilla.request("POST", path, body, key=key)


def test_peoples_ratings_come_back_and_turn_the_pairs_that_they_turn(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    made(there, 0, 60)
    assert there.one.call("sync").returncode == 0
    before = {row["prompt_id"]: row for row in there.one.rows("full")}
    records = there.records()[:10]
    for number, record in enumerate(records):
        # Whom the judge chose, people reject in every second record.
        row = before[record["fields"]["id"]]
        best = row["generations"].index(row["chosen"][-1]["content"])
        best = 1 - best if number % 2 else best
        if number < 8:
            answer(there, record, {best: 5, 1 - best: 2}, who=0, status="submitted")
            answer(there, record, {best: 4, 1 - best: 1}, who=1, status="submitted")
        elif number == 8:
            answer(there, record, {best: 5, 1 - best: 1}, who=0, status="submitted")
            answer(there, record, {}, who=1, status="discarded")
        else:
            answer(there, record, {best: 5, 1 - best: 1}, who=0, status="draft")
            answer(there, record, {best: 1, 1 - best: 5}, who=1, status="discarded")
    done = there.one.call("pull")
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "9 prompts are rated by people" in done.stdout
    assert "4 prompts have their preference turned" in done.stdout
    human = {row["prompt_id"]: row for row in there.one.rows("human")}
    assert len(human) == 9
    for number, record in enumerate(records[:9]):
        row, judged = human[record["fields"]["id"]], before[record["fields"]["id"]]
        turned = row["chosen"][-1] != judged["chosen"][-1]
        assert turned == bool(number % 2)
        means = (4.5, 1.5, 2, 1.0) if number < 8 else (5.0, 1.0, 1, None)
        assert (
            row["chosen_rating"],
            row["rejected_rating"],
            row["annotators"],
            row["disagreement"],
        ) == means
    # Of 18 texts in 9 pairs, judge and people prefer the same one in 5.
    assert "9 pairs of texts" in done.stdout
    assert "(5 of 9)" in done.stdout
    assert there.one.call("sync").returncode == 0
    assert {row["prompt_id"] for row in there.loaded("human")} == set(human)
    assert len(there.loaded()) == 60

    second = records[0]
    answer_id = _answer_of(there, second, who=0)
    taken_back = {"values": {"generations-0-rating": {"value": 1}}, "status": "discarded"}
    argilla.request("PUT", f"responses/{answer_id}", taken_back, key=ANNOTATOR_KEYS[0])
    assert there.one.call("pull").returncode == 0
    refused = there.one.call("sync", "hub")
    assert refused.returncode == 2, refused.stderr
    assert "prefmill compact" in refused.stderr
    assert there.one.call("compact").returncode == 0
    (row,) = [row for row in there.loaded("human") if row["prompt_id"] == second["fields"]["id"]]
    assert (row["chosen_rating"], row["annotators"]) == (4.0, 1)

    # Another policy makes people's pairs again as well: only one record has a margin of 4.
    there.one.recipe.write_text(there.one.recipe.read_text() + "\npairs: {min_margin: 3.5}\n")
    assert there.one.call("rebuild", "--yes").returncode == 0
    (row,) = there.one.rows("human")
    assert row["prompt_id"] == records[8]["fields"]["id"]


def _answer_of(there: Delivering, record: dict[str, Any], *, who: int) -> str:
    found = there.argilla.request(
        "GET", f"datasets/{there.dataset_id()}/records?include=responses&limit=500"
    )["items"]
    (mine,) = [one for one in found if one["id"] == record["id"]]
    me = there.argilla.request("GET", "me", key=ANNOTATOR_KEYS[who])["id"]
    return next(one["id"] for one in mine["responses"] if one["user_id"] == me)


def test_what_someone_deleted_there_is_delivered_again(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    made(there, 0, 10)
    assert there.one.call("sync").returncode == 0
    answer(there, there.records()[0], {0: 1, 1: 5}, who=0, status="submitted")
    assert there.one.call("pull").returncode == 0
    argilla.request("DELETE", f"datasets/{there.dataset_id()}")
    del hub.repositories[REPO]
    made(there, 10, 10)
    done = there.one.call("sync")
    assert done.returncode == 0, done.stderr
    assert len(there.records()) == len(there.loaded()) == 20
    # What people said in the dataset that is gone was not taken back.
    assert "0 prompts are rated by people" in there.one.call("pull").stdout
    assert len(there.one.rows("human")) == len(there.loaded("human")) == 1

    newest = max(path for path in hub.repositories[REPO].files if "/default/" in path)
    hub.repositories[REPO].commit({}, [newest])
    made(there, 20, 10)
    refused = there.one.call("sync")
    assert refused.returncode == 2
    assert newest in refused.stderr
    assert "prefmill compact" in refused.stderr
    done = there.one.call("compact")
    assert done.returncode == 0, done.stderr
    assert len(there.loaded()) == len(there.loaded("full")) == 30


def test_a_row_that_holds_a_token_reaches_neither_a_shard_nor_the_card(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    made(there, 0, 6, say=f"my token is {WRITE_TOKEN}")
    done = there.one.call("sync", "hub")
    assert done.returncode == 0, done.stderr
    assert "secret: 'prompt' holds a key or token" in done.stdout
    assert there.one.status()["deliveries"]["hub"] == {"pending": 0, "delivered": 5, "refused": 1}
    assert len(there.loaded()) == 5
    assert all(WRITE_TOKEN.encode() not in data for data in hub.stored.values())
    assert WRITE_TOKEN.encode() not in hub.repositories[REPO].files["README.md"]


def test_pairs_that_change_are_replaced_in_one_commit(
    tmp_path: Path, hub: HubServer, argilla: ArgillaServer, llm: LlmServer
) -> None:
    there = delivering(tmp_path, hub, argilla, llm)
    for start in (0, 20, 40):
        made(there, start, 20)
        assert there.one.call("sync").returncode == 0
    recipe_text = there.one.recipe.read_text()
    there.one.recipe.write_text(recipe_text + "\npairs: {min_margin: 2.0}\n")
    assert there.one.call("rebuild", "--yes").returncode == 0
    rows = there.one.status()["rows"]
    assert 0 < rows < 60
    refused = there.one.call("sync", "hub")
    assert refused.returncode == 2
    assert "prefmill compact" in refused.stderr
    commits = there.commits()
    lost = hub.fail("POST .*/commit/", status=500, applied=True)
    done = there.one.call("compact")
    assert done.returncode == 0, done.stderr
    assert lost.hits == 1
    assert there.commits() == commits + 1
    assert len([p for p in hub.repositories[REPO].files if p.endswith(".parquet")]) == 2
    assert len(there.loaded()) == len(there.loaded("full")) == rows
    assert there.one.call("compact").returncode == 0
    assert there.commits() == commits + 1


def copied(source: Path, target: Path) -> None:
    """Bring one ledger's content into another, as `.backup` and `.restore` of sqlite3 do."""
    with sqlite3.connect(source) as read, sqlite3.connect(target) as written:
        read.backup(written)
    read.close()
    written.close()


def check_equal(there: Delivering) -> None:
    """The repository's files have the ledger's rows, each once, whatever the order."""
    for configuration in ("default", "full"):
        found = [
            row
            for path, content in there.hub.repositories[REPO].files.items()
            if path.startswith(f"data/{configuration}/")
            for row in pq.read_table(io.BytesIO(content)).to_pylist()
        ]
        texts, ours = (
            Counter(json.dumps(row, sort_keys=True) for row in rows)
            for rows in (found, there.one.rows(configuration))
        )
        assert texts == ours
        assert set(texts.values()) <= {1}


def sync(there: Delivering) -> None:
    """Deliver to the Hub within this process, whose environment is the mill's: no second lost."""
    ledger = Ledger(there.one.environment["PREFMILL_DATABASE_URL"])
    loaded = load(str(there.one.recipe))
    assert Delivery(ledger, loaded, "hub", threading.Event()).run(patience_s=10)
    ledger.close()


@pytest.fixture
def going_back(
    tmp_path: Path,
    hub: HubServer,
    argilla: ArgillaServer,
    llm: LlmServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Delivering:
    """Destinations and a ledger that `sync` can deliver from."""
    there = delivering(tmp_path, hub, argilla, llm)
    for name, value in there.one.environment.items():
        if name.startswith(("HF_", "ARGILLA_", "PREFMILL_", "NO_PROXY")):
            monkeypatch.setenv(name, value)
    return there


quiet = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def gone_back(there: Delivering) -> None:
    """Of four deliveries the ledger forgets the last three, and their prompts come out otherwise.

    Somebody's own files lie in the repository.
    """
    ledger, copy = (there.one.folder / name for name in ("prefmill-data/ledger.db", "copy.db"))
    for number in range(4):
        made(there, number * 10, 10)
        sync(there)
        if number == 0:
            copied(ledger, copy)
    there.hub.put(REPO, OTHERS)
    copied(copy, ledger)
    made(there, 10, 30, words=("Fine", "Poor"))
    refused = there.one.call("sync", "hub")
    assert refused.returncode == 2, refused.stderr
    assert "data/default/train-000001.parquet" in refused.stderr
    assert "prefmill compact" in refused.stderr


OTHERS = {"notes.md": b"mine", "data/extra/train-000003.parquet": b"mine", "more.csv": b"a,b"}


@quiet
@pytest.mark.parametrize(
    "fault",
    [
        {},
        pytest.param({"status": 500, "applied": True}, marks=pytest.mark.chaos),
        pytest.param({"cut": True}, marks=pytest.mark.chaos),
        pytest.param({"status": 412}, marks=pytest.mark.chaos),
    ],
    ids=["no-fault", "answer-lost", "cut", "other-commit"],
)
def test_after_going_back_to_an_older_ledger_compact_makes_the_repository_equal_to_it(
    going_back: Delivering, fault: dict[str, Any]
) -> None:
    there, hub = going_back, going_back.hub
    gone_back(there)
    commits = there.commits()
    injected = hub.fail("POST .*/commit/", **fault) if fault else None
    done = there.one.call("compact")
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert injected is None or injected.hits == 1
    assert there.commits() == commits + 1
    check_equal(there)
    made(there, 40, 10)
    sync(there)
    assert there.commits() == commits + 2
    check_equal(there)
    assert len(there.loaded()) == len(there.loaded("full")) == 50
    files = hub.repositories[REPO].files
    assert {path: files.get(path) for path in OTHERS} == OTHERS
    assert there.one.status()["deliveries"]["hub"] == {"pending": 0, "delivered": 50}


@quiet
@pytest.mark.parametrize(
    ("applied", "then"),
    [
        (True, "sync"),
        pytest.param(False, "sync", marks=pytest.mark.chaos),
        pytest.param(True, "compact", marks=pytest.mark.chaos),
    ],
)
def test_a_compaction_by_an_older_ledger_that_was_killed_is_carried_on(
    going_back: Delivering, applied: bool, then: str
) -> None:
    there, hub = going_back, going_back.hub
    gone_back(there)
    commits = there.commits()
    slow = hub.fail("POST .*/commit/", cut=True, applied=applied, delay_s=3)
    process = there.one.start("compact")
    eventually(lambda: slow.hits, within_s=30, what="a commit\n" + there.one.logs())
    process.kill()
    process.wait()
    if applied:
        eventually(lambda: there.commits() > commits, within_s=30, what="the commit")
    done = there.one.call(then, *(["hub"] if then == "sync" else []))
    assert done.returncode == 0, done.stderr
    assert there.commits() == commits + 1
    check_equal(there)


@quiet
@pytest.mark.chaos
def test_a_plan_of_an_older_ledger_gives_way_to_one_that_knows_what_is_there(
    going_back: Delivering, tmp_path: Path
) -> None:
    there, hub = going_back, going_back.hub
    ledger, copy = tmp_path / "prefmill-data/ledger.db", tmp_path / "copy.db"
    for start in (0, 10):
        made(there, start, 10)
        sync(there)
    away = hub.fail("POST .*/commit/", times=100, status=503, headers={"Retry-After": "600"})
    assert there.one.call("compact").returncode != 0
    away.times = 0
    copied(ledger, copy)  # a compaction is planned and was not sent
    made(there, 20, 10)
    assert there.one.call("compact").returncode == 0
    made(there, 30, 10)
    sync(there)
    copied(copy, ledger)
    made(there, 20, 20, words=("Fine", "Poor"))
    refused = there.one.call("sync", "hub")
    assert refused.returncode == 2, refused.stderr
    assert "prefmill compact" in refused.stderr
    done = there.one.call("compact")
    assert done.returncode == 0, done.stderr
    check_equal(there)


@quiet
@pytest.mark.chaos
def test_a_ledger_from_before_the_first_delivery_may_take_its_own_repository_back(
    going_back: Delivering, tmp_path: Path
) -> None:
    there, hub = going_back, going_back.hub
    ledger, copy = tmp_path / "prefmill-data/ledger.db", tmp_path / "copy.db"
    made(there, 0, 3)
    copied(ledger, copy)
    for start in (3, 6):
        sync(there)
        made(there, start, 3)
    copied(copy, ledger)
    made(there, 3, 3, words=("Fine", "Poor"))
    refused = there.one.call("sync", "hub")
    assert refused.returncode == 2
    assert "prefmill compact" in refused.stderr
    card = hub.repositories[REPO].files["README.md"]
    hub.put(REPO, {"README.md": card.replace(b"# mill", b"# another")})
    refused = there.one.call("compact")
    assert refused.returncode == 2
    assert "did not write" in refused.stderr
    hub.put(REPO, {"README.md": card})
    assert there.one.call("compact").returncode == 0
    check_equal(there)
    assert len(there.loaded()) == 6
