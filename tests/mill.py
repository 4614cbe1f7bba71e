"""Drives real prefmill processes for the tests: each command is a process of its own.

Every process is ended by its own id. Nothing here reaches into prefmill: what is known about a run
is what `prefmill status --json`, the dataset and the LLM server's own counts say.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

PREFMILL = [sys.executable, "-P", "-m", "producer.cli"]


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without what would steer prefmill, and with bytecode switched on."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFMILL_", "HF_", "ARGILLA_"))
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, **more}


def recipe(base_url: str, source: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A recipe of two generators and a judge on one endpoint."""
    return {
        "name": "mill",
        "source": dict(source),
        "endpoints": {"mock": {"base_url": base_url, "max_concurrency": 192, "timeout": 20}},
        "generators": [
            {
                "name": "a",
                "endpoint": "mock",
                "model": "model-a",
                "parameters": {"temperature": 0.7},
            },
            {
                "name": "b",
                "endpoint": "mock",
                "model": "model-b",
                "parameters": {"temperature": 0.7},
            },
        ],
        "judges": [{"name": "judge", "endpoint": "mock", "model": "judge-model"}],
        **sections,
    }


def write_prompts(path: Path, count: int, start: int = 0) -> Path:
    """JSON lines of distinct instructions with a topic."""
    with path.open("a", encoding="utf-8") as file:
        for number in range(start, start + count):
            line = {"instruction": f"Task {number}: say something.", "topic": f"t{number % 7}"}
            file.write(json.dumps(line) + "\n")
    return path


def eventually(true: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """The first true value of `true()`; fails after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        asked = time.monotonic()
        value = true()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        # A command that is asked again and again would take a core from what it waits for.
        time.sleep(max(0.1, 2 * (time.monotonic() - asked)))


def balances(status: Mapping[str, Any]) -> bool:
    """Whether every accepted prompt is accounted for."""
    ended = status["paired"] + sum(status["rejected"].values()) + sum(status["failed"].values())
    return bool(status["accepted"] == ended + status["in_flight"])


class Mill:
    """A folder with a recipe, and the prefmill processes that work in it."""

    def __init__(self, folder: Path, data: Mapping[str, Any], **environment: str) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(dict(data)), encoding="utf-8")
        self.environment = clean_environment(PREFMILL_RECIPE=str(self.recipe), **environment)
        self.processes: list[subprocess.Popen[str]] = []

    def call(
        self, *arguments: str, timeout_s: float = 90, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [*PREFMILL, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **more,
        )

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in a process group of its own; its output goes to a file."""
        log = self.folder / f"{len(self.processes)}-{arguments[0]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*PREFMILL, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                **more,
            )
        self.processes.append(process)
        return process

    def status(self) -> dict[str, Any]:
        """`prefmill status --json`, which must balance at every moment."""
        done = self.call("status", "--json")
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        assert balances(status), status
        return status

    def rows(self, configuration: str = "default") -> list[dict[str, Any]]:
        """All rows of a configuration, by `prefmill export`."""
        path = self.folder / f"{configuration}.jsonl"
        done = self.call(
            "export", "--config", configuration, "--format", "jsonl", "--out", str(path)
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def logs(self) -> str:
        """What all started processes printed."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.rglob("*.log"))
        )

    def close(self) -> None:
        """End what still runs: SIGTERM, then SIGKILL to the process group."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def mill(folder: Path, data: Mapping[str, Any], **environment: str) -> Iterator[Mill]:
    """A mill whose processes end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    one = Mill(folder, data, **environment)
    try:
        yield one
    finally:
        one.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def descendants(pid: int) -> list[int]:
    """Ids of all processes that a process started, and those started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
