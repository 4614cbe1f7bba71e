"""The ledger on a real SQLite file: every prompt is accounted for, and nothing happens twice.

Long because it holds the promises that everything else rests on.
"""

import contextlib
import itertools
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import BigInteger, Column

from workers.errors import ConfigurationError, LedgerError, SettingsError
from workers.ledger import DETAIL_CHARACTERS, LOST, POISON, Counts, Ledger, Skip, sum_calls
from workers.records import (
    FAILED,
    IN_FLIGHT,
    PAIRED,
    REJECTED,
    Generation,
    Judgement,
    Outcome,
    Pair,
    Prompt,
    Rating,
    Usage,
)
from workers.tables import calls, pairs

RUN = "run"
NEVER, LATER = 0.0, 1e12


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    opened = Ledger(database_url)
    opened.open_run(RUN, "hash", {"seed": 0, "judging": {}})
    yield opened
    opened.close()


def prompts(*names: str) -> dict[str, Prompt]:
    """Prompts by key; a prompt's key is its name here."""
    return {name: Prompt(f"instruction {name}", {"n": name}) for name in names}


def accept(
    ledger: Ledger,
    names: Iterable[str],
    *,
    batch_size: int = 2,
    skips: Sequence[Skip] = (),
    run: str = RUN,
) -> list[str]:
    return ledger.accept(
        run,
        prompts(*names),
        skips,
        source="file",
        position={"line": 1},
        schema="schema",
        batch_size=batch_size,
    )


def paired(key: str, *, usage: Usage | None = None) -> Outcome:
    pair = Pair(f"good {key}", "model-a", 5.0, f"bad {key}", "model-b", 1.0)
    spent = usage or Usage(retries=1, input_tokens=10, output_tokens=3)
    generations = (
        Generation("a", "model-a", text=pair.chosen, usage=spent),
        Generation("b", "model-b", text=pair.rejected, usage=spent),
    )
    ratings = (Rating(5.0, "right"), Rating(1.0, "wrong"))
    judgement = Judgement("j", "model-j", "overall-rating", ratings, (1, 0), usage=spent)
    return Outcome(key, PAIRED, None, "", generations, (judgement,), (pair,))


def failed(key: str, reason: str = "too_few_generations", detail: str = "") -> Outcome:
    return Outcome(key, FAILED, reason, detail)


def rejected(key: str) -> Outcome:
    return Outcome(key, REJECTED, "tie")


def counted(ledger: Ledger, run: str = RUN) -> Counts:
    """All counts, after checking that they account for every prompt."""
    counts = ledger.counts(run)
    ended = counts.paired + sum(counts.rejected.values()) + sum(counts.failed.values())
    assert counts.accepted == ledger.accepted(run) == ended + counts.in_flight
    assert counts.in_flight == ledger.in_flight(run)
    return counts


def attempts_left(ledger: Ledger, key: str, most: int = 20) -> int:
    """How often work on a prompt began, found by giving it up."""
    for attempt in range(most, -1, -1):
        if ledger.give_up(RUN, [key], attempt):
            return attempt
    raise AssertionError("not in flight")


# A run


def test_a_new_run_has_counted_nothing(ledger: Ledger) -> None:
    assert counted(ledger) == Counts()
    assert ledger.recipe_hash(RUN) == "hash"
    assert ledger.recipe_hash("other") is None


def test_the_same_recipe_opens_its_run_again(ledger: Ledger) -> None:
    accept(ledger, "ab")
    ledger.open_run(RUN, "hash", {"seed": 0})
    assert counted(ledger).in_flight == 2


def test_another_recipe_is_refused_with_what_changed_and_how_to_go_on(ledger: Ledger) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ledger.open_run(RUN, "other", {"seed": 1, "judging": {}, "generators": []})
    message = str(caught.value)
    assert "seed, generators changed" in message
    assert "judging" not in message
    assert "--accept-changes" in message
    assert "another name" in message
    assert ledger.recipe_hash(RUN) == "hash"


def test_a_key_that_went_away_is_named_too(ledger: Ledger) -> None:
    with pytest.raises(ConfigurationError, match="judging changed"):
        ledger.open_run(RUN, "other", {"seed": 0})


