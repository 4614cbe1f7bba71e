"""A made-up secret in every variable that can hold one, and none of them anywhere afterwards.

The fleet is real, and what can go wrong with a secret at hand goes wrong: an endpoint, an Argilla
and a Hub that say which key they were shown, a model that writes the key into its answer, servers
that are not there, a bug inside a task, a recipe with keys in the wrong places. All at level DEBUG.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from sqlalchemy import create_engine, inspect, make_url, text

from tests.faults.proxy import Proxy
from tests.hub_server import HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.settings import read_settings
from workers.to_argilla import open_argilla
from workers.to_hub import open_hub
from workers.worker import open_worker

CANARIES = {
    "broker": "canary-broker-1f0c",
    "database": "canary-database-2e1d",
    "LLM_KEY": 'canary"llm\\3d2e',
    "ECHO_KEY": "sk-proj-canary4c3f9a8b7c6d5e4f",
    "HF_TOKEN": "hf_canaryQwErTyUiOpAsDfGh5b40",
    "ARGILLA_API_KEY": "canary-argilla-6a51",
    "HTTP_PROXY": "canary-proxy-7962",
}
PROMPTS = 12
JSON, TEXT = ("--log-format", "json"), ("--log-format", "text")

#: Makes every process log at DEBUG, and the first judgement of a worker end in a bug.
SITE = """
import logging, os, sys
basic = logging.basicConfig
logging.basicConfig = lambda **options: basic(**{**options, "level": logging.DEBUG})
if "CANARY_BUG" in os.environ:
    import workers.steps as steps
    real, told = steps.judge, []
    async def judge(*arguments, **named):
        if not told:
            told.append(1)
            secret = os.environ["LLM_KEY"]
            raise RuntimeError(f"GET https://me:{secret}@host/?key={secret}", {"key": secret})
        return await real(*arguments, **named)
    steps.judge = judge
