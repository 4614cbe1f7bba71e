"""Twenty minutes of random faults: the accounting holds throughout and nothing piles up."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import Fleet, fleet
from tests.faults.server import Server
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe, write_prompts

SOAK_S = float(os.environ.get("SOAK_S", "1200"))

#: These live from beginning to end, and must not grow.
KEPT = ("generate.a", "generate.b", "judge", "sink", "beat")
MORTAL = ("generate.a#2", "generate.b#2", "judge#2", "sink#2")

#: Prompts that wait or are worked on, about.
WINDOW = 256

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SOAK_S + 600)]


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


class Soak:
    """One fleet under faults, with the prompts that were written for it."""

    def __init__(self, one: Fleet, llm: LlmServer, server: Server) -> None:
        self.one, self.llm, self.server = one, llm, server
        self.dice = random.Random(7)
        self.written = 0
        self.met = Counter[str]()
        self.producer: subprocess.Popen[str] = self._produce()

    def _produce(self) -> "subprocess.Popen[str]":
        return self.one.start("enqueue", "--follow")

    def feed(self) -> None:
        """Write more prompts when few are left."""
        counts = self.one.counts()
        ended = counts.paired + sum(counts.rejected.values()) + sum(counts.failed.values())
        assert counts.accepted == ended + counts.in_flight
        assert counts.rows == counts.paired
        assert counts.accepted <= self.written
        if self.written - counts.finished < WINDOW:
            write_prompts(self.one.folder / "prompts.jsonl", 100, self.written)
            self.written += 100

    def for_a_while(self, seconds: float) -> None:
        """Let things run, and keep the fleet busy."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.feed()
            time.sleep(0.3)

    def fault(self) -> None:
        """One of those, and the relief from it."""
        kind = self.dice.choice(
            ["kill", "kill", "stop", "producer", "broker", "500", "429", "401", "silence"]
        )
        self.met[kind] += 1
        match kind:
            case "kill":
                roles = self.dice.sample(MORTAL, self.dice.choice([1, 1, 2]))
                self.one.kill(*roles)
                self.one.begin(*roles)
            case "stop":
                role = self.dice.choice(MORTAL)
                # A worker that is still starting has nothing in hand, and dies of the signal.
                assert self.one.stop(role)[1] in (0, -signal.SIGTERM)
                self.one.begin(role)
            case "producer":
                self.producer.kill()
                self.producer.wait(timeout=10)
                self.producer = self._produce()
            case "broker":
                self.server.kill()
                self.for_a_while(self.dice.uniform(0.5, 4))
                self.server.start()
            case "silence":
                self._reply({"hang": True}, 10)
            case status:
                self._reply({"status": int(status)}, None)

    def _reply(self, reply: dict[str, Any], times: int | None) -> None:
        model = self.dice.choice(["model-a", "model-b", "judge-model", None])
        self.llm.script([{"model": model, "contains": None, "times": times, "reply": reply}])
        self.for_a_while(self.dice.uniform(0.5, 3))
        self.llm.script([])

    def settled(self) -> dict[str, float]:
        """Wait until nothing is in flight; returns what must not grow."""
        eventually(
            lambda: self.one.counts().finished == self.written,
            within_s=240,
            what=f"{self.written} outcomes, {self.one.counts()}\n{self.one.logs()}",
        )
        # What committed prompts leave for late copies ends after a minute, joins with the tidying.
        least, quiet_until = float("inf"), time.monotonic() + 100
        with self.server.client() as client:
            while time.monotonic() < quiet_until:
                least = min(least, client.dbsize())
                time.sleep(1)
        megabytes = {role: _resident_mb(self.one.roles[role].pid) for role in KEPT}
        valkey = _resident_mb(self.server.valkey.child.process.pid)
        return {**megabytes, "valkey": valkey, "redis keys": least}


def test_a_soak_under_random_faults_ends_with_everything_accounted_for(
    tmp_path: Path, server: Server
) -> None:
    with LlmServer(latency="lognormal:0.15:0.6", slots=16) as llm:
        data = recipe(
            llm.base_url, {"file": "prompts.jsonl"}, fleet={"deadline": 30, "max_attempts": 6}
        )
        data["endpoints"]["mock"]["timeout"] = 8
        write_prompts(tmp_path / "prompts.jsonl", 100)
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=server.url) as one:
            one.begin(*KEPT, *MORTAL)
            soak = Soak(one, llm, server)
            soak.written = 100
            eventually(
                lambda: (tmp_path / "prefmill-data/ledger.db").exists(), within_s=30, what=""
            )
            eventually(lambda: one.counts().accepted, within_s=30, what="a first prompt")
            began = time.monotonic()
            early: dict[str, float] = {}
            while time.monotonic() - began < SOAK_S:
                soak.fault()
                soak.for_a_while(soak.dice.uniform(1, 10))
                if not early and time.monotonic() - began > SOAK_S / 4:
                    early = soak.settled()
                    print(f"after a quarter: {early}, {one.counts()}")
            late = soak.settled()
            soak.producer.send_signal(signal.SIGTERM)
            soak.producer.wait(timeout=30)
            assert not [role for role in KEPT if one.roles[role].poll() is not None], one.logs()
            calls = one.accounted(llm, soak.written, failed={})
    print(f"{soak.met}, {soak.written} prompts, {calls}\n{early=}\n{late=}")
    for what, before in early.items():
        assert late[what] <= before * 1.2 + 10, (what, before, late[what])
