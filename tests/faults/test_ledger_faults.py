"""A ledger that cannot be written: nothing is acknowledged, it is said, and work goes on after."""

import resource
import sqlite3
import time
from pathlib import Path

import pytest

from tests.faults.fleet import ROLES, Fleet, fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

PROMPTS = 80
WORKERS = ("generate.a", "generate.b", "judge", "sink")


def _limit_files(one: Fleet, size: int) -> None:
    """No file of the workers may grow beyond this: to them the disk is full."""
    for role in WORKERS:
        _, hard = resource.prlimit(one.roles[role].pid, resource.RLIMIT_FSIZE)
        resource.prlimit(one.roles[role].pid, resource.RLIMIT_FSIZE, (size, hard))


def _said(one: Fleet, what: str) -> list[str]:
    lines = (one.folder / "sink.log").read_text().splitlines()
    return [line for line in lines if " task.handed_back " in line and what in line]


def _stands_still(one: Fleet, seconds: float) -> None:
    """Nothing ends for a while, and no worker gives up."""
    before, since = one.counts(), time.monotonic()
    eventually(lambda: time.monotonic() - since > seconds, within_s=seconds + 5, what="time passes")
    assert one.counts().finished == before.finished
    assert not [role for role in WORKERS if one.roles[role].poll() is not None]


def test_a_full_disk_under_the_ledger_loses_nothing(tmp_path: Path, broker_url: str) -> None:
    with LlmServer(latency="fixed:0.2", slots=8) as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 4})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            one.finished(8)
            size = (tmp_path / "prefmill-data/ledger.db-wal").stat().st_size
            assert size > 50_000  # more than the logs will grow to
            _limit_files(one, size)
            eventually(lambda: _said(one, "disk"), within_s=60, what=one.logs())
            _stands_still(one, 8)
            print(_said(one, "disk")[0])
            _limit_files(one, resource.RLIM_INFINITY)
            one.settle(PROMPTS)
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    assert calls["repeated"] == 0


def test_a_ledger_locked_by_another_process_loses_nothing(tmp_path: Path, broker_url: str) -> None:
    with LlmServer(latency="fixed:0.2", slots=8) as llm:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"}, fleet={"batch_size": 4})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*ROLES)
            one.enqueue(PROMPTS)
            one.finished(8)
            other = sqlite3.connect(tmp_path / "prefmill-data/ledger.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            eventually(lambda: _said(one, "locked"), within_s=90, what=one.logs())
            _stands_still(one, 3)
            print(_said(one, "locked")[0])
            other.execute("ROLLBACK")
            other.close()
            one.settle(PROMPTS)
            calls = one.accounted(llm, PROMPTS, paired=PROMPTS)
    assert calls["repeated"] == 0
