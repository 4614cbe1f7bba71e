"""`prefmill check --worker`: what a container's health check learns of its workers."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet, fleet
from tests.mill import eventually, recipe


def _check(one: Fleet) -> tuple[int, str]:
    done = one.call("check", "--worker")
    return done.returncode, done.stdout + done.stderr


def _becomes(one: Fleet, code: int, said: str) -> None:
    eventually(
        lambda: (found := _check(one))[0] == code and said in found[1],
        within_s=30,
        what=f"exit code {code} and {said!r}: {_check(one)}\n{one.logs()}",
    )


@pytest.mark.timeout(180)
def test_a_worker_is_healthy_while_it_lives_and_moves(tmp_path: Path, broker_url: str) -> None:
    data = recipe("http://127.0.0.1:9/v1", {"file": "prompts.jsonl"})
    with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
        code, said = _check(one)
        assert code == 1
        assert "no worker of this run gives a sign of life" in said
        one.begin("sink")
        _becomes(one, 0, "1 workers")
        os.kill(one.roles["sink"].pid, signal.SIGSTOP)
        _becomes(one, 1, "no worker")
        os.kill(one.roles["sink"].pid, signal.SIGCONT)
        _becomes(one, 0, "1 workers")
        one.kill("sink")
        _becomes(one, 1, "no worker")
