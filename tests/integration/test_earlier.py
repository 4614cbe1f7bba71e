"""What a version stored that kept half texts and thoughts as answers is read by today's rules."""

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import redis

from producer.rebuild import difference, rebuild
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.ledger import Ledger
from workers.outcomes import conclude
from workers.recipe import Recipe
from workers.records import Generation, Judgement, Prompt, Rating

THOUGHTS = "<think>The user wants it short.</think>\n\n"
SINK = "mill.v1.sink"


def as_earlier(database: Path) -> None:
    """Mark every prompt as one whose replies an earlier version read."""
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE prompts SET replies = 0")


def test_messages_of_an_earlier_version_are_read_anew(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 3)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    database = tmp_path / "ledger.db"
    environment = {
        "PREFMILL_BROKER_URL": broker_url,
        "PREFMILL_DATABASE_URL": f"sqlite:///{database}",
    }
    with mill(tmp_path, data, **environment) as fleet:
        assert fleet.call("enqueue").returncode == 0
        for generator in ("a", "b"):
            fleet.start("worker", f"generate.{generator}")
        client = redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://"))
        with client:
            eventually(lambda: client.llen(SINK), within_s=60, what="a batch that is joined")
            fleet.close()
            _as_an_earlier_version_wrote(client)
        as_earlier(database)
        for queue in ("sink", "judge"):
            fleet.start("worker", queue)
        eventually(lambda: _settled(fleet), within_s=60, what=f"outcomes; see {tmp_path}")
        status, rows = fleet.status(), fleet.rows("full")
    assert status["failed"] == {"too_few_generations": 1}
    assert status["paired"] + sum(status["rejected"].values()) == 2
    assert all("<think>" not in text for row in rows for text in row["generations"])


def _as_an_earlier_version_wrote(client: "redis.Redis") -> None:
    """Put thoughts into the first text of each prompt; one of these ended with an error."""
    for message in client.lrange(SINK, 0, -1):
        envelope = json.loads(message)
        body = json.loads(base64.b64decode(envelope["body"]))
        for number, generations in enumerate(body[0][0][0].values()):
            generations[0]["text"] = THOUGHTS + generations[0]["text"]
            generations[0]["finish_reason"] = "error" if number == 0 else "stop"
        envelope["body"] = base64.b64encode(json.dumps(body).encode()).decode()
        client.lrem(SINK, 1, message)
        client.rpush(SINK, json.dumps(envelope))


def _settled(fleet: Mill) -> bool:
    return not fleet.status()["in_flight"]


def test_a_rebuild_reads_what_an_earlier_version_stored(tmp_path: Path) -> None:
    made = Recipe.model_validate(recipe("http://127.0.0.1:9/v1", {"stdin": True}))
    database = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{database}")
    ledger.open_run("mill", made.hash, made.fingerprint())
    texts = {
        "thoughts": [(THOUGHTS + "Best.", "stop"), ("Good.", "stop"), ("Bad.", "stop")],
        "half of three": [("Hal", "error"), ("Good.", "stop"), ("Bad.", "stop")],
        "half of two": [("Hal", "MAX_TOKENS"), ("Good.", "stop")],
        "fine": [("Best.", "stop"), ("Good.", None)],
    }
    _judge_as_they_are(ledger, made, texts)
    as_earlier(database)
    shown = difference(ledger, made)
    assert (shown.prompts, shown.changed) == (4, 3)
    assert rebuild(ledger, made) == 3
    assert difference(ledger, made).changed == 0
    pairs = {one.key: (one.pair.chosen, one.pair.rejected) for one in ledger.pairs("mill")}
    assert pairs == {
        "thoughts": ("Best.", "Bad."),
        "half of three": ("Good.", "Bad."),
        "fine": ("Best.", "Good."),
    }
    generations = {one.key: one.generations for one in ledger.pairs("mill")}
    assert [one.text for one in generations["thoughts"]] == ["Best.", "Good.", "Bad."]
    assert [one.reason for one in generations["half of three"]] == ["server_error", None, None]
    counts = ledger.counts("mill")
    assert (counts.accepted, counts.paired) == (4, 3)
    assert counts.failed == {"too_few_generations": 1}
    ledger.close()


def _judge_as_they_are(
    ledger: Ledger, made: Recipe, texts: dict[str, list[tuple[str, str | None]]]
) -> None:
    prompts = {key: Prompt(key) for key in texts}
    place: dict[str, Any] = {"source": "s", "position": {}, "schema": None, "batch_size": 9}
    (batch,) = ledger.accept("mill", prompts, [], **place)
    generations = {
        key: [
            Generation("a", f"m-{sample}", text=text, finish_reason=finish, sample=sample)
            for sample, (text, finish) in enumerate(answers)
        ]
        for key, answers in texts.items()
    }
    judgements = {
        key: [
            Judgement(
                "judge",
                "j",
                "overall-rating",
                ratings=tuple(Rating(5.0 - place, "because") for place in range(len(answers))),
                order=tuple(reversed(range(len(answers)))),
            )
        ]
        for key, answers in texts.items()
    }
    outcomes = conclude(made, generations, judgements)
    assert ledger.commit("mill", batch, outcomes) == len(texts)
