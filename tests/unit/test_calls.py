"""What `Calls` does without a single request: answers that are known, work handed back.

That a call is held to its model's limit, asked again and stored is for the integration tests, which
have servers to ask.
"""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from workers.admission import Answer, HandedBack, Leave, Model, Unlimited
from workers.calls import CallEnded, Calls, address_of
from workers.recipe import Recipe
from workers.records import Usage
from workers.reply import RULES

REQUEST = {"messages": [{"role": "user", "content": "Why?"}]}
RECIPE = Recipe.model_validate(
    {
        "name": "r",
        "source": {"stdin": True},
        "endpoints": {"here": {"base_url": "http://127.0.0.1:9/v1"}},
        "generators": [
            {"name": "a", "endpoint": "here", "model": "m", "parameters": {"max_tokens": 9}},
            {"name": "b", "endpoint": "here", "model": "m"},
        ],
        "judges": [{"name": "j", "endpoint": "here", "model": "m"}],
    }
)
A, B = RECIPE.generators


class Known(Unlimited):
    """An admission that knows some answers and lets nobody else in."""

    def __init__(self) -> None:
        self.held: dict[str, Answer] = {}
        #: What is answered once an answer was dropped.
        self.fresh: dict[str, Answer] = {}

    async def enter(self, model: Model, prompt: str, address: str) -> Leave | Answer:
        return self.held[address]

    async def drop_answer(self, prompt: str, address: str) -> None:
        self.held[address] = self.fresh[address]


def answer(text: str, retries: int = 0, finish_reason: str = "stop") -> Answer:
    completion = {
        "text": text,
        "finish_reason": finish_reason,
        "model": "m-0613",
        "input_tokens": 12,
        "output_tokens": 3,
    }
    return {"completion": completion, "retries": retries}


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def calls(known: Known) -> Iterator[Calls]:
    opened = Calls(RECIPE, {"here": None}, known)
    yield opened
    opened.close()


def test_a_known_answer_is_not_asked_for_again(calls: Calls, known: Known) -> None:
    known.held[address_of(A, REQUEST)] = answer("Because.", retries=2)
    answered = calls.run(calls.ask(A, REQUEST, key="k"))
    assert answered.completion.text == "Because."
    assert answered.completion.finish_reason == "stop"
    assert answered.usage == Usage(retries=2, cached=True, input_tokens=12, output_tokens=3)


@pytest.mark.parametrize("finish_reason", ["error", "abort", "network_error"])
def test_an_earlier_half_answer_is_asked_for_again(
    calls: Calls, known: Known, finish_reason: str
) -> None:
    address = address_of(A, REQUEST)
    known.held[address] = answer("Half an ans", finish_reason=finish_reason)
    known.fresh[address] = answer("Whole.") | {"rules": RULES}
    assert calls.run(calls.ask(A, REQUEST, key="k")).completion.text == "Whole."


def test_an_earlier_answer_loses_its_thoughts_and_a_new_one_nothing(
    calls: Calls, known: Known
) -> None:
    text = "Models think; then comes </think> and the answer."
    for stored, kept in (
        (answer(text), "and the answer."),
        (answer(text) | {"rules": RULES}, text),
    ):
        known.held[address_of(A, REQUEST)] = stored
        assert calls.run(calls.ask(A, REQUEST, key="k")).completion.text == kept


def test_an_earlier_answer_that_was_withheld_is_final(calls: Calls, known: Known) -> None:
    known.held[address_of(A, REQUEST)] = answer("Half an ans", finish_reason="SAFETY")
    with pytest.raises(CallEnded) as caught:
        calls.run(calls.ask(A, REQUEST, key="k"))
    assert caught.value.reason == "content_filter"


def test_two_generators_of_one_model_do_not_share_answers(calls: Calls, known: Known) -> None:
    assert B.model == A.model
    known.held = {address_of(A, REQUEST): answer("by a"), address_of(B, REQUEST): answer("by b")}
    answered = calls.run(calls.ask(B, REQUEST, key="k"))
    assert answered.completion.text == "by b"


def test_work_runs_on_one_loop_in_a_thread_of_its_own(calls: Calls) -> None:
    async def where() -> tuple[str, int]:
        return threading.current_thread().name, id(asyncio.get_running_loop())

    first, second = calls.run(where()), calls.run(where())
    assert first == second
    assert first[0] == "calls"


def test_what_work_raises_is_raised_to_the_task_that_waits(calls: Calls) -> None:
    async def broken() -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        calls.run(broken())


def test_a_timeout_of_the_work_is_not_taken_for_one_of_the_task(calls: Calls) -> None:
    async def broken() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        calls.run(broken(), timeout_s=10)


def test_work_that_is_not_done_in_time_is_cancelled_and_handed_back(calls: Calls) -> None:
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(HandedBack, match=r"not done within 0\.02 s"):
        calls.run(endless(), timeout_s=0.02)
    assert ended.wait(10)


def test_work_that_is_cancelled_is_handed_back(calls: Calls) -> None:
    begun, raised = threading.Event(), []

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    def task() -> None:
        try:
            calls.run(endless())
        except HandedBack as exc:
            raised.append(exc)

    waiting = threading.Thread(target=task)
    waiting.start()
    assert begun.wait(10)
    assert calls.cancel() == 1
    waiting.join(10)
    assert len(raised) == 1
    assert calls.cancel() == 0


def test_closing_ends_the_loops_thread() -> None:
    def loops() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "calls"}

    before = loops()
    opened = Calls(RECIPE, {"here": None}, Unlimited())
    (mine,) = loops() - before
    opened.close()
    assert not mine.is_alive()