def test_accepted_changes_release_what_is_in_flight(ledger: Ledger) -> None:
    done, released = accept(ledger, "abcd")
    ledger.published(RUN, [done, released])
    ledger.start(RUN, released, attempt=True)
    ledger.commit(RUN, done, [paired("a"), paired("b")])
    ledger.open_run(RUN, "other", {"seed": 1}, accept_changes=True)
    assert ledger.recipe_hash(RUN) == "other"
    assert ledger.start(RUN, released).prompts == {}
    assert ledger.commit(RUN, released, [paired("c")]) == 0
    (fresh,) = ledger.rebatch_unpublished(RUN, 8)
    assert sorted(ledger.start(RUN, fresh).prompts) == ["c", "d"]
    assert counted(ledger).paired == 2


def test_accepted_changes_are_refused_no_more(ledger: Ledger) -> None:
    ledger.open_run(RUN, "other", {"seed": 1}, accept_changes=True)
    ledger.open_run(RUN, "other", {"seed": 1})
    with pytest.raises(ConfigurationError, match="seed"):
        ledger.open_run(RUN, "hash", {"seed": 0})


def test_two_runs_in_one_ledger_do_not_touch_each_other(ledger: Ledger) -> None:
    ledger.open_run("other", "hash", {})
    (mine,), (theirs,) = accept(ledger, "a"), accept(ledger, "a", run="other")
    assert ledger.start("other", mine).prompts == {}
    assert ledger.commit(RUN, theirs, [paired("a")]) == 0
    ledger.commit("other", theirs, [paired("a")])
    assert (counted(ledger).in_flight, counted(ledger, "other").paired) == (1, 1)
    assert list(ledger.pairs(RUN)) == []
    assert len(list(ledger.pairs("other"))) == 1


def test_the_ledger_is_still_there_when_it_is_opened_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/er/ledger.db"
    first = Ledger(url)
    first.open_run(RUN, "hash", {})
    (batch,) = accept(first, "ab")
    first.commit(RUN, batch, [paired("a")])
    first.close()
    second = Ledger(url, must_exist=True)
    counts = counted(second)
    assert (counts.paired, counts.in_flight, counts.rows) == (1, 1, 1)
    second.close()


def test_a_ledger_that_must_exist_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with pytest.raises(SettingsError, match=r"no ledger at .*ledger\.db yet"):
        Ledger(f"sqlite:///{path}", must_exist=True)
    assert not path.exists()


def test_a_file_that_is_no_database_is_a_ledger_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{path}")


# Prompts in


def test_accepted_prompts_lie_in_batches_of_the_size_asked_for(ledger: Ledger) -> None:
    batches = accept(ledger, "abcde")
    assert [sorted(ledger.start(RUN, batch).prompts) for batch in batches] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]
    assert counted(ledger).in_flight == 5


def test_prompts_come_back_as_they_were(ledger: Ledger) -> None:
    columns = {"z": [1, {"b": None}], "a": 1.5, "é": "\u2028\0"}
    prompt = Prompt("Schäm\n\u2028\U0001f600 dich", columns)
    (batch,) = ledger.accept(
        RUN, {"k": prompt}, [], source="s", position={}, schema="x", batch_size=1
    )
    assert ledger.start(RUN, batch).prompts == {"k": prompt}