"""


@contextmanager
def echo() -> Iterator[str]:
    """The URL of a server that repeats who asks: as an error, and in the answer itself."""
    told: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            shown = f"{self.headers.get('Authorization')} {self.headers.get('X-Argilla-Api-Key')}"
            if "chat/completions" not in self.path or self.first("401"):
                self.reply(401, {"error": {"message": f"{shown} is no key"}, "detail": shown})
            elif "Task 1:" in body:
                self.reply(400, {"error": {"message": f"not with {shown}"}})
            elif "Task 2:" in body and self.first("hang up"):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif "Task 3:" in body and self.first("no completion"):
                self.reply(200, {"choices": shown})
            elif "Task 4:" in body:
                self.reply(200, {"model": shown, "choices": [{"message": {"content": "Fine."}}]})
            else:
                said = f"My key is {shown}." if "Task 5:" in body else f"Fine. {body[-60:]}"
                self.reply(200, {"model": "echo", "choices": [{"message": {"content": said}}]})

        def first(self, what: str) -> bool:
            new = what not in told
            told.add(what)
            return new

        def reply(self, status: int, value: Any) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def canary_recipe(llm: LlmServer, echo_url: str) -> dict[str, Any]:
    data = recipe(
        llm.base_url,
        {"file": "prompts.jsonl"},
        fleet={"batch_size": 2, "deadline": 6},
        argilla={"workspace": "argilla", "dataset": "canaries"},
        hub={"repo_id": "me/canaries", "private": False},
    )
    data["endpoints"]["mock"]["api_key_env"] = "LLM_KEY"
    data["endpoints"]["echo"] = {"base_url": f"{echo_url}/v1", "api_key_env": "ECHO_KEY"}
    data["generators"][1]["endpoint"] = "echo"
    return data


def canary_environment(folder: Path, hub: HubServer, echo_url: str) -> dict[str, str]:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    return hub_environment(hub, folder / "hf") | {
        "PYTHONPATH": str(site),
        "LLM_KEY": CANARIES["LLM_KEY"],
        "ECHO_KEY": CANARIES["ECHO_KEY"],
        "HF_TOKEN": CANARIES["HF_TOKEN"],
        "ARGILLA_API_URL": echo_url,
        "ARGILLA_API_KEY": CANARIES["ARGILLA_API_KEY"],
        "HTTP_PROXY": f"http://me:{CANARIES['HTTP_PROXY']}@127.0.0.1:9",
        "PREFMILL_DELIVER_EVERY": "1",
    }


def test_no_secret_is_found_anywhere_after_a_fleet_went_through_everything(
    tmp_path: Path, llm: LlmServer, broker_url: str, postgres_url: str
) -> None:
    database = make_url(postgres_url).set(password=CANARIES["database"])
    database_url = database.render_as_string(hide_password=False)
    path = broker_url.removeprefix("redis+socket://")
    with (
        redis.Redis(unix_socket_path=path) as client,
        Proxy(path) as proxy,
        HubServer(CANARIES["HF_TOKEN"]) as hub,
        echo() as echo_url,
    ):
        client.config_set("requirepass", CANARIES["broker"])
        url = f"redis://:{CANARIES['broker']}@127.0.0.1:{proxy.port}/0"
        environment = canary_environment(tmp_path, hub, echo_url)
        environment |= {"PREFMILL_BROKER_URL": url, "PREFMILL_DATABASE_URL": database_url}
        with mill(tmp_path, canary_recipe(llm, echo_url), **environment) as one:
            outputs = _provoke(one)
            places = {
                "outputs": "\n".join(outputs),
                "logs": "\n".join(log.read_text() for log in tmp_path.glob("*.log")),
                "redis": _redis_dump(client),
                "ledger": _ledger_dump(postgres_url),
                "exports": "\n".join(
                    file.read_bytes().decode("latin-1") for file in tmp_path.glob("export.*")
                ),
                "hub": _hub_dump(hub),
            }
    assert all(places.values()), {name: len(found) for name, found in places.items()}
    assert "b: secret the reply holds a key" in places["ledger"]
    assert "Bearer ***" in places["ledger"]
    assert "RuntimeError" in places["logs"]
    assert "RuntimeError" in places["redis"]
    _no_canary(places)


def _provoke(one: Mill) -> list[str]:
    """Everything that can go wrong; returns what the commands said."""
    write_prompts(one.folder / "prompts.jsonl", PROMPTS)
    said = [_said(one, "enqueue", *JSON)]
    for queue, form in (("generate.a", JSON), ("generate.b", TEXT), ("sink", JSON)):
        one.start("worker", queue, *form)
    one.start("worker", "deliver", *TEXT)
    one.environment["CANARY_BUG"] = "1"
    one.start("worker", "judge", *JSON)
    one.start("worker", "judge", *TEXT)
    del one.environment["CANARY_BUG"]
    one.start("beat", *TEXT)
    eventually(lambda: _settled(one), within_s=60, what=f"outcomes; see {one.folder}")
    commands = (
        *(["status", *JSON], ["failures"], ["failures", "--json"], ["check", *TEXT]),
        *(["sync", *JSON], ["pull"], ["try", "Say something.", *TEXT]),
        ["export", "--format", "jsonl", "--out", "export.jsonl"],
        ["export", "--config", "full", "--format", "parquet", "--out", "export.parquet"],
    )
    with ThreadPoolExecutor(4) as pool:
        said += pool.map(lambda command: _said(one, *command), commands)
        return said + _said_of_what_is_not_there(one, pool)


def _settled(one: Mill) -> bool:
    status = one.status()
    return status["accepted"] == PROMPTS and not status["in_flight"]


def _said_of_what_is_not_there(one: Mill, pool: ThreadPoolExecutor) -> list[str]:
    """A broker, a database and a recipe that are not as they should be."""
    broken = yaml.safe_load(one.recipe.read_text())
    broken["endpoints"]["mock"]["api_key_env"] = CANARIES["ECHO_KEY"]
    broken["argilla"]["api_url"] = f"https://me:{CANARIES['ARGILLA_API_KEY']}@argilla.example"
    (one.folder / "broken.yaml").write_text(yaml.safe_dump(broken))
    gone = f"postgresql+psycopg://me:{CANARIES['database']}@127.0.0.1:9/ledger"
    one.environment["PREFMILL_BROKER_URL"] = f"redis://:{CANARIES['broker']}@127.0.0.1:9/0"
    commands = (
        ["status", "broken.yaml"],
        ["status", "--database", gone],
        *(["status"], ["failures"], ["check", *JSON]),
    )
    return list(pool.map(lambda command: _said(one, *command), commands))


def _said(one: Mill, *arguments: str) -> str:
    done = one.call(*arguments, timeout_s=60)
    return f"{arguments[0]}: {done.returncode} {done.stdout} {done.stderr}"


def _redis_dump(client: "redis.Redis") -> str:
    client.execute_command("AUTH", CANARIES["broker"])
    read = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    found = {key: read[client.type(key)](key) for key in client.scan_iter(count=1000)}
    return "\n".join(f"{key!r} {value!r}" for key, value in found.items())


def _ledger_dump(url: str) -> str:
    engine = create_engine(url)
    with engine.connect() as connection:
        names = inspect(connection).get_table_names()
        tables = [connection.execute(text(f'SELECT * FROM "{name}"')).all() for name in names]
    engine.dispose()
    return "\n".join(str(row) for rows in tables for row in rows)


def _hub_dump(hub: HubServer) -> str:
    found = [data for repository in hub.repositories.values() for data in repository.files.values()]
    return "\n".join(data.decode("latin-1") for data in [*found, *hub.stored.values()])


def _no_canary(places: dict[str, str]) -> None:
    for name, secret in CANARIES.items():
        written = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        for place, found in places.items():
            for one in written:
                at = found.find(one)
                assert at < 0, f"{name} in {place}: {found[max(0, at - 300) : at + 100]}"


def test_no_secret_is_shown_by_anything_that_holds_one(
    tmp_path: Path, llm: LlmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(CANARIES["HF_TOKEN"]) as hub:
        for name, value in canary_environment(tmp_path, hub, "http://127.0.0.1:9").items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFMILL_BROKER_URL", f"redis://:{CANARIES['broker']}@127.0.0.1:9/0")
    database = f"postgresql+psycopg://me:{CANARIES['database']}@127.0.0.1:9/ledger"
    monkeypatch.setenv("PREFMILL_DATABASE_URL", database)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(canary_recipe(llm, "http://127.0.0.1:9")))
    monkeypatch.setenv("PREFMILL_RECIPE", str(path))
    worker = open_worker(read_settings(), ["generate.a", "generate.b", "judge"])
    held = [worker, worker.settings, worker.recipe, worker.broker, worker.doors, worker.liveness]
    held += [worker.calls, worker.calls.admission, worker.calls._client("mock")]
    held += [open_argilla(worker.recipe), open_hub(worker.recipe)]
    try:
        _no_canary({type(one).__name__: f"{one!r} {one}" for one in held})
        _no_canary({"model_dump": repr(worker.settings.model_dump())})
    finally:
        worker.close()
    assert os.environ["LLM_KEY"] == CANARIES["LLM_KEY"]
