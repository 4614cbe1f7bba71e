"""The fleet's door on a real Valkey: limits, shares, claims, waits, and what is remembered."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import redis

from workers import admission, keys
from workers.admission import FleetAdmission, HandedBack, Leave, Refusals
from workers.doors import Doors
from workers.recipe import Recipe

T = TypeVar("T")

RECIPE = Recipe.model_validate(
    {
        "name": "r",
        "source": {"stdin": True},
        "endpoints": {"here": {"base_url": "http://127.0.0.1:9/v1", "max_concurrency": 9}},
        "generators": [
            {"name": "a", "endpoint": "here", "model": "m-a", "max_concurrency": 6},
            {"name": "b", "endpoint": "here", "model": "m-b", "max_concurrency": 6},
        ],
        "judges": [{"name": "j", "endpoint": "here", "model": "m-j"}],
    }
)
A, B = RECIPE.generators
ANSWER = {"completion": {"text": "Because."}, "retries": 0}


@asynccontextmanager
async def process(url: str, name: str, key: str = "") -> AsyncIterator[FleetAdmission]:
    """One process' side of the door."""
    one = FleetAdmission(url, RECIPE, name, {"here": key})
    try:
        yield one
    finally:
        await one.close()


async def soon(work: Coroutine[Any, Any, T], within_s: float = 10) -> T:
    return await asyncio.wait_for(work, within_s)


