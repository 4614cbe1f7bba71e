"""The outbox in a real ledger of each kind: what waits, what is sealed, what has changed since."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.columns import SourceColumns
from workers.entries import DELIVERED, HUMAN, PAIRS, RECORD, SEALED, Entry
from workers.errors import DestinationRefused, LedgerError
from workers.ledger import Curated, Ledger
from workers.records import (
    PAIRED,
    REJECTED,
    Generation,
    Judgement,
    Outcome,
    Pair,
    Prompt,
    Rating,
)
from workers.sealed import ARRIVING, GONE, LEAVING, found_file
from workers.shards import Shards

RUN, HUB, ARGILLA = "run", "hub:me/set", "argilla:argilla/set"
NAMES = {"hub": HUB, "argilla": ARGILLA}
PEOPLE = {"annotators": 1, "disagreement": None, "ratings": {"0": 1.0, "1": 5.0}, "counts": {}}


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    opened = Ledger(database_url)
    opened.open_run(RUN, "hash", {"seed": 0, "judging": {}})
    yield opened
    opened.close()


def pair(key: str, *, margin: float = 4.0, tie: bool = False) -> Pair:
    low = 5.0 - margin
    return Pair(f"good {key}", "model-a", 5.0, f"bad {key}", "model-b", low, tie=tie)


def ended(key: str, *pairs: Pair) -> Outcome:
    generations = (
        Generation("a", "model-a", text=f"good {key}"),
        Generation("b", "model-b", text=f"bad {key}"),
    )
    judgement = Judgement("j", "model-j", "overall-rating", (Rating(5.0, ""), Rating(1.0, "")))
    untied = any(not one.tie for one in pairs)
    reason = None if untied else "tie"
    state = PAIRED if untied else REJECTED
    return Outcome(key, state, reason, "", generations, (judgement,), pairs)


def accept(ledger: Ledger, *keys: str) -> str:
    columns = SourceColumns()
    assert columns.fit({"topic": "t"}, first=True) == {}
    (batch,) = ledger.accept(
        RUN,
        {key: Prompt(f"instruction {key}", {"topic": f"t{key}"}) for key in keys},
        [],
        source="file",
        position={"line": 1},
        schema=columns.to_text(),
        batch_size=1000,
    )
    return batch


def make(ledger: Ledger, *keys: str, names: tuple[str, ...] = (HUB, ARGILLA)) -> None:
    """Prompts that end with one pair each."""
    batch = accept(ledger, *keys)
    assert ledger.commit(RUN, batch, [ended(key, pair(key)) for key in keys], names) == len(keys)


def shards_of(ledger: Ledger) -> Shards:
    return Shards(ledger, RUN, ledger.sealed(RUN, HUB))


def deliver(ledger: Ledger) -> None:
    """Seal and, as if it were sent, note as delivered all that waits."""
    shards, outbox = shards_of(ledger), ledger.sealed(RUN, HUB)
    while shards.seal():
        outbox.shards_delivered({file.number for file in outbox.files(SEALED)})


def chosen(ledger: Ledger, *states: str, configuration: str = "default") -> list[str]:
    """The chosen texts in files of these states, in the order of their shards."""
    found = []
    for file in ledger.sealed(RUN, HUB).files(*states, content=True):
        if file.configuration == configuration and file.content is not None:
            assert hashlib.sha256(file.content).hexdigest() == file.sha256
            rows = pq.read_table(pa.BufferReader(file.content)).to_pylist()
            assert len(rows) == file.rows
            found += [row["chosen"][-1]["content"] for row in rows]
    return found


def test_an_outcome_waits_for_every_destination_once(ledger: Ledger) -> None:
    batch = accept(ledger, "p", "t")
    outcomes = [ended("p", pair("p")), ended("t")]
    for _ in range(2):
        ledger.commit(RUN, batch, outcomes, (HUB, ARGILLA))
    backlogs = ledger.counts(RUN, NAMES).deliveries
    assert (backlogs["hub"].waiting, backlogs["argilla"].waiting) == (1, 2)
    assert [entry.kind for entry in ledger.sealed(RUN, HUB).waiting(9)] == [PAIRS]
    assert {entry.kind for entry in ledger.outbox(RUN, ARGILLA).waiting(9)} == {RECORD}


def test_a_destination_that_is_new_gets_what_was_made_before(ledger: Ledger) -> None:
    make(ledger, "a", "b", names=())
    batch = accept(ledger, "t")
    ledger.commit(RUN, batch, [ended("t")])
    for name, waiting in ((HUB, ["a", "b"]), (ARGILLA, ["a", "b", "t"])):
        outbox = ledger.outbox(RUN, name)
        for _ in range(2):
            outbox.fill()
        assert [entry.key for entry in outbox.waiting(9)] == waiting


def test_a_sealed_shard_is_the_same_file_each_time_it_is_read(ledger: Ledger) -> None:
    make(ledger, "a", "b")
    assert shards_of(ledger).seal()
    assert not shards_of(ledger).seal()
    outbox = ledger.sealed(RUN, HUB)
    first, second = (outbox.files(SEALED, content=True) for _ in range(2))
    assert first == second
    assert [file.path for file in first] == [
        "data/default/train-000000.parquet",
        "data/full/train-000000.parquet",
    ]
    assert chosen(ledger, SEALED) == ["good a", "good b"]
    outbox.shards_delivered([0])
    (delivered,) = {file.content for file in outbox.files(DELIVERED, content=True)}
    assert delivered is None
    assert outbox.backlog().delivered == 2


def test_kept_ties_are_rows_of_full_alone(ledger: Ledger) -> None:
    batch = accept(ledger, "t")
    ledger.commit(RUN, batch, [ended("t", pair("t", margin=0.0, tie=True))], (HUB,))
    assert shards_of(ledger).seal()
    (file,) = ledger.sealed(RUN, HUB).files(SEALED)
    assert (file.configuration, file.rows) == ("full", 1)


def test_nothing_is_sealed_of_what_changed_while_it_was_read(ledger: Ledger) -> None:
    make(ledger, "a")
    outbox = ledger.sealed(RUN, HUB)
    (entry,) = outbox.waiting(9)
    ledger.replace_pairs(RUN, [ended("a", pair("a", margin=2.0))], (HUB,))
    assert not outbox.seal(0, [], {entry: 1})
    assert shards_of(ledger).seal()
    (file, _) = outbox.files(SEALED, content=True)
    (row,) = pq.read_table(pa.BufferReader(file.content)).to_pylist()
    assert row["rejected_rating"] == 3.0


def test_pairs_that_went_before_they_were_sealed_are_not_delivered(ledger: Ledger) -> None:
    make(ledger, "a", "b")
    ledger.replace_pairs(RUN, [ended("a")], (HUB,))
    assert [entry.key for entry in ledger.sealed(RUN, HUB).waiting(9)] == ["b"]
    ledger.replace_pairs(RUN, [ended("a", pair("a"))], (HUB,))
    assert {entry.key for entry in ledger.sealed(RUN, HUB).waiting(9)} == {"a", "b"}


def test_delivered_pairs_that_change_are_counted_until_a_compaction_replaced_them(
    ledger: Ledger,
) -> None:
    make(ledger, "a", "b", "c")
    deliver(ledger)
    outbox = ledger.sealed(RUN, HUB)
    ledger.replace_pairs(RUN, [ended("a", pair("a", margin=2.0)), ended("b")], (HUB,))
    assert outbox.backlog().changed == 2
    assert shards_of(ledger).compact()
    assert [f.number for f in outbox.files(LEAVING)] == [0, 0]
    assert chosen(ledger, ARRIVING) == ["good a", "good c"]
    outbox.compacted()
    backlog = outbox.backlog()
    assert (backlog.changed, backlog.delivered, backlog.waiting) == (0, 2, 0)
    assert {f.number for f in outbox.files(DELIVERED)} == {1}
    assert {f.number for f in outbox.files(GONE)} == {0}
    assert not shards_of(ledger).compact()


def test_pairs_that_change_during_a_compaction_are_still_counted_after_it(ledger: Ledger) -> None:
    make(ledger, "a", "b")
    deliver(ledger)
    outbox = ledger.sealed(RUN, HUB)
    ledger.replace_pairs(RUN, [ended("a", pair("a", margin=2.0)), ended("b")], (HUB,))
    assert shards_of(ledger).compact()
    ledger.replace_pairs(RUN, [ended("a", pair("a", margin=3.0)), ended("b", pair("b"))], (HUB,))
    outbox.compacted()
    backlog = outbox.backlog()
    assert (backlog.changed, backlog.delivered, backlog.waiting) == (1, 1, 1)
    assert [entry.key for entry in outbox.waiting(9)] == ["b"]


def test_small_shards_become_one_in_their_order(ledger: Ledger) -> None:
    for key in "abcde":
        make(ledger, key)
        deliver(ledger)
    outbox = ledger.sealed(RUN, HUB)
    assert len(outbox.files(DELIVERED)) == 10
    assert shards_of(ledger).compact()
    assert chosen(ledger, ARRIVING) == [f"good {key}" for key in "abcde"]
    outbox.compacted()
    assert [file.rows for file in outbox.files(DELIVERED)] == [5, 5]
    make(ledger, "f")
    assert shards_of(ledger).seal()
    assert {file.number for file in outbox.files(SEALED)} == {6}


def test_a_compaction_that_was_never_planned_to_its_end_is_forgotten(ledger: Ledger) -> None:
    for key in "ab":
        make(ledger, key)
        deliver(ledger)
    outbox = ledger.sealed(RUN, HUB)
    assert shards_of(ledger).compact()
    planned = outbox.files(ARRIVING)
    outbox.abandon()
    assert outbox.files(ARRIVING) == planned  # this one was, and is carried out
    outbox.compacted()
    outbox.abandon()
    assert outbox.files(ARRIVING) == []


def test_shards_that_the_ledger_does_not_know_go_with_a_compaction_even_after_a_cancelled_one(
    ledger: Ledger,
) -> None:
    make(ledger, "a")
    deliver(ledger)
    make(ledger, "b")
    assert shards_of(ledger).seal()
    outbox = ledger.sealed(RUN, HUB)
    paths = ["data/default/train-000001.parquet", "data/full/train-000007.parquet"]
    found = [file for path in paths if (file := found_file(path, 9, "sha")) is not None]
    assert [file.path for file in found] == paths
    outbox.adopt(found)
    assert outbox.next_number() == 8
    make(ledger, "c")
    for _ in range(2):
        assert shards_of(ledger).compact({1, 7})
        assert set(paths) <= {file.path for file in outbox.files(LEAVING)}
        assert outbox.files(SEALED) == []
        assert chosen(ledger, ARRIVING) == ["good a", "good b"]
        outbox.cancel()
        with pytest.raises(DestinationRefused, match="prefmill compact"):
            shards_of(ledger).seal()
    assert outbox.backlog().delivered == 1
    assert shards_of(ledger).compact()
    assert outbox.next_number() == 11
    outbox.compacted()
    assert (outbox.backlog().delivered, outbox.backlog().changed) == (2, 0)
    assert {file.number for file in outbox.files(DELIVERED)} == {10}
    deliver(ledger)
    assert outbox.backlog().delivered == 3


@pytest.mark.parametrize(
    "path",
    [
        "data/other/train-000001.parquet",
        "data/default/train-1.parquet",
        "data/default/train-0000001.parquet",
        "data/default/train-00000-of-00001.parquet",
        "data/default/more/train-000001.parquet",
        "train-000001.parquet",
    ],
)
def test_files_of_other_names_are_no_shards(path: str) -> None:
    assert found_file(path, 1, None) is None


def test_people_add_rows_and_their_second_thoughts_count_as_changes(ledger: Ledger) -> None:
    make(ledger, "a", "b")
    deliver(ledger)
    outbox = ledger.sealed(RUN, HUB)
    turned = Pair("bad a", "model-b", 5.0, "good a", "model-a", 1.0)
    assert ledger.curate(RUN, {"a": Curated(PEOPLE, (turned,))}, (HUB,)) == 1
    assert ledger.curate(RUN, {"a": Curated(PEOPLE, (turned,))}, (HUB,)) == 0
    assert [entry.kind for entry in outbox.waiting(9)] == [HUMAN]
    assert shards_of(ledger).seal(), outbox.refusals()
    assert chosen(ledger, SEALED, configuration="human") == ["bad a"]
    deliver(ledger)
    outbox.shards_delivered([1])
    assert ledger.curate(RUN, {}, (HUB,), place="another") == 0
    assert ledger.curate(RUN, {}, (HUB,), place="") == 1
    assert outbox.backlog().changed == 1
    assert shards_of(ledger).compact()
    outbox.compacted()
    assert {f.configuration for f in outbox.files(DELIVERED)} == {"default", "full"}
    assert [one.key for one in ledger.human_pairs(RUN)] == []


def test_a_record_is_sent_again_when_its_prompt_ends_otherwise(ledger: Ledger) -> None:
    make(ledger, "a", "b")
    outbox = ledger.outbox(RUN, ARGILLA)
    outbox.delivered(outbox.waiting(9))
    assert outbox.backlog().delivered == 2
    old = Entry(1, RECORD, "a", 0)
    ledger.replace_pairs(RUN, [ended("a")], (HUB, ARGILLA))
    assert [entry.key for entry in outbox.waiting(9)] == ["a"]
    outbox.delivered([old])  # what was sent before the change does not count
    assert outbox.backlog().waiting == 1
    outbox.delivered(outbox.waiting(9))
    assert outbox.backlog().waiting == 0


def test_a_row_that_holds_a_secret_stays_behind_with_the_reason(ledger: Ledger) -> None:
    make(ledger, "secretive-4f1c", "b")
    assert Shards(ledger, RUN, ledger.sealed(RUN, HUB), {"good secretive-4f1c"}).seal()
    assert chosen(ledger, SEALED) == ["good b"]
    outbox = ledger.sealed(RUN, HUB)
    ((key, why),) = outbox.refusals()
    assert key == "secretive-4f1c"
    assert "secret" in why
    assert outbox.backlog().refused == 1
    outbox.retry_refused()
    assert [entry.key for entry in outbox.waiting(9)] == ["secretive-4f1c"]


def test_trouble_is_noted_and_cleared(ledger: Ledger) -> None:
    outbox = ledger.sealed(RUN, HUB)
    for trouble in ("away", "away", None):
        outbox.note_trouble(trouble)
        assert outbox.backlog().trouble == trouble


def test_only_one_is_alone_and_the_next_one_may_be_at_once(ledger: Ledger) -> None:
    for _ in range(2):
        with ledger.alone("run hub:me/set") as first, ledger.alone("run hub:me/set") as second:
            assert (first, second) == (True, False)
            with ledger.alone("run argilla:x/y") as other:
                assert other


class Repository:
    """What a Hub would hold: files that are pushed and deleted as `to_hub` does it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.outbox = ledger, ledger.sealed(RUN, HUB)
        self.files: dict[str, bytes] = {}

    def push(self, *, compact: bool) -> None:
        sealed = self.outbox.files(SEALED, content=True)
        self.files |= {file.path: file.content or b"" for file in sealed}
        self.outbox.shards_delivered(file.number for file in sealed)
        if compact and self._again(shards_of(self.ledger).compact):
            arriving = self.outbox.files(ARRIVING, content=True)
            self.files |= {file.path: file.content or b"" for file in arriving}
            for file in self.outbox.files(LEAVING):
                self.files.pop(file.path, None)
            self.outbox.compacted()
        self._again(shards_of(self.ledger).seal)

    @staticmethod
    def _again(made: Callable[[], bool]) -> bool:
        """False if what it was made of changed again and again meanwhile."""
        try:
            return made()
        except LedgerError as exc:
            if "again and again" not in str(exc):
                raise
            return False

    def rows(self, configuration: str) -> list[tuple[str, float]]:
        found = []
        for path, content in self.files.items():
            if path.startswith(f"data/{configuration}/"):
                for row in pq.read_table(pa.BufferReader(content)).to_pylist():
                    found.append((row["chosen"][-1]["content"], row["rejected_rating"]))
        return sorted(found)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_changes_meanwhile_the_repository_ends_with_the_ledgers_rows(
    ledger: Ledger, seed: int
) -> None:
    keys = [f"p{number:02}" for number in range(40)]
    make(ledger, *keys)
    repository, errors, over = Repository(ledger), [], threading.Event()

    def again(act: Callable[[random.Random], None]) -> threading.Thread:
        rng = random.Random(seed)

        def work() -> None:
            try:
                while not over.is_set():
                    act(rng)
            except LedgerError as exc:
                errors.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def change(rng: random.Random) -> None:
        some = rng.sample(keys, rng.randint(1, 9))
        margins = [rng.choice([None, 1.0, 2.0, 3.0]) for _ in some]
        made = [
            ended(key, *([] if margin is None else [pair(key, margin=margin)]))
            for key, margin in zip(some, margins, strict=True)
        ]
        ledger.replace_pairs(RUN, made, (HUB, ARGILLA))

    def rate(rng: random.Random) -> None:
        rated = {
            key: Curated(PEOPLE, (pair(key, margin=rng.choice([1.0, 2.0])),))
            for key in rng.sample(keys, 5)
        }
        ledger.curate(RUN, rated, (HUB, ARGILLA), place="")

    def log(_: random.Random) -> None:
        records = ledger.outbox(RUN, ARGILLA)
        records.delivered(records.waiting(7))

    acts: list[Callable[[random.Random], None]] = [change, rate, log]
    threads = [again(act) for act in acts]
    deadline = time.monotonic() + 3
    rng = random.Random(seed)
    while time.monotonic() < deadline and not errors:
        repository.push(compact=rng.random() < 0.5)
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    for _ in range(3):
        repository.push(compact=True)
    backlog = ledger.sealed(RUN, HUB).backlog()
    assert (backlog.waiting, backlog.changed) == (0, 0)
    ours = [(one.pair.chosen, one.pair.rejected_rating) for one in ledger.pairs(RUN)]
    human = [(one.pair.chosen, one.pair.rejected_rating) for one in ledger.human_pairs(RUN)]
    assert repository.rows("default") == repository.rows("full") == sorted(ours)
    assert repository.rows("human") == sorted(human)
    assert backlog.delivered == len(ours) + len(human)


def test_a_kept_tie_is_looked_at_as_well_before_it_leaves(ledger: Ledger) -> None:
    batch = accept(ledger, "t", "u")
    nameless = replace(pair("t", margin=0.0, tie=True), chosen_model="")
    sound = pair("u", margin=0.0, tie=True)
    ledger.commit(RUN, batch, [ended("t", nameless), ended("u", sound)], (HUB,))
    assert shards_of(ledger).seal()
    outbox = ledger.sealed(RUN, HUB)
    assert [(file.configuration, file.rows) for file in outbox.files(SEALED)] == [("full", 1)]
    ((key, why),) = outbox.refusals()
    assert key == "t"
    assert why.startswith("no_model")
