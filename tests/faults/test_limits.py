"""Limits that hold over the whole fleet: calls in flight, messages in queues, memory."""

import time
from pathlib import Path

import pytest
import redis

from tests.faults.fleet import fleet
from tests.llm_server import LlmServer
from tests.mill import eventually, recipe, write_prompts
from workers.admission import LEASE_S

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

CAP = 32


def _resident_mb(pid: int) -> float:
    """Memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.parametrize("window", [2048, 120_000])
def test_100_000_prompts_without_a_worker_stay_within_the_window(
    tmp_path: Path, broker_url: str, window: int
) -> None:
    path = broker_url.removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=path) as client:
        data = recipe("http://127.0.0.1:9/v1", {"file": "prompts.jsonl"}, fleet={"window": window})
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            write_prompts(tmp_path / "prompts.jsonl", 100_000)
            feeding = one.start("enqueue")
            seen = []

            def fed() -> bool:
                if not (tmp_path / "prefmill-data/ledger.db").exists():
                    return False
                in_flight = one.counts().in_flight
                depth = 8 * client.llen("mill.v1.generate.a")
                assert in_flight <= window
                assert depth <= window
                if in_flight >= min(window, 20_000) - 8 and feeding.poll() is None:
                    seen.append(_resident_mb(feeding.pid))
                return in_flight > min(window, 100_000) - 8 and len(seen) > 60

            eventually(fed, within_s=300, what=f"a full window\n{one.logs()}")
            depth = 8 * client.llen("mill.v1.generate.a")
            if window == 2048:
                assert feeding.poll() is None
            else:
                assert feeding.wait(timeout=60) == 0
    print(f"{window=} {depth=} RSS {seen[0]:.0f} MB, then {max(seen):.0f} MB at most")
    assert max(seen) < seen[0] * 1.1 + 5


def test_three_workers_keep_one_limit_and_a_dead_one_gives_its_share_back(
    tmp_path: Path, broker_url: str
) -> None:
    path = broker_url.removeprefix("redis+socket://")
    workers = [f"generate.a#{number}" for number in range(3)]
    with LlmServer(latency="fixed:1", slots=200) as llm, redis.Redis(unix_socket_path=path) as door:
        data = recipe(llm.base_url, {"file": "prompts.jsonl"})
        data["endpoints"]["mock"]["max_concurrency"] = 3 * CAP
        data["generators"][0]["max_concurrency"] = CAP
        with fleet(tmp_path, data, PREFMILL_BROKER_URL=broker_url) as one:
            one.begin(*workers, "generate.b", "judge", "sink", "beat")
            one.enqueue(900)
            leases = _leases(door)

            def holders() -> set[str]:
                return {lease.split(":")[0] for lease in leases()}

            eventually(lambda: len(holders()) == 3, within_s=60, what=one.logs())
            eventually(lambda: len(leases()) == CAP, within_s=10, what="all slots are busy")
            before = holders()
            one.kill(workers[0])
            killed_at = time.monotonic()
            eventually(
                lambda: len(holders()) == 2 and len(leases()) == CAP,
                within_s=3 * LEASE_S,
                what="the dead worker's leases return",
            )
            returned_s = time.monotonic() - killed_at
            assert holders() < before
            one.settle(900, within_s=150)
            one.accounted(llm, 900, paired=900)
            most = llm.stats()["models"]["model-a"]["max_active"]
    print(f"at most {most} of {CAP} calls; leases came back after {returned_s:.1f} s")
    assert most == CAP
    assert returned_s < LEASE_S + 2


def _leases(door: "redis.Redis"):
    """A look at the leases of generator `a` that have not ended."""

    def look() -> list[str]:
        (name,) = door.scan_iter("prefmill:leases:*:mill.a") or [b""]
        seconds, micros = door.time()
        return [lease.decode() for lease in door.zrangebyscore(name, seconds + micros / 1e6, "inf")]

    return look