async def waits(work: Coroutine[Any, Any, Any], for_s: float = 0.4) -> bool:
    """Whether work is still waiting after a while; it is cancelled."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=for_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return not done


async def enter(one: FleetAdmission, number: object, model: Any = A) -> Leave:
    leave = await soon(one.enter(model, f"prompt-{number}", f"address-{number}"))
    assert isinstance(leave, Leave)
    return leave


def client(url: str) -> "redis.Redis":
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"), decode_responses=True)


async def known_to_wait(url: str, name: str) -> None:
    """Returns once a process is known to have found no room for a call of A."""
    waiting = keys.waiting(RECIPE.endpoints["here"], RECIPE.name, A)
    with client(url) as redis_client:
        while redis_client.zscore(waiting, name) is None:
            await asyncio.sleep(0.02)


def test_no_more_calls_than_the_limits_of_model_and_endpoint_over_all_processes(
    broker_url: str,
) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            leaves = [await enter(p, n) for n in range(3)] + [
                await enter(q, n + 3) for n in (0, 1, 2)
            ]
            assert await waits(p.enter(A, "more", "more"))
            assert await waits(q.enter(A, "more", "more"))
            of_b = [await enter(q, f"b{n}", B) for n in range(3)]
            assert await waits(q.enter(B, "b", "b"))  # the endpoint has room for nine
            await p.settle(leaves[0], None)
            assert not await waits(q.enter(B, "b", "b"))
            assert len(of_b) == 3

    asyncio.run(go())


def test_who_waits_in_another_process_gets_a_share(broker_url: str) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            leaves = [await enter(p, n) for n in range(6)]
            waiting = [asyncio.ensure_future(q.enter(A, f"q{n}", f"q{n}")) for n in range(3)]
            greedy = [asyncio.ensure_future(p.enter(A, f"p{n}", f"p{n}")) for n in range(6)]
            await soon(known_to_wait(broker_url, "q"))
            for leave in leaves[:3]:
                await p.settle(leave, None)
            got = await soon(asyncio.gather(*waiting))
            assert all(isinstance(leave, Leave) for leave in got)
            assert not any(task.done() for task in greedy)
            for task in greedy:
                task.cancel()
            await asyncio.gather(*greedy, return_exceptions=True)

    asyncio.run(go())


def test_leases_of_a_dead_process_come_back(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LEASE_S", 1.5)

    async def go() -> float:
        async with process(broker_url, "q") as q:
            dead = FleetAdmission(broker_url, RECIPE, "dead")
            for n in range(6):
                await enter(dead, n)
            await dead.close()  # renews nothing any more
            since = time.monotonic()
            await soon(q.enter(A, "new", "new"))
            held = await enter(q, "held")
            await asyncio.sleep(4)
            with client(broker_url) as redis_client:
                score = redis_client.zscore(keys.leases(RECIPE.endpoints["here"]), held.lease)
            assert score is not None  # and a living one renews its own
            assert float(str(score)) > time.time()
            return time.monotonic() - since - 4

    print(f"came back after {asyncio.run(go()):.1f} s")


def test_an_answer_that_was_dropped_is_asked_for_again(broker_url: str) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p:
            await p.settle(await enter(p, 1), ANSWER)
            assert await soon(p.enter(A, "prompt-1", "address-1")) == ANSWER
            await p.drop_answer("prompt-1", "address-1")
            assert isinstance(await soon(p.enter(A, "prompt-1", "address-1")), Leave)

    asyncio.run(go())


def test_a_call_under_way_elsewhere_is_waited_for_and_its_answer_shared(broker_url: str) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            leave = await enter(p, 1)
            same = asyncio.ensure_future(q.enter(A, "prompt-1", "address-1"))
            await asyncio.sleep(0.5)
            assert not same.done()
            other = await enter(q, 2)  # nobody else waits behind it
            await p.settle(leave, ANSWER)
            assert await soon(same) == ANSWER
            assert await soon(p.enter(A, "prompt-1", "address-1")) == ANSWER
            await q.settle(other, None)
            assert isinstance(await soon(p.enter(A, "prompt-2", "address-2")), Leave)

    asyncio.run(go())


def test_a_committed_prompt_wants_no_call_any_more_and_keeps_no_answer(broker_url: str) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p:
            late, leave = await enter(p, "1"), await enter(p, "2")
            await p.settle(leave, ANSWER)
            await p.forget(["prompt-1", "prompt-2"])
            await p.settle(late, ANSWER)
            for number in (1, 2):
                with pytest.raises(HandedBack, match="outcome"):
                    await soon(p.enter(A, f"prompt-{number}", f"address-{number}"))
            with client(broker_url) as redis_client:
                left = redis_client.hgetall(keys.answers("r", "prompt-1"))
                assert left == {"done": "1"}
                assert 0 < redis_client.ttl(keys.answers("r", "prompt-1")) <= admission.DONE_S  # type: ignore[operator]

    asyncio.run(go())


def test_an_endpoint_that_asked_to_wait_is_left_alone_by_all_and_then_tried_by_one(
    broker_url: str,
) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            first, second = await enter(p, 1), await enter(q, 2)
            since = time.monotonic()
            assert not await p.refused(first, "rate_limited", "slow down", 1.0, Refusals())
            await q.refused(second, "rate_limited", "slow down", 1.0, Refusals())  # the same wave
            probe = await enter(q, 3, B)
            assert time.monotonic() - since > 0.9
            assert await waits(p.enter(A, "4", "4"))
            await q.settle(probe, ANSWER)
            leaves = [await enter(p, f"then-{n}") for n in range(4)]
            assert len(leaves) == 4

    asyncio.run(go())


def test_one_wave_of_refusals_is_one_strike_and_waits_grow(broker_url: str) -> None:
    async def go() -> list[float]:
        waits_s = []
        async with process(broker_url, "p") as p:
            wave = [await enter(p, n) for n in range(5)]
            for leave in wave:
                await p.refused(leave, "rate_limited", "", None, Refusals())
            for n in range(3):
                since = time.monotonic()
                leave = await enter(p, f"probe-{n}")
                waits_s.append(time.monotonic() - since)
                await p.refused(leave, "rate_limited", "", None, Refusals())
        return waits_s

    first, second, third = asyncio.run(go())
    print(f"{first:.2f} {second:.2f} {third:.2f}")
    assert 0.3 < first < second < third


def test_a_refused_key_pauses_the_endpoint_and_a_probe_opens_it_again(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(admission.WAITS_S, "unauthorized", (0.5, 0.5))
    doors = Doors(broker_url, RECIPE)

    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            for one, n in ((p, 1), (q, 2), (p, 3)):
                leave = await enter(one, n)
                assert not await one.refused(leave, "unauthorized", "HTTP 401", None, Refusals())
            assert [(door.endpoint, door.model) for door in doors.shut()] == [("here", None)]
            assert "401" in str(doors.shut()[0])
            probe = await enter(q, 4)
            await q.settle(probe, ANSWER)
            assert doors.shut() == []
            await enter(p, 5)

    asyncio.run(go())
    said = [record.getMessage() for record in caplog.records]
    assert said.count("endpoint.paused") == 1
    assert said.count("endpoint.resumed") == 1


def test_an_unknown_model_pauses_itself_alone(broker_url: str) -> None:
    doors = Doors(broker_url, RECIPE)

    async def go() -> None:
        async with process(broker_url, "p") as p:
            await p.refused(await enter(p, 1), "not_found", "HTTP 404", None, Refusals())
            assert [(door.endpoint, door.model) for door in doors.shut()] == [("here", "m-a")]
            assert await waits(p.enter(A, "2", "2"))
            await enter(p, 3, B)
            doors.open()
            await enter(p, 4)

    asyncio.run(go())


def test_a_call_that_alone_is_refused_is_to_blame_itself(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.WAITS_S, "unauthorized", (0.1, 0.1))

    async def go() -> None:
        async with process(broker_url, "p") as p:
            seen = Refusals()
            assert not await p.refused(await enter(p, 1), "unauthorized", "HTTP 403", None, seen)
            await p.settle(await enter(p, 2), ANSWER)  # others are let in
            assert not await p.refused(await enter(p, 1), "unauthorized", "HTTP 403", None, seen)
            assert Doors(broker_url, RECIPE).shut() == []
            await p.settle(await enter(p, 3), ANSWER)
            assert await p.refused(await enter(p, 1), "unauthorized", "HTTP 403", None, seen)
            alone = Refusals()
            blamed = [
                await p.refused(await enter(p, 4), "unauthorized", "HTTP 403", None, alone)
                for _ in range(admission.OWN_REFUSALS)
            ]
            assert blamed == [False] * (admission.OWN_REFUSALS - 1) + [True]

    asyncio.run(go())


def test_two_calls_that_nobody_passes_any_more_do_not_wait_for_each_other(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reason in ("unauthorized", "rate_limited"):
        monkeypatch.setitem(admission.WAITS_S, reason, (0.05, 0.05))
    monkeypatch.setattr(admission, "SUSPECT_S", (0.01, 0.02))

    async def go() -> None:
        async with process(broker_url, "p") as p:
            forbidden, limited = Refusals(), Refusals()

            async def again(name: str, reason: str, seen: Refusals) -> bool:
                return await p.refused(await enter(p, name), reason, "", None, seen)

            assert not await again("forbidden", "unauthorized", forbidden)
            await p.settle(await enter(p, "fine"), ANSWER)
            ends = {}
            for _ in range(2 * admission.OWN_REFUSALS):
                for name, reason, seen in (
                    ("limited", "rate_limited", limited),
                    ("forbidden", "unauthorized", forbidden),
                ):
                    if name not in ends and await again(name, reason, seen):
                        ends[name] = seen.count
            assert ends == {"limited": admission.OWN_REFUSALS, "forbidden": ends["forbidden"]}

    asyncio.run(go())


def test_calls_that_are_all_refused_from_the_start_blame_nobody(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.WAITS_S, "unauthorized", (0.02, 0.02))

    async def go() -> None:
        async with process(broker_url, "p") as p:
            await p.settle(await enter(p, "before"), ANSWER)
            calls = [Refusals() for _ in range(12)]
            for _ in range(2 * admission.OWN_REFUSALS):
                for n, seen in enumerate(calls):
                    leave = await enter(p, n)
                    assert not await p.refused(leave, "unauthorized", "HTTP 401", None, seen)

    asyncio.run(go())


def test_a_call_that_met_every_outage_of_its_endpoint_is_not_to_blame(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.WAITS_S, "unauthorized", (0.1, 0.1))
    monkeypatch.setattr(admission, "SUSPECT_S", (0.05, 0.1))

    async def go() -> None:
        async with process(broker_url, "p") as p:
            seen = Refusals()
            for outage in range(2):
                again = await enter(p, "again")
                assert not await p.refused(again, "unauthorized", "HTTP 401", None, seen)
                other = await enter(p, f"other-{outage}")
                assert not await p.refused(other, "unauthorized", "HTTP 401", None, Refusals())
                probe = await enter(p, "again")
                assert not await p.refused(probe, "unauthorized", "HTTP 401", None, seen)
                await p.settle(await enter(p, f"passed-{outage}"), ANSWER)
            assert seen.passed_over == 1

    asyncio.run(go())


def test_a_worker_that_still_has_the_old_key_blames_no_call(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission.WAITS_S, "unauthorized", (0.1, 0.1))

    async def go() -> None:
        async with process(broker_url, "new", "k2") as new, process(broker_url, "old", "k1") as old:
            seen = Refusals()
            for n in range(5):
                leave = await enter(old, "again")
                assert not await old.refused(leave, "unauthorized", "HTTP 401", None, seen)
                await new.settle(await enter(new, f"let-in-{n}"), ANSWER)
            assert seen.passed_over == 0

    asyncio.run(go())


def test_leases_that_ended_while_the_server_was_away_are_taken_again(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LEASE_S", 1.0)

    async def go() -> None:
        async with process(broker_url, "p") as p, process(broker_url, "q") as q:
            leaves = [await enter(p, n) for n in range(6)]
            with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as door:
                for name in door.scan_iter("prefmill:leases:*"):
                    door.delete(name)
                async with asyncio.timeout(10):
                    while {door.zcard(n) for n in door.scan_iter("prefmill:leases:*")} != {6}:
                        await asyncio.sleep(0.05)
            await p.settle(leaves[0], ANSWER)
            assert isinstance(await soon(q.enter(A, "late", "late")), admission.Leave)

    asyncio.run(go())


def test_a_paused_run_lets_no_call_in(broker_url: str) -> None:
    doors = Doors(broker_url, RECIPE)

    async def go() -> None:
        async with process(broker_url, "p") as p:
            doors.pause(True)
            assert await waits(p.enter(A, "1", "1"))
            doors.pause(False)
            await enter(p, 2)

    asyncio.run(go())


def test_a_process_that_shuts_down_begins_no_call(broker_url: str) -> None:
    async def go() -> None:
        async with process(broker_url, "p") as p:
            leaves = [await enter(p, n) for n in range(6)]
            waiting = asyncio.ensure_future(p.enter(A, "more", "more"))
            await asyncio.sleep(0.1)
            p.drain()
            with pytest.raises(HandedBack):
                await soon(waiting, 2)
            await p.settle(leaves[0], ANSWER)

    asyncio.run(go())
