"""From waiting entries to shards, and from many shards to few: rows fixed, files made.

A shard has one number and up to three files, one for each configuration that has rows in it. What
has left the house is never rewritten: pairs that change later, and shards that are too small, are
replaced by new ones under new numbers. Rows that the gate refuses stay behind, with the reason.
Repositories and networks are unknown here.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.entries import DELIVERED, HUMAN, PAIRS, SEALED, Entry
from workers.errors import DestinationRefused, LedgerError
from workers.gate import Refusal, why_refused, why_unsafe
from workers.ledger import Judged, Ledger
from workers.rows import CONFIGURATIONS, DEFAULT, FULL, default_row
from workers.sealed import ARRIVING, File, SealedOutbox
from workers.shapes import Shape, shape, source_schema

#: Prompts that one shard holds at most.
PROMPTS = 5_000

#: Characters of rows, all configurations together, from which a shard is full.
CHARACTERS = 32_000_000

#: Prompts that are read at a time.
PAGE = 250

#: A shard with fewer rows is worth replacing together with others.
SMALL = 2_000

#: How often a shard is made anew because its prompts changed meanwhile, before that is an error.
TRIES = 5

Rows = list[dict[str, Any]]


@dataclass(slots=True)
class _Shard:
    """A shard in the making."""

    rows: dict[str, Rows] = field(default_factory=lambda: defaultdict(list))
    held: dict[Entry, int] = field(default_factory=dict)
    refused: dict[Entry, str] = field(default_factory=dict)
    characters: int = 0

    @property
    def full(self) -> bool:
        return self.characters >= CHARACTERS or len(self.held) >= PROMPTS


class Shards:
    """The shards of one run for one repository."""

    def __init__(
        self, ledger: Ledger, run: str, outbox: SealedOutbox, secrets: Collection[str] = ()
    ) -> None:
        """No row may hold one of `secrets`."""
        self._ledger, self._run, self._secrets = ledger, run, secrets
        self._outbox = outbox

    def shapes(self) -> dict[str, Shape]:
        """The shape of each configuration, by the run's source columns as they are now."""
        source = source_schema(self._ledger.stored_schema(self._run))
        return {name: shape(name, source) for name in CONFIGURATIONS}

    def seal(self) -> bool:
        """Fix one more shard of what waits longest; False if nothing is left that may leave.

        Raises: DestinationRefused if its columns are not those of the shards before; LedgerError.
        """
        conflicts = 0
        while entries := self._outbox.waiting(PROMPTS):
            shapes = self.shapes()
            self._refuse_other_columns(shapes)
            made = next(self._made(entries, shapes))
            number = self._outbox.next_number()
            self._outbox.refuse(made.refused)
            if self._outbox.seal(number, _files(number, made, shapes, SEALED), made.held):
                if any(made.held.values()):
                    return True
            else:
                conflicts += 1
                if conflicts == TRIES:
                    raise LedgerError("shards: what waits changed again and again meanwhile")
        return False

    def unsafe(self, content: bytes) -> bool:
        """Whether a file that was made earlier holds what must not leave, by what is known now."""
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
        return any(why_unsafe(row, secrets=self._secrets) for row in rows)

    def sample(self) -> dict[str, Any] | None:
        """A row of `default` that may leave, for people to see; None if the first few may not."""
        of_default = self.shapes()[DEFAULT]
        for one in islice(self._ledger.pairs(self._run, page=20), 20):
            for row in of_default.rows([one]):
                if why_refused(row, secrets=self._secrets) is None:
                    return row
        return None

    def _refuse_other_columns(self, shapes: Mapping[str, Shape]) -> None:
        for file in self._outbox.files(SEALED, DELIVERED):
            if file.columns != shapes[file.configuration].digest:
                raise DestinationRefused(
                    f"hub: {file.path} has other columns than this run has by now (a source column "
                    "that was empty got a type); accepted: `prefmill compact`, which writes it anew"
                )

    # -- compaction ----------------------------------------------------------------------------

    def compact(self, other: Collection[int] = ()) -> bool:
        """Plan how few new shards replace changed, small and outdated ones; False if none are due.

        So are the `other` ones, whose files in the repository are not the ledger's.

        Nothing is sent; a plan that was made is carried out by the next delivery. Raises:
        LedgerError if pairs keep changing meanwhile.
        """
        for _ in range(TRIES):
            self._outbox.abandon()
            shapes = self.shapes()
            leaving = self._leaving(shapes, other)
            if not leaving:
                return False
            held = self._outbox.held_by(leaving)
            entries = [entry for number in sorted(held) for entry in held[number]]
            places: dict[Entry, tuple[int, int] | None] = dict.fromkeys(entries)
            arriving = set()
            for made in self._made(entries, shapes):
                number = self._outbox.next_number()
                if files := _files(number, made, shapes, ARRIVING):
                    self._outbox.arrive(files)
                    arriving.add(number)
                places |= {e: (number, rows) for e, rows in made.held.items() if rows}
            if self._outbox.plan(leaving, arriving, places):
                return True
        raise LedgerError("shards: the pairs to compact changed again and again meanwhile")

    def _leaving(self, shapes: Mapping[str, Shape], other: Collection[int]) -> set[int]:
        sizes: dict[int, int] = {}
        outdated = set()
        for file in self._outbox.files(DELIVERED):
            sizes[file.number] = max(sizes.get(file.number, 0), file.rows)
            if file.columns != shapes[file.configuration].digest:
                outdated.add(file.number)
        small = {number for number, rows in sizes.items() if rows < SMALL}
        due = self._outbox.changed_shards() | outdated | set(other)
        # One small shard alone is as few as it gets, unless others are written anew anyway.
        return due | small if due or len(small) > 1 else due

    # -- rows ----------------------------------------------------------------------------------

    def _made(self, entries: Sequence[Entry], shapes: Mapping[str, Shape]) -> Iterator[_Shard]:
        """The shards that hold these entries, one after the other; only one is in memory."""
        made = _Shard()
        for start in range(0, len(entries), PAGE):
            for entry, pairs, rows in self._read(entries[start : start + PAGE], shapes):
                self._add(made, entry, pairs, rows)
                if made.full:
                    yield made
                    made = _Shard()
        if made.held or made.refused:
            yield made

    def _read(
        self, entries: Sequence[Entry], shapes: Mapping[str, Shape]
    ) -> Iterator[tuple[Entry, list[Judged], dict[str, Rows]]]:
        """Each entry with its pairs and their rows, by configuration."""
        pairs = self._ledger.pairs_of(self._run, [e.key for e in entries if e.kind == PAIRS])
        human: dict[str, list[Judged]] = defaultdict(list)
        rated = [entry.key for entry in entries if entry.kind == HUMAN]
        for one in self._ledger.human_pairs(self._run, rated) if rated else ():
            human[one.key].append(one)
        for entry in entries:
            made, names = (human, (HUMAN,)) if entry.kind == HUMAN else (pairs, (DEFAULT, FULL))
            found = made.get(entry.key, [])
            yield entry, found, {name: list(shapes[name].rows(found)) for name in names}

    def _add(
        self, made: _Shard, entry: Entry, pairs: Sequence[Judged], rows: Mapping[str, Rows]
    ) -> None:
        refused = self._refusal(pairs, rows)
        if refused is not None:
            made.refused[entry] = f"{refused.reason}: {refused.detail}"
            return
        made.held[entry] = max(map(len, rows.values()))
        made.characters += len(json.dumps(list(rows.values()), ensure_ascii=False))
        for name, some in rows.items():
            made.rows[name] += some

    def _refusal(self, pairs: Sequence[Judged], rows: Mapping[str, Rows]) -> Refusal | None:
        for one in pairs:
            if one.pair.tie:
                row = default_row(one.prompt, one.pair)
                if refused := why_refused(row, secrets=self._secrets, tie=True):
                    return refused
        for name, some in rows.items():
            # A row of `full` is for people and for later questions, no trainer takes it as it is.
            look = why_unsafe if name == FULL else why_refused
            for row in some:
                if refused := look(row, secrets=self._secrets):
                    return refused
        return None


def _files(number: int, made: _Shard, shapes: Mapping[str, Shape], state: str) -> list[File]:
    files = []
    for name in CONFIGURATIONS:
        if not made.rows[name]:
            continue
        content = shapes[name].parquet(made.rows[name])
        digest = hashlib.sha256(content).hexdigest()
        size, rows = len(content), len(made.rows[name])
        columns = shapes[name].digest
        files.append(File(number, name, rows, size, digest, columns, state, content))
    return files
