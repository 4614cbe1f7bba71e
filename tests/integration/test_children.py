"""Children of `prefmill run`: they end with it, never before it, and Valkey keeps what it was told.

Each test that kills a parent runs one of its own, in a session of its own.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from producer.children import Child, spawn, stop
from producer.model_server import start_model_server
from producer.valkey import EmbeddedValkey, start_valkey
from workers.errors import BrokerError

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)",
]
PARENT = """
import json, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script put behind &
from producer.children import spawn
from producer.valkey import start_valkey
here = Path(sys.argv[1])
valkey = start_valkey(here / "valkey")
celery = [sys.executable, "-m", "celery", "-b", valkey.url, "worker", "-P", "threads", "-l", "INFO"]
children = {
    "sleeper": spawn([sys.executable, "-c", sys.argv[2]], name="sleeper", log=here / "sleeper.log"),
    "celery": spawn(celery, name="celery", log=here / "celery.log"),
    "valkey": valkey.child,
}
try:
    deadline = time.monotonic() + 30
    while "ready." not in children["celery"].tail() or "up" not in children["sleeper"].tail():
        assert time.monotonic() < deadline, children["celery"].tail()
        time.sleep(0.05)
    print(json.dumps({name: child.process.pid for name, child in children.items()}), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(600)
"""
Family = tuple[subprocess.Popen[str], dict[str, int]]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), SLEEP[2]],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids: dict[str, int] = json.loads(parent.stdout.readline() or "{}")
        try:
            # Without this, a parent that failed early would let every test below pass on no pids.
            assert set(pids) == {"sleeper", "celery", "valkey"}
            yield parent, pids
        finally:
            parent.kill()
            parent.wait()
    left = [] if eventually(lambda: not any(map(running, pids.values()))) else pids.values()
    for pid in filter(running, left):
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def started() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    stop(children, grace_s=2)


def test_children_die_with_a_parent_that_was_killed(family: Family) -> None:
    parent, pids = family
    assert all(map(running, pids.values()))
    parent.kill()
    parent.wait()
    assert eventually(lambda: not any(map(running, pids.values())), within_s=5)


def test_children_live_on_through_ctrl_c(family: Family) -> None:
    parent, pids = family
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "interrupted\n"
    assert all(pending_interrupt(pid) for pid in pids.values())
    assert all(map(running, pids.values()))


def test_stop_ends_what_obeys_and_kills_what_ignores_it(
    tmp_path: Path, started: list[Child]
) -> None:
    for name, command in {"sleeper": SLEEP, "stubborn": STUBBORN, "second": SLEEP}.items():
        started.append(spawn(command, name=name, log=tmp_path / f"{name}.log"))
    assert eventually(lambda: all(child.tail() == "up" for child in started))
    assert stop(started, grace_s=1) == ["stubborn"]
    assert [child.returncode for child in started] == [-15, -9, -15]
    assert stop(started, grace_s=1) == []


def test_a_tail_is_the_last_lines_of_a_long_log(tmp_path: Path, started: list[Child]) -> None:
    command = [sys.executable, "-c", "for n in range(50_000): print(n)"]
    started.append(spawn(command, name="counter", log=tmp_path / "log"))
    started[0].process.wait(10)
    assert started[0].tail(2) == "49998\n49999"
    assert not started[0].alive


def test_valkey_keeps_its_keys_over_a_restart(tmp_path: Path, started: list[Child]) -> None:
    valkey = start_valkey(tmp_path)
    started.append(valkey.child)
    put(valkey, "answer", "paid")
    assert stop([valkey.child], grace_s=5) == []
    again = start_valkey(tmp_path)
    started.append(again.child)
    assert again.url == valkey.url == f"redis+socket://{valkey.socket}"
    assert get(again, "answer") == "paid"


def test_valkey_keeps_what_it_acknowledged_before_it_was_killed(
    tmp_path: Path, started: list[Child]
) -> None:
    valkey = start_valkey(tmp_path)
    started.append(valkey.child)
    for number in range(2_000):
        put(valkey, f"answer-{number}", "x" * 2_048)
    valkey.child.process.kill()
    valkey.child.process.wait()
    again = start_valkey(tmp_path)
    started.append(again.child)
    with client(again) as connection:
        assert connection.dbsize() == 2_000


def test_valkey_refuses_a_directory_that_another_one_serves(
    tmp_path: Path, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    started.append(start_valkey(tmp_path).child)
    monkeypatch.setattr("producer.valkey._ORPHAN_S", 0.2)
    with pytest.raises(BrokerError, match="another Valkey still answers"):
        start_valkey(tmp_path)


def test_a_valkey_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a directory")
    with pytest.raises(BrokerError, match="appendonlydir"):
        start_valkey(tmp_path)


@pytest.mark.skipif(
    not importlib.util.find_spec("xllamacpp"), reason="the extra `local` is not installed"
)
def test_the_model_server_completes_a_chat_and_ends_at_once(
    tmp_path: Path, started: list[Child]
) -> None:
    local = start_model_server(tmp_path, tmp_path / "model.log")
    started.append(local.child)
    question = {"role": "user", "content": "Name a colour."}
    body = {"model": local.model, "messages": [question], "max_tokens": 8}
    with httpx.Client(base_url=local.base_url, timeout=60, trust_env=False) as http:
        reply = http.post("/chat/completions", json=body).raise_for_status().json()
    assert reply["model"] == "SmolLM2-135M-Instruct"
    assert reply["choices"][0]["message"]["content"]
    assert stop([local.child], grace_s=5) == []
    assert local.child.returncode == 0


def put(valkey: EmbeddedValkey, key: str, value: str) -> None:
    with client(valkey) as connection:
        connection.set(key, value)


def get(valkey: EmbeddedValkey, key: str) -> str:
    with client(valkey) as connection:
        return str(connection.get(key))


def client(valkey: EmbeddedValkey) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(valkey.socket), decode_responses=True)


def eventually(condition: Callable[[], bool], within_s: float = 15) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def running(pid: int) -> bool:
    """Whether the process exists and is no zombie, whoever its parent is by now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pending_interrupt(pid: int) -> bool:
    """Whether SIGINT arrived at the process and waits there unseen."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = int(status.partition("ShdPnd:")[2].split()[0], 16)
    return bool(pending >> (signal.SIGINT - 1) & 1)
