"""What a row costs: rows a second, CPU a row, busy slots; and that memory stays flat.

    pytest -m bench -s tests/bench

Figures are printed, speed is never checked; the machine that measures is noisy.
"""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.llm_server import LlmServer
from tests.mill import PREFMILL, eventually, mill, recipe, write_prompts

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

ROWS = 2000


@pytest.mark.parametrize("latency", ["fixed:0.05", "lognormal:0.5:0.8"])
def test_two_thousand_prompts_with_64_slots_a_model(tmp_path: Path, latency: str) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ROWS)
    with (
        LlmServer(latency=latency, slots=64) as llm,
        mill(tmp_path, recipe(llm.base_url, {"file": "prompts.jsonl"})) as one,
    ):
        process = subprocess.Popen(
            [*PREFMILL, "run"],
            cwd=tmp_path,
            env=one.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started = time.monotonic()
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
        wall_s = time.monotonic() - started
        assert process.returncode == 0
        status, stats = one.status(), llm.stats()
    assert status["accepted"] == ROWS
    assert status["in_flight"] == 0
    models = stats["models"].values()
    first, last = min(m["t_first"] for m in models), max(m["t_last"] for m in models)
    cpu_s = usage.ru_utime + usage.ru_stime
    print(
        f"\n{latency}: {ROWS / (last - first):.0f} rows/s between first and last call, "
        f"{ROWS / wall_s:.0f} with start and end ({wall_s:.0f} s); "
        f"{1000 * cpu_s / ROWS:.1f} CPU-ms a row (workers, producer and Valkey, "
        f"start-up included); LLM server {1000 * stats['cpu_s'] / ROWS:.1f} CPU-ms a row"
    )
    for name, model in stats["models"].items():
        busy = model["busy_s"] / (model["slots"] * (model["t_last"] - model["t_first"]))
        print(
            f"  {name}: {100 * busy:.0f} % of the slots busy between its first and last call, "
            f"at most {model['max_active']} at once; {model['repeated']} repeated"
        )


def test_a_million_lines_against_a_slow_fleet_stay_flat(tmp_path: Path, broker_url: str) -> None:
    path = tmp_path / "prompts.jsonl"
    line = '{{"instruction": "Task {}: say something about it, at some length.", "topic": "x"}}\n'
    with path.open("w") as file:
        for number in range(1_000_000):
            file.write(line.format(number))
    valkey = redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://"))
    with LlmServer(latency="fixed:1.0", slots=16) as llm:
        data = recipe(llm.base_url, {"file": str(path)})
        with mill(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as fleet:
            for queue in ("generate.a", "generate.b", "judge", "sink"):
                fleet.start("worker", queue)
            producer = fleet.start("enqueue")
            started, seen = time.monotonic(), []
            while (elapsed := time.monotonic() - started) < 75:
                if elapsed > 15 + 15 * len(seen):
                    memory = valkey.info("memory")["used_memory"]
                    seen.append((_rss_mb(producer.pid), memory / 1e6, fleet.status()))
                assert producer.poll() is None, fleet.logs()
            producer.terminate()
            producer.wait(timeout=15)
            status = eventually(fleet.status, within_s=10, what="a status")
    valkey.close()
    print(f"\n1,000,000 lines, accepted {status['accepted']}, finished {status['paired']}")
    for rss_mb, valkey_mb, at in seen:
        print(
            f"  producer {rss_mb:.1f} MB, Valkey {valkey_mb:.1f} MB; "
            f"accepted {at['accepted']}, in flight {at['in_flight']}, paired {at['paired']}"
        )
    assert all(at["in_flight"] <= 2048 for _, _, at in seen)


def _rss_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000