def test_accepting_twice_is_accepting_once(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    assert accept(ledger, "ab") == []
    assert sorted(ledger.start(RUN, batch).prompts) == ["a", "b"]
    assert counted(ledger).accepted == 2


def test_a_prompt_that_ended_is_not_accepted_anew(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    ledger.commit(RUN, batch, [paired("a")])
    assert accept(ledger, "a") == []
    counts = counted(ledger)
    assert (counts.paired, counts.in_flight, counts.rows) == (1, 0, 1)


def test_among_known_prompts_only_the_new_ones_are_published(ledger: Ledger) -> None:
    accept(ledger, "abc", batch_size=8)
    batches = accept(ledger, "abcde")
    assert sorted(key for batch in batches for key in ledger.start(RUN, batch).prompts) == [
        "d",
        "e",
    ]
    assert counted(ledger).accepted == 5


def test_each_source_has_its_own_position(ledger: Ledger) -> None:
    assert ledger.source_state(RUN, "one") == (None, None)
    for source, line in (("one", 1), ("two", 2), ("one", 3)):
        ledger.accept(RUN, {}, [], source=source, position={"line": line}, schema="s", batch_size=1)
    assert ledger.source_state(RUN, "one") == ({"line": 3}, "s")
    assert ledger.source_state(RUN, "two") == ({"line": 2}, "s")
    assert ledger.source_state(RUN, "three") == (None, "s")
    assert ledger.stored_schema(RUN) == "s"


def test_an_unknown_run_has_no_position(ledger: Ledger) -> None:
    assert ledger.source_state("other", "one") == (None, None)
    assert ledger.stored_schema("other") is None


def test_a_row_is_skipped_once_by_its_position(ledger: Ledger) -> None:
    bad = [Skip("p.jsonl:1", "not_json", "x"), Skip("p.jsonl:2", "empty", "")]
    accept(ledger, "a", skips=bad)
    accept(ledger, "b", skips=[*bad, Skip("p.jsonl:3", "empty", "")])
    counts = counted(ledger)
    assert counts.skipped == {"not_json": 1, "empty": 2}
    assert counts.accepted == 2


# Work


def test_an_attempt_counts_once_for_each_publication(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    for _ in range(3):
        assert list(ledger.start(RUN, batch, attempt=True).prompts) == ["a"]
    (again,) = ledger.rebatch(RUN, 8)
    for _ in range(3):
        ledger.start(RUN, again, attempt=True)
    assert attempts_left(ledger, "a") == 2


def test_looking_at_a_batch_is_no_attempt(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    assert list(ledger.start(RUN, batch).prompts) == ["a"]
    ledger.published(RUN, [batch])
    ledger.rebatch(RUN, 8)
    assert attempts_left(ledger, "a") == 0


def test_a_stale_batch_begins_nothing_and_costs_no_attempt(ledger: Ledger) -> None:
    (stale,) = accept(ledger, "ab")
    (fresh,) = ledger.rebatch(RUN, 8)
    assert ledger.start(RUN, stale, attempt=True).prompts == {}
    assert ledger.start(RUN, "never heard of", attempt=True).prompts == {}
    assert sorted(ledger.start(RUN, fresh).prompts) == ["a", "b"]
    assert attempts_left(ledger, "a") == 0


def test_a_prompt_that_ended_begins_no_more(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    ledger.commit(RUN, batch, [failed("a")])
    assert list(ledger.start(RUN, batch, attempt=True).prompts) == ["b"]


def test_every_outcome_is_accounted_for(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "abcde", batch_size=8)
    outcomes = [paired("a"), rejected("b"), failed("c"), failed("d", "judge_timeout")]
    assert ledger.commit(RUN, batch, outcomes) == 4
    counts = counted(ledger)
    assert (counts.in_flight, counts.paired, counts.rows) == (1, 1, 1)
    assert counts.rejected == {"tie": 1}
    assert counts.failed == {"too_few_generations": 1, "judge_timeout": 1}
    assert (counts.accepted, counts.finished) == (5, 4)


def test_committing_twice_changes_nothing(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    outcomes = [paired("a"), failed("b")]
    assert ledger.commit(RUN, batch, outcomes) == 2
    before, rows = counted(ledger), list(ledger.pairs(RUN))
    assert ledger.commit(RUN, batch, outcomes) == 0
    assert ledger.commit(RUN, batch, [failed("a"), paired("b")]) == 0
    assert counted(ledger) == before
    assert list(ledger.pairs(RUN)) == rows


def test_the_same_prompt_twice_in_one_commit_ends_once(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    assert ledger.commit(RUN, batch, [paired("a"), failed("a"), paired("a")]) == 1
    counts = counted(ledger)
    assert (counts.paired, counts.rows, counts.calls["a"]["ok"]) == (1, 1, 1)


def test_committing_a_stale_batch_changes_nothing(ledger: Ledger) -> None:
    (stale,) = accept(ledger, "a")
    (fresh,) = ledger.rebatch(RUN, 8)
    assert ledger.commit(RUN, stale, [paired("a")]) == 0
    counts = counted(ledger)
    assert (counts.in_flight, counts.rows, counts.calls) == (1, 0, {})
    assert ledger.commit(RUN, fresh, [paired("a")]) == 1


def test_an_outcome_of_an_unknown_prompt_changes_nothing(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    assert ledger.commit(RUN, batch, [paired("z")]) == 0
    assert counted(ledger).rows == 0


def test_calls_are_summed_once(ledger: Ledger) -> None:
    first, second = accept(ledger, "abcd")
    cached = Usage(cached=True, input_tokens=7, output_tokens=2)
    for _ in range(2):
        ledger.commit(RUN, first, [paired("a"), paired("b", usage=cached)])
    ledger.commit(RUN, second, [paired("c")])
    spent = {
        "ok": 3,
        "retried": 2,
        "failed": 0,
        "cached": 1,
        "input_tokens": 27,
        "output_tokens": 8,
    }
    assert counted(ledger).calls == {"a": spent, "b": spent, "j": spent}


def test_a_call_without_a_usable_answer_counts_as_failed() -> None:
    generations = (
        Generation("a", "model-a", reason="timeout", usage=Usage(retries=5)),
        Generation("b", "model-b", text="cut", reason="truncated", usage=Usage(output_tokens=9)),
    )
    spent = sum_calls([Outcome("k", FAILED, "too_few_generations", "", generations)])
    assert (spent["a"]["ok"], spent["a"]["failed"], spent["a"]["retried"]) == (0, 1, 5)
    assert (spent["b"]["failed"], spent["b"]["output_tokens"]) == (1, 9)


def test_pairs_come_back_in_sequence_page_by_page(ledger: Ledger) -> None:
    order = "gcafbed"
    for batch, key in zip(accept(ledger, order, batch_size=1), order, strict=True):
        ledger.commit(RUN, batch, [paired(key)])
    whole = list(ledger.pairs(RUN))
    assert [judged.pair.chosen for judged in whole] == [f"good {key}" for key in order]
    for page in (1, 2, 3, 7, 8):
        assert list(ledger.pairs(RUN, page=page)) == whole


def test_a_pair_comes_back_with_all_that_it_was_made_from(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    outcome = paired("a")
    ledger.commit(RUN, batch, [outcome])
    (judged,) = ledger.pairs(RUN)
    assert judged.prompt == prompts("a")["a"]
    assert (judged.pair,) == outcome.pairs
    assert judged.generations == outcome.generations
    assert judged.judgements == outcome.judgements


def test_a_detail_of_any_length_is_kept_to_its_bound(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    detail = "\0" + "x" * 10 * DETAIL_CHARACTERS
    assert ledger.commit(RUN, batch, [failed("a", detail=detail)]) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        failed("a", detail="HTTP 400 \ud83d"),
        Outcome("a", FAILED, "x", "", (Generation("a", "m", text="t", reported_model="\ud83d"),)),
        Outcome("a", FAILED, "x", "", (Generation("a", "m", text="t", finish_reason="\ud83d"),)),
        Outcome(
            "a", REJECTED, "tie", "", (), (Judgement("j", "m", "x", (Rating(1, "cut \ud83d"),)),)
        ),
    ],
)
def test_half_a_character_from_an_endpoint_does_not_stop_a_commit(
    ledger: Ledger, outcome: Outcome
) -> None:
    (batch,) = accept(ledger, "a")
    assert ledger.commit(RUN, batch, [outcome]) == 1


@pytest.mark.parametrize("column", [calls.c.input_tokens, calls.c.output_tokens, pairs.c.sequence])
def test_sums_and_sequences_outgrow_31_bits(column: Column[int]) -> None:
    assert isinstance(column.type, BigInteger)


# Looking after what is in flight


def test_a_fresh_batch_makes_the_old_one_stale(ledger: Ledger) -> None:
    old = accept(ledger, "abcde")
    new = ledger.rebatch(RUN, 3)
    assert not set(old) & set(new)
    assert [len(ledger.start(RUN, batch).prompts) for batch in new] == [3, 2]
    assert all(ledger.start(RUN, batch).prompts == {} for batch in old)
    assert counted(ledger).in_flight == 5


def test_only_these_prompts_are_put_into_fresh_batches(ledger: Ledger) -> None:
    (old,) = accept(ledger, "abcd", batch_size=8)
    (new,) = ledger.rebatch(RUN, 8, ["b", "d", "unknown"])
    assert sorted(ledger.start(RUN, old).prompts) == ["a", "c"]
    assert sorted(ledger.start(RUN, new).prompts) == ["b", "d"]


def test_what_ended_is_not_published_again(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    ledger.commit(RUN, batch, [paired("a"), failed("b")])
    assert ledger.rebatch(RUN, 8) == []
    assert ledger.rebatch(RUN, 8, ["a", "b"]) == []
    assert ledger.rebatch_unpublished(RUN, 8) == []


def test_only_what_was_never_published_is_put_into_fresh_batches(ledger: Ledger) -> None:
    sent, unsent = accept(ledger, "abcd")
    ledger.published(RUN, [sent])
    (fresh,) = ledger.rebatch_unpublished(RUN, 8)
    assert sorted(ledger.start(RUN, fresh).prompts) == ["c", "d"]
    assert ledger.start(RUN, unsent).prompts == {}
    assert sorted(ledger.start(RUN, sent).prompts) == ["a", "b"]
    ledger.published(RUN, [fresh])
    assert ledger.rebatch_unpublished(RUN, 8) == []


def test_a_fresh_batch_counts_as_unpublished(ledger: Ledger) -> None:
    ledger.published(RUN, accept(ledger, "ab"))
    ledger.rebatch(RUN, 8)
    (again,) = ledger.rebatch_unpublished(RUN, 8)
    assert sorted(ledger.start(RUN, again).prompts) == ["a", "b"]


def test_a_window_of_any_size_can_be_published_again(ledger: Ledger) -> None:
    # SQLite as Debian builds it takes 250,000 variables, as Python's own builds do 32,766.
    assert ledger.give_up(RUN, [str(number) for number in range(300_000)], 3) == 0


def test_what_was_published_before_is_overdue_by_batch(ledger: Ledger) -> None:
    first, second = accept(ledger, "abc")
    ledger.published(RUN, [first])
    assert ledger.overdue(RUN, NEVER) == {}
    overdue = ledger.overdue(RUN, LATER)
    assert {batch: sorted(keys) for batch, keys in overdue.items()} == {
        first: ["a", "b"],
        second: ["c"],
    }


def test_what_ended_is_never_overdue(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    ledger.commit(RUN, batch, [paired("a")])
    assert ledger.overdue(RUN, LATER) == {batch: ["b"]}


def test_what_was_released_is_overdue_without_a_batch(ledger: Ledger) -> None:
    ledger.published(RUN, accept(ledger, "a"))
    ledger.open_run(RUN, "other", {}, accept_changes=True)
    assert ledger.overdue(RUN, LATER) == {"": ["a"]}


def test_a_run_that_a_person_starts_anew_uses_up_no_attempt(ledger: Ledger) -> None:
    (first,) = accept(ledger, "a")
    assert ledger.start(RUN, first, attempt=True).attempt == 1
    for _ in range(5):
        (again,) = ledger.rebatch(RUN, 8, lost=False)
        assert ledger.start(RUN, again, attempt=True).attempt == 1


def test_a_prompt_is_lost_only_when_its_attempts_are_used_up(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab")
    for attempt in range(1, 4):
        assert ledger.give_up(RUN, ["a"], 3) == 0
        assert counted(ledger).in_flight == 2
        ledger.start(RUN, batch, attempt=True)
        if attempt < 3:
            (batch,) = ledger.rebatch(RUN, 8)
    assert ledger.give_up(RUN, ["a"], 3) == 1
    assert ledger.give_up(RUN, ["a"], 3) == 0
    counts = counted(ledger)
    assert (counts.failed, counts.in_flight) == ({LOST: 1}, 1)


def test_what_ended_is_never_given_up(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    ledger.start(RUN, batch, attempt=True)
    ledger.commit(RUN, batch, [paired("a")])
    assert ledger.give_up(RUN, ["a"], 1) == 0
    assert counted(ledger).paired == 1


def test_a_lost_prompt_takes_no_late_outcome(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    ledger.start(RUN, batch, attempt=True)
    ledger.give_up(RUN, ["a"], 1)
    assert ledger.commit(RUN, batch, [paired("a")]) == 0
    counts = counted(ledger)
    assert (counts.failed, counts.rows) == ({LOST: 1}, 0)


# Any of these in any order

MAX_ATTEMPTS = 2
KEYS = st.lists(st.sampled_from("abcdef"), max_size=4, unique=True)


class Mill(RuleBasedStateMachine):
    """Producers, workers, sinks and a reconciler on one run, against a model of a few lines."""

    numbers = itertools.count()

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger, self.run = ledger, f"run-{next(self.numbers)}"
        ledger.open_run(self.run, "hash", {})
        self.state: dict[str, str] = {}
        self.batch: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.begun: set[str] = set()
        self.batches: list[str] = []

    def newest(self, batches: list[str]) -> None:
        """Note where each prompt in these new batches lies now."""
        self.batches += batches
        for batch in batches:
            for key in self.ledger.start(self.run, batch).prompts:
                self.batch[key] = batch
                self.begun.discard(key)

    def waiting(self, batch: str) -> list[str]:
        return [k for k, s in self.state.items() if s == IN_FLIGHT and self.batch[k] == batch]

    @rule(keys=KEYS, batch_size=st.integers(1, 3))
    def accept(self, keys: list[str], batch_size: int) -> None:
        new = [key for key in keys if key not in self.state]
        self.state |= dict.fromkeys(new, IN_FLIGHT)
        self.attempts |= dict.fromkeys(new, 0)
        self.newest(accept(self.ledger, keys, batch_size=batch_size, run=self.run))
        assert set(new) <= self.batch.keys()

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        mine = self.waiting(batch)
        assert sorted(self.ledger.start(self.run, batch, attempt=True).prompts) == sorted(mine)
        for key in set(mine) - self.begun:
            self.attempts[key] += 1
        self.begun |= set(mine)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), keys=KEYS)
    def commit(self, data: st.DataObject, keys: list[str]) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        ways = data.draw(st.lists(st.sampled_from([paired, failed, rejected]), min_size=4))
        outcomes = [way(key) for way, key in zip(ways, keys, strict=False)]
        mine = set(self.waiting(batch))
        new = [outcome for outcome in outcomes if outcome.key in mine]
        assert self.ledger.commit(self.run, batch, outcomes) == len(new)
        self.state |= {outcome.key: outcome.state for outcome in new}

    @rule(keys=st.one_of(st.none(), KEYS), batch_size=st.integers(1, 3))
    def rebatch(self, keys: list[str] | None, batch_size: int) -> None:
        self.newest(self.ledger.rebatch(self.run, batch_size, keys))

    @rule(keys=KEYS)
    def give_up(self, keys: list[str]) -> None:
        lost = [
            key
            for key in keys
            if self.state.get(key) == IN_FLIGHT and self.attempts[key] >= MAX_ATTEMPTS
        ]
        assert self.ledger.give_up(self.run, keys, MAX_ATTEMPTS) == len(lost)
        self.state |= dict.fromkeys(lost, FAILED)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), attempt=st.integers(0, 3))
    def crash(self, data: st.DataObject, attempt: int) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        mine = self.waiting(batch)
        told = max((self.attempts[key] for key in mine), default=0) == attempt
        left = [key for key in mine if self.attempts[key] < MAX_ATTEMPTS]
        apart = told and attempt + 1 >= MAX_ATTEMPTS and len(left) > 1
        if told:
            self.state |= dict.fromkeys(set(mine) - set(left), FAILED)
        if told and not apart:
            for key in left:
                self.attempts[key] += 1
        fresh = self.ledger.crashed(self.run, batch, "w", attempt, MAX_ATTEMPTS)
        assert len(fresh) == (len(left) if apart else 0)
        self.newest(fresh)

    @rule(limit=st.integers(1, 3))
    def retry(self, limit: int) -> None:
        again = self.ledger.retry(self.run, limit)
        failed = [key for key, state in self.state.items() if state == FAILED]
        assert len(again) == min(limit, len(failed))
        assert set(again) <= set(failed)
        for key in again:
            self.state[key], self.attempts[key] = IN_FLIGHT, 0
            self.begun.discard(key)
        self.newest(self.ledger.rebatch_unpublished(self.run, 2))

    @invariant()
    def every_prompt_is_accounted_for(self) -> None:
        counts = counted(self.ledger, self.run)
        states = list(self.state.values())
        assert counts.accepted == len(states)
        assert counts.in_flight == states.count(IN_FLIGHT)
        assert counts.paired == states.count(PAIRED)
        assert sum(counts.rejected.values()) == states.count(REJECTED)
        assert sum(counts.failed.values()) == states.count(FAILED)

    @invariant()
    def every_paired_prompt_has_one_row(self) -> None:
        rows = [judged.prompt.columns["n"] for judged in self.ledger.pairs(self.run, page=2)]
        assert sorted(rows) == sorted(k for k, s in self.state.items() if s == PAIRED)
        assert len({judged.pair.chosen for judged in self.ledger.pairs(self.run)}) == len(rows)


def test_a_death_counts_once_however_many_steps_and_processes_it_hit(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "ab", batch_size=8)
    assert ledger.start(RUN, batch, attempt=True).attempt == 1
    for worker in ("w1", "w1", "w2"):
        assert ledger.crashed(RUN, batch, worker, 1, 5) == []
    work = ledger.start(RUN, batch)
    assert sorted(work.prompts) == ["a", "b"]
    assert (work.attempt, work.suspect) == (2, True)


def test_before_the_last_attempt_prompts_go_on_one_by_one(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "abc", batch_size=8)
    ledger.start(RUN, batch, attempt=True)
    assert ledger.crashed(RUN, batch, "w1", 1, 3) == []
    alone = ledger.crashed(RUN, batch, "w2", 2, 3)
    assert len(alone) == 3
    assert not ledger.start(RUN, batch).prompts
    assert ledger.crashed(RUN, batch, "w3", 2, 3) == []
    assert ledger.rebatch_unpublished(RUN, 8)  # they count as unpublished


def test_a_prompt_that_killed_every_worker_is_poison_and_its_neighbours_are_not(
    ledger: Ledger,
) -> None:
    (batch,) = accept(ledger, "ab", batch_size=8)
    ledger.start(RUN, batch, attempt=True)
    ledger.crashed(RUN, batch, "w1", 1, 3)
    for one in ledger.crashed(RUN, batch, "w2", 2, 3):
        work = ledger.start(RUN, one, attempt=True)
        assert (work.attempt, work.suspect) == (3, True)
        key = next(iter(work.prompts))
        if key == "a":
            ledger.note_error(RUN, one, "ran out\nof memory")
            assert ledger.crashed(RUN, one, "w3", 3, 3) == []
        else:
            assert ledger.commit(RUN, one, [paired(key)]) == 1
    (failure,) = ledger.failures(RUN)
    assert (failure.key, failure.reason, failure.attempts) == ("a", POISON, 3)
    assert failure.instruction == "instruction a"
    assert failure.detail == "3 workers died while they worked on it; last error: ran out of memory"
    assert counted(ledger).paired == 1


def test_a_death_on_a_stale_batch_changes_nothing(ledger: Ledger) -> None:
    (stale,) = accept(ledger, "a")
    (batch,) = ledger.rebatch(RUN, 2)
    assert ledger.crashed(RUN, stale, "w1", 0, 1) == []
    assert "a" in ledger.start(RUN, batch).prompts


def test_a_lost_prompt_tells_its_last_error(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "a")
    ledger.start(RUN, batch, attempt=True)
    ledger.note_error(RUN, batch, "KeyError: 'x'\0")
    ledger.give_up(RUN, ["a"], 1)
    (failure,) = ledger.failures(RUN)
    assert failure.reason == LOST
    assert failure.detail.endswith("last error: KeyError: 'x'")


def test_failures_come_oldest_first_page_by_page(ledger: Ledger) -> None:
    names = [f"p{number:02}" for number in range(7)]
    for batch, some in zip(accept(ledger, names, batch_size=1), names, strict=True):
        ledger.commit(RUN, batch, [failed(some)])
    assert [failure.key for failure in ledger.failures(RUN, page=2)] == names
    assert list(ledger.failures("other")) == []


def test_what_is_tried_again_is_in_flight_and_keeps_its_generations(ledger: Ledger) -> None:
    (batch,) = accept(ledger, "abc", batch_size=8)
    ledger.commit(RUN, batch, [failed("a"), paired("b"), failed("c")])
    assert ledger.retry(RUN, 1) == ["a"]
    assert ledger.retry(RUN, 9) == ["c"]
    assert ledger.retry(RUN, 9) == []
    (again,) = ledger.rebatch_unpublished(RUN, 8)
    work = ledger.start(RUN, again, attempt=True)
    assert sorted(work.prompts) == sorted(work.known) == ["a", "c"]
    assert work.known["a"] == failed("a").generations
    assert not work.suspect
    assert ledger.commit(RUN, batch, [paired("a")]) == 0  # the old batch is stale
    assert ledger.commit(RUN, again, [paired("a"), paired("c")]) == 2
    assert counted(ledger).paired == 3


def test_a_run_can_be_paused_and_goes_on(ledger: Ledger) -> None:
    assert not ledger.paused(RUN)
    for _ in range(2):
        ledger.pause(RUN)
        assert ledger.paused(RUN)
    ledger.resume(RUN)
    assert not ledger.paused(RUN)
    assert not ledger.paused("other")


def test_a_ledger_of_an_older_version_gets_what_is_missing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    old = Ledger(url)
    old.open_run(RUN, "hash", {})
    accept(old, "a")
    old.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as raw:
        raw.execute("ALTER TABLE runs DROP COLUMN paused_at")
        raw.execute("ALTER TABLE prompts DROP COLUMN dead_worker")
        raw.commit()
    opened = Ledger(url, must_exist=True)
    opened.pause(RUN)
    assert opened.paused(RUN)
    assert counted(opened).in_flight == 1
    opened.close()


def test_sinks_that_commit_the_same_batches_at_once_enter_each_prompt_once(
    ledger: Ledger, database_url: str
) -> None:
    names = [f"p{number:02}" for number in range(40)]
    batches = accept(ledger, names, batch_size=8)
    ledgers = [Ledger(database_url) for _ in range(4)]
    start = threading.Barrier(4)

    def commit(one: Ledger, *, backwards: bool) -> int:
        start.wait(10)
        new = 0
        for number, batch in enumerate(batches):
            mine = [paired(key) for key in names[number * 8 : number * 8 + 8]]
            new += one.commit(RUN, batch, mine[::-1] if backwards else mine)
        return new

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(commit, one, backwards=n % 2 == 0) for n, one in enumerate(ledgers)]
        assert sum(job.result() for job in jobs) == 40
    for one in ledgers:
        one.close()
    counts = counted(ledger)
    assert (counts.paired, counts.rows, counts.in_flight) == (40, 40, 0)
    assert {spent["ok"] for spent in counts.calls.values()} == {40}


def test_many_processes_may_open_an_empty_database_at_once(database_url: str) -> None:
    code = "import sys; from workers.ledger import Ledger; Ledger(sys.argv[1]).close()"
    running = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]


def test_a_database_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_postgresql_without_a_ledger_is_told_apart_from_one_that_is_down(
    postgres_url: str,
) -> None:
    with pytest.raises(SettingsError, match="no ledger in postgresql"):
        Ledger(postgres_url, must_exist=True)
    Ledger(postgres_url).close()
    Ledger(postgres_url, must_exist=True).close()


def test_whatever_happens_in_whatever_order_every_prompt_is_accounted_for(ledger: Ledger) -> None:
    few = settings(max_examples=15, stateful_step_count=20)
    run_state_machine_as_test(lambda: Mill(ledger), settings=few)
