"""The Hub's outbox: entries sealed into shards, and the compactions that replace shards by others.

A shard's number and rows are fixed in one transaction, before anyone sends it, and its bytes stay
here until it is delivered: what is sent again is the same file, from whichever host. What a shard
holds, and how it is sent, is unknown here. Long because the states of shards and of a compaction
are one matter.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, select, update

from workers.entries import (
    CHANGED,
    DELIVERED,
    IN_A_SHARD,
    SEALED,
    VARIABLES,
    WAITING,
    Entry,
    alter,
    hold,
)
from workers.outbox import Outbox
from workers.rows import CONFIGURATIONS
from workers.tables import outbox, shards

#: Made by a compaction that is not known to be through yet; to go with it; gone.
ARRIVING = "arriving"
LEAVING = "leaving"
GONE = "gone"

#: Columns of a file of which it is not known what it holds: never those of the run.
UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class File:
    """One configuration's file of a shard, as it is or will be in a repository.

    `columns` tells its schema from another one; `content` is there until it is delivered.
    """

    number: int
    configuration: str
    rows: int
    size: int
    sha256: str
    columns: str
    state: str = SEALED
    content: bytes | None = None

    @property
    def path(self) -> str:
        """Where it lies in the repository. Zero-padded: shards sort as texts."""
        return f"data/{self.configuration}/train-{self.number:06d}.parquet"


_NUMBER = "[0-9]{6}|[1-9][0-9]{6}"
_PATH = re.compile(rf"data/({'|'.join(CONFIGURATIONS)})/train-({_NUMBER})\.parquet")


def found_file(path: str, size: int, sha256: str | None) -> File | None:
    """A file of a repository as one of a shard; None if shards have no files of that name."""
    named = _PATH.fullmatch(path)
    if named is None:
        return None
    return File(int(named[2]), named[1], 0, size, sha256 or "", UNKNOWN, GONE)


class SealedOutbox(Outbox):
    """One run's outbox for one repository, with its shards."""

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Connection]],
        insert: Any,
        run: str,
        name: str,
    ) -> None:
        """`name` is the destination's with its place, such as `hub:me/preference-dataset`."""
        super().__init__(transaction, insert, run, name)
        self._shards = and_(shards.c.run == run, shards.c.destination == name)

    def files(self, *states: str, content: bool = False, limit: int | None = None) -> list[File]:
        """The files of shards in these states, by number and configuration.

        With `limit` those of so many shards at most; their content only if it is asked for.
        """
        names = ["number", "configuration", "rows", "size", "sha256", "columns", "state"]
        names += ["content"] if content else []
        query = select(*(shards.c[name] for name in names))
        query = query.where(self._shards, shards.c.state.in_(states))
        if limit is not None:
            first = select(shards.c.number).where(self._shards, shards.c.state.in_(states))
            first = first.distinct().order_by(shards.c.number).limit(limit)
            query = query.where(shards.c.number.in_(first))
        with self._transaction(reading=True) as connection:
            found = connection.execute(query.order_by(shards.c.number, shards.c.configuration))
            return [File(**row) for row in found.mappings()]

    def content(self, file: File) -> bytes:
        """The bytes of a file that is not delivered yet."""
        this = (shards.c.number == file.number, shards.c.configuration == file.configuration)
        with self._transaction(reading=True) as connection:
            found = connection.scalar(select(shards.c.content).where(self._shards, *this))
        return bytes(found or b"")

    def next_number(self) -> int:
        """The number of the next shard; numbers are never used twice."""
        with self._transaction(reading=True) as connection:
            return self._next_number(connection)

    def _next_number(self, connection: Connection) -> int:
        highest = connection.scalar(select(func.max(shards.c.number)).where(self._shards))
        return 0 if highest is None else highest + 1

    def seal(self, number: int, files: Sequence[File], entries: Mapping[Entry, int]) -> bool:
        """Fix a shard: its files, and how many rows it holds of each entry (0: it needs none).

        False if anything changed since it was read; nothing is written then.
        """
        with self._transaction() as connection:
            if self._next_number(connection) != number:
                return False
            if not self._unchanged(connection, entries):
                return False
            by_rows: dict[int, list[int]] = defaultdict(list)
            for entry, rows in entries.items():
                by_rows[rows].append(entry.sequence)
            for rows, sequences in by_rows.items():
                alter(connection, sequences, {"state": SEALED, "shard": number, "rows": rows})
            empty = and_(self._mine, outbox.c.shard == number, outbox.c.rows == 0)
            connection.execute(delete(outbox).where(empty))
            self._insert_files(connection, files)
        return True

    def _unchanged(self, connection: Connection, entries: Iterable[Entry]) -> bool:
        """Whether these entries are as they were read; they are held from now on."""
        expected = {entry.sequence: entry.revision for entry in entries}
        known: dict[int, int] = {}
        ordered = sorted(expected)
        for start in range(0, len(ordered), VARIABLES):
            some = outbox.c.sequence.in_(ordered[start : start + VARIABLES])
            known |= {row.sequence: row.revision for row in hold(connection, some)}
        return known == expected

    def _insert_files(
        self, connection: Connection, files: Sequence[File], *, known: bool = False
    ) -> None:
        """With `known`, those that are entered already stay as they are."""
        if files:
            entries = [
                {
                    "run": self._run,
                    "destination": self.name,
                    "number": file.number,
                    "configuration": file.configuration,
                    "state": file.state,
                    "rows": file.rows,
                    "size": file.size,
                    "sha256": file.sha256,
                    "columns": file.columns,
                    "content": file.content,
                }
                for file in files
            ]
            insert = self._insert(shards)
            connection.execute(insert.on_conflict_do_nothing() if known else insert, entries)

    def shards_delivered(self, numbers: Iterable[int]) -> None:
        """Note that sealed shards are in the repository; their bytes are not kept any longer."""
        some = sorted(set(numbers))
        change = {"state": DELIVERED, "content": None}
        with self._transaction() as connection:
            of = and_(self._shards, shards.c.number.in_(some), shards.c.state == SEALED)
            connection.execute(update(shards).where(of).values(change))
            held = and_(self._mine, outbox.c.shard.in_(some), outbox.c.state == SEALED)
            hold(connection, held)
            arrived = {"state": DELIVERED, "delivered_at": time.time()}
            connection.execute(update(outbox).where(held).values(arrived))

    def missed(self) -> None:
        """Have everything delivered again, in new shards."""
        with self._transaction() as connection:
            self._give_back(connection, outbox.c.state.in_(IN_A_SHARD))
            gone = {"state": GONE, "content": None}
            connection.execute(update(shards).where(self._shards).values(gone))

    def unseal(self, number: int) -> None:
        """Give the entries of a shard back that was never sent and must not be."""
        with self._transaction() as connection:
            self._give_back(connection, outbox.c.shard == number)
            of = and_(self._shards, shards.c.number == number, shards.c.state == SEALED)
            connection.execute(update(shards).where(of).values(state=GONE, content=None))

    # -- compaction ----------------------------------------------------------------------------

    def held_by(self, numbers: Iterable[int]) -> dict[int, list[Entry]]:
        """The entries of delivered shards, by shard, in the order in which they were entered."""
        wanted = (outbox.c[name] for name in ("sequence", "kind", "key", "revision", "rows"))
        query = select(outbox.c.shard, *wanted).where(
            self._mine, outbox.c.shard.in_(sorted(set(numbers)))
        )
        found: dict[int, list[Entry]] = defaultdict(list)
        with self._transaction(reading=True) as connection:
            for row in connection.execute(query.order_by(outbox.c.sequence)):
                found[row.shard].append(Entry(*row[1:]))
        return dict(found)

    def changed_shards(self) -> set[int]:
        """The shards that hold pairs which are no longer the ledger's."""
        changed = and_(self._mine, outbox.c.state == CHANGED)
        query = select(outbox.c.shard).where(changed)  # for DISTINCT SQLite walks the whole outbox
        with self._transaction(reading=True) as connection:
            return set(connection.scalars(query))

    def adopt(self, files: Sequence[File]) -> None:
        """Enter files that are there without the ledger's knowing: their numbers are taken.

        They go with the compaction that their numbers are planned for.
        """
        with self._transaction() as connection:
            self._insert_files(connection, files, known=True)

    def plan(
        self,
        leaving: Iterable[int],
        arriving: Collection[int],
        entries: Mapping[Entry, tuple[int, int] | None],
    ) -> bool:
        """Fix what a compaction makes of the entries of the shards that leave.

        `entries` tells the new shard and the rows there of each; None: it has none any more. The
        files of the `arriving` shards were entered before. False if anything changed since, or if
        someone else forgot them; nothing is written then.
        """
        to: dict[tuple[int | None, int], list[int]] = defaultdict(list)
        for entry, place in entries.items():
            to[place or (None, 0)].append(entry.sequence)
        with self._transaction() as connection:
            come = select(shards.c.number).where(self._shards, shards.c.state == ARRIVING)
            if set(connection.scalars(come.distinct())) != set(arriving):
                return False
            if not self._unchanged(connection, entries):
                return False
            for (number, rows), sequences in to.items():
                change = {
                    "next_shard": number,
                    "next_rows": rows,
                    "next_sealed": outbox.c.revision,
                }
                alter(connection, sequences, change)
            gone = and_(self._shards, shards.c.number.in_(sorted(set(leaving))))
            # Should the plan be cancelled, what never arrived as it was sealed is no shard yet.
            sure = case((shards.c.state == DELIVERED, shards.c.columns), else_=UNKNOWN)
            left = {"state": LEAVING, "columns": sure, "content": None}
            connection.execute(update(shards).where(gone).values(left))
        return True

    def arrive(self, files: Sequence[File]) -> None:
        """Enter files of a compaction that is being planned."""
        with self._transaction() as connection:
            self._insert_files(connection, files)

    def abandon(self) -> None:
        """Forget a compaction that was never planned to its end: nothing of it was sent."""
        with self._transaction() as connection:
            planned = select(func.count()).where(self._shards, shards.c.state == LEAVING)
            if not connection.scalar(planned):
                gone = and_(self._shards, shards.c.state == ARRIVING)
                connection.execute(delete(shards).where(gone))

    def cancel(self) -> None:
        """Forget a planned compaction; nothing is sealed before the next if files were not ours."""
        with self._transaction() as connection:
            planned = and_(self._mine, outbox.c.next_sealed.is_not(None))
            hold(connection, planned)
            cleared = dict.fromkeys(("next_shard", "next_sealed", "next_rows"))
            connection.execute(update(outbox).where(planned).values(cleared))
            for before, after in ((ARRIVING, GONE), (LEAVING, DELIVERED)):
                of = and_(self._shards, shards.c.state == before)
                connection.execute(update(shards).where(of).values(state=after, content=None))

    def compacted(self) -> None:
        """Note that the planned compaction is in the repository."""
        with self._transaction() as connection:
            leaving = select(shards.c.number).where(self._shards, shards.c.state == LEAVING)
            planned = and_(
                self._mine, outbox.c.shard.in_(leaving), outbox.c.next_sealed.is_not(None)
            )
            hold(connection, planned)
            unchanged = outbox.c.revision == outbox.c.next_sealed
            empty = and_(planned, outbox.c.next_rows == 0)
            connection.execute(delete(outbox).where(empty, unchanged))
            cleared = dict.fromkeys(("next_shard", "next_sealed", "next_rows"))
            # It had pairs again by the time its old ones went: it is new to the repository.
            back = {"state": WAITING, "shard": None, "rows": 1}
            connection.execute(update(outbox).where(empty).values(**back, **cleared))
            moved = {
                "shard": outbox.c.next_shard,
                "rows": outbox.c.next_rows,
                "state": case((unchanged, DELIVERED), else_=CHANGED),
                "delivered_at": func.coalesce(outbox.c.delivered_at, time.time()),
            }
            connection.execute(update(outbox).where(planned).values(**moved, **cleared))
            gone = and_(self._shards, shards.c.state == LEAVING)
            connection.execute(update(shards).where(gone).values(state=GONE))
            come = and_(self._shards, shards.c.state == ARRIVING)
            connection.execute(update(shards).where(come).values(state=DELIVERED, content=None))
