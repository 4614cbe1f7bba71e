"""A fleet of real processes that tests may kill, and the accounting that must hold all the while.

Each role is a process of its own, known by its name (`generate.a`, `judge`, `sink#2`, …). Frequent
looks read the ledger in this process; the last one asks the commands that people use.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.llm_server import LlmServer
from tests.mill import PREFMILL, Mill, eventually, write_prompts
from workers.ledger import Counts, Ledger

ROLES = ("generate.a", "generate.b", "judge", "sink", "beat")
ENTRY = [sys.executable, "-P", "-m", "tests.faults.entry"]
ROOT = Path(__file__).parents[2]

#: Seconds until messages of a dead worker come back, in these tests.
VISIBILITY_TIMEOUT_S = 6

#: What the tests wait for at most after a death: three times the redelivery bound, which is the
#: visibility timeout and the sweep that looks every five seconds.
RECOVERY_S = 3 * (VISIBILITY_TIMEOUT_S + 5)


class Fleet(Mill):
    """Workers of one run, by name."""

    def __init__(self, folder: Path, data: Mapping[str, Any], **environment: str) -> None:
        environment.setdefault("PREFMILL_VISIBILITY_TIMEOUT", str(VISIBILITY_TIMEOUT_S))
        super().__init__(folder, data, **environment)
        self.run_name = str(data["name"])
        self.roles: dict[str, subprocess.Popen[str]] = {}
        self.database_url = environment.get(
            "PREFMILL_DATABASE_URL", f"sqlite:///{folder / 'prefmill-data/ledger.db'}"
        )
        self._ledger: Ledger | None = None

    # -- processes -----------------------------------------------------------------------------

    def begin(self, *names: str, options: Sequence[str] = (), **fault: str) -> None:
        """Start roles; with FAULT=… and its like through the entry that kills."""
        for name in names:
            queue = name.partition("#")[0]
            arguments = ["beat"] if queue == "beat" else ["worker", queue, *options]
            log = (self.folder / f"{name}.log").open("a")
            environment = {**self.environment, **fault}
            if fault:
                environment["PYTHONPATH"] = str(ROOT)
            command = [*ENTRY, *arguments] if fault else [*PREFMILL, *arguments]
            with log:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            self.processes.append(process)
            self.roles[name] = process

    def kill(self, *names: str) -> None:
        """SIGKILL, all at once."""
        for name in names:
            os.kill(self.roles[name].pid, signal.SIGKILL)
        for name in names:
            self.roles[name].wait(timeout=10)

    def stop(self, name: str, within_s: float = 45) -> tuple[float, int]:
        """SIGTERM; returns the seconds until it ended, and its exit code."""
        since = time.monotonic()
        self.roles[name].terminate()
        code = self.roles[name].wait(timeout=within_s)
        return time.monotonic() - since, code

    def wait_for_death(self, name: str, within_s: float = 60) -> None:
        """Wait until a role was killed by its fault."""
        eventually(
            lambda: self.roles[name].poll() is not None,
            within_s=within_s,
            what=f"{name} dies\n{self.logs()}",
        )
        assert self.roles[name].returncode == -signal.SIGKILL, self.logs()

    # -- prompts and accounting ----------------------------------------------------------------

    def enqueue(self, count: int, start: int = 0) -> None:
        """Write prompts and accept them all."""
        write_prompts(self.folder / "prompts.jsonl", count, start)
        done = self.call("enqueue")
        assert done.returncode == 0, done.stderr

    def counts(self) -> Counts:
        """What the ledger says now, read here."""
        if self._ledger is None:
            self._ledger = Ledger(self.database_url)
        return self._ledger.counts(self.run_name)

    def finished(self, at_least: int, within_s: float = 60) -> None:
        """Wait until so many prompts have an outcome."""
        eventually(
            lambda: self.counts().finished >= at_least,
            within_s=within_s,
            what=f"{at_least} outcomes, {self.counts()}\n{self.logs()}",
        )

    def settle(self, accepted: int, within_s: float = 90) -> Counts:
        """Wait until nothing is in flight; at random moments on the way everything adds up."""
        deadline = time.monotonic() + within_s
        while True:
            counts = self.counts()
            assert counts.accepted == accepted, counts
            if counts.in_flight == 0:
                return counts
            assert time.monotonic() < deadline, f"{counts}\n{self.logs()}"
            time.sleep(random.uniform(0.1, 0.4))

    def accounted(self, llm: LlmServer, accepted: int, **expected: Any) -> dict[str, Any]:
        """Everything adds up for people as well; returns counts of calls, which it prints."""
        status = self.status()
        assert status["accepted"] == accepted
        assert status["in_flight"] == 0
        for name, value in expected.items():
            assert status[name] == value, status
        rows = self.rows()
        assert len(rows) == status["rows"] == status["paired"]
        prompts = Counter(row["prompt_id"] for row in rows)
        assert not [prompt for prompt, number in prompts.items() if number > 1]
        assert all(row["chosen"] != row["rejected"] for row in rows)
        models = llm.stats()["models"].values()
        names = ("requests", "repeated", "repeated_answered", "aborted")
        calls = {name: sum(model[name] for model in models) for name in names}
        print(json.dumps({**{k: v for k, v in status.items() if k != "calls"}, "llm": calls}))
        return calls

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
        super().close()


@contextmanager
def fleet(folder: Path, data: Mapping[str, Any], **environment: str) -> Iterator[Fleet]:
    """A fleet whose processes end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    one = Fleet(folder, data, **environment)
    try:
        yield one
    finally:
        one.close()
