"""The outbox: what is still to be delivered where, and the shards that were sealed for the Hub.

All of it is SQL within the ledger. An entry is a judged prompt's `record`, its `pairs`, or the
`human` pairs that follow from people's ratings; the sink enters it in the transaction that makes
the rows. A shard's number and rows are fixed in one transaction, before anyone sends it, and its
bytes stay here until it is delivered: what is sent again is the same file, from whichever host.
What a destination is, and how it is reached, is unknown here.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy import literal as lit

from workers.records import PAIRED, REJECTED, Outcome
from workers.tables import curated, destinations, outbox, pairs, prompts, shards

RECORD = "record"
PAIRS = "pairs"
HUMAN = "human"

WAITING = "waiting"
SEALED = "sealed"
DELIVERED = "delivered"
#: In a shard that holds other pairs of its prompt than the ledger by now.
CHANGED = "changed"
REFUSED = "refused"
#: Of shards: made by a compaction that is not known to be through yet; to go with it; gone.
ARRIVING = "arriving"
LEAVING = "leaving"
GONE = "gone"

#: Values that one statement names at most; SQLite takes 32,766.
VARIABLES = 10_000

#: Entries that one transaction enters when a destination is new.
FILLED_TOGETHER = 2_000

_IN_A_SHARD = (SEALED, DELIVERED, CHANGED)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to deliver: `kind` and prompt's `key`, as of a `revision`."""

    sequence: int
    kind: str
    key: str
    revision: int
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much of a destination's rows or records is where; `oldest` is in epoch seconds.

    `changed` counts prompts whose delivered pairs differ from the ledger's by now.
    """

    waiting: int = 0
    delivered: int = 0
    refused: int = 0
    oldest: float | None = None
    changed: int = 0
    trouble: str | None = None


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


def enter(
    connection: Connection,
    insert: Any,
    run: str,
    names: Iterable[str],
    outcomes: Iterable[Outcome],
) -> None:
    """Enter what new outcomes bring for each destination, within the caller's transaction."""
    entries = [
        _entry(run, name, kind, outcome.key, rows)
        for outcome in outcomes
        for name in names
        for kind, rows in _deliverable(name, outcome)
    ]
    if entries:
        connection.execute(insert(outbox).on_conflict_do_nothing(), entries)


def _deliverable(name: str, outcome: Outcome) -> Iterable[tuple[str, int]]:
    if name.startswith("hub:"):
        return [(PAIRS, len(outcome.pairs))] if outcome.pairs else []
    judged = outcome.judgements and outcome.state in (PAIRED, REJECTED)
    return [(RECORD, 1)] if judged else []


def change(
    connection: Connection,
    insert: Any,
    run: str,
    names: Iterable[str],
    kind: str,
    rows: Mapping[str, int],
) -> None:
    """Enter that these prompts have other pairs now: how many, by key.

    What was not sealed is delivered as it is by then; what was, counts as changed.
    """
    keys = sorted(rows)
    for start in range(0, len(keys), VARIABLES):
        some = {key: rows[key] for key in keys[start : start + VARIABLES]}
        there = _change(connection, run, kind, some)
        entries = [
            _entry(run, name, kind, key, number)
            for name in names
            if name.startswith("hub:")
            for key, number in some.items()
            if number and (name, key) not in there
        ]
        if entries:
            connection.execute(insert(outbox).on_conflict_do_nothing(), entries)


def _change(
    connection: Connection, run: str, kind: str, rows: Mapping[str, int]
) -> set[tuple[str, str]]:
    """Change the entries that are there; returns whose they are, as (destination, key)."""
    # What a record says of its prompt's end changes with its pairs.
    kinds = (kind, RECORD) if kind == PAIRS else (kind,)
    mine = and_(outbox.c.run == run, outbox.c.kind.in_(kinds), outbox.c.key.in_(rows))
    there = set()
    for entry in _hold(connection, mine):
        this = update(outbox).where(outbox.c.sequence == entry.sequence)
        change: dict[str, Any] = {"revision": outbox.c.revision + 1}
        if entry.kind == RECORD:
            change |= {"state": WAITING, "queued_at": time.time()}
        elif entry.state in _IN_A_SHARD:
            change |= {"state": CHANGED}
        elif rows[entry.key]:
            change |= {"state": WAITING, "rows": rows[entry.key], "detail": None}
        else:
            connection.execute(delete(outbox).where(outbox.c.sequence == entry.sequence))
            continue
        connection.execute(this.values(change))
        there.add((entry.destination, entry.key))
    return there


def _hold(connection: Connection, chosen: Any) -> Sequence[Any]:
    """The chosen entries, kept from every other transaction until this one ends.

    Always in the order of their sequence: two transactions must not wait for each other.
    """
    names = ("sequence", "destination", "kind", "key", "state", "revision")
    query = select(*(outbox.c[name] for name in names)).where(chosen)
    return connection.execute(query.order_by(outbox.c.sequence).with_for_update()).all()


def _entry(run: str, name: str, kind: str, key: str, rows: int) -> dict[str, Any]:
    return {
        "run": run,
        "destination": name,
        "kind": kind,
        "key": key,
        "rows": rows,
        "state": WAITING,
        "queued_at": time.time(),
    }


def backlogs(connection: Connection, run: str, names: Mapping[str, str]) -> dict[str, Backlog]:
    """The backlog of each destination, by the short name that `names` gives it."""
    found = {}
    for short, name in names.items():
        mine = and_(outbox.c.run == run, outbox.c.destination == name)
        query = select(outbox.c.state, func.sum(outbox.c.rows)).where(mine)
        rows: dict[str, int] = {
            state: int(number) for state, number in connection.execute(query.group_by("state"))
        }
        trouble = select(destinations.c.trouble).where(
            destinations.c.run == run, destinations.c.destination == name
        )
        changed = select(func.count()).where(mine, outbox.c.state == CHANGED)
        found[short] = Backlog(
            waiting=rows.get(WAITING, 0) + rows.get(SEALED, 0),
            delivered=rows.get(DELIVERED, 0) + rows.get(CHANGED, 0),
            refused=rows.get(REFUSED, 0),
            oldest=_oldest(connection, mine),
            changed=connection.scalar(changed) or 0,
            trouble=connection.scalar(trouble),
        )
    return found


def _oldest(connection: Connection, mine: Any) -> float | None:
    """When the first of what is not delivered was queued."""
    first = [
        connection.scalar(
            select(outbox.c.queued_at)
            .where(mine, outbox.c.state == state)
            .order_by(outbox.c.sequence)
            .limit(1)
        )
        for state in (WAITING, SEALED)
    ]
    return min((at for at in first if at is not None), default=None)


class Outbox:
    """One run's outbox for one destination."""

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Connection]],
        insert: Any,
        run: str,
        name: str,
    ) -> None:
        """`name` is the destination's with its place, such as `hub:me/preference-dataset`."""
        self._transaction, self._insert = transaction, insert
        self._run, self.name = run, name
        self._mine = and_(outbox.c.run == run, outbox.c.destination == name)
        self._shards = and_(shards.c.run == run, shards.c.destination == name)

    # -- entries -------------------------------------------------------------------------------

    def fill(self) -> None:
        """Enter what was made without this destination in the recipe. Raises: LedgerError.

        Read once, beside short transactions that write: nobody has to wait for it.
        """
        for kind, made in self._made().items():
            known = select(lit(1)).where(
                self._mine, outbox.c.kind == kind, outbox.c.key == made.selected_columns.key
            )
            with self._transaction(reading=True) as connection:
                found = connection.execution_options(yield_per=FILLED_TOGETHER).scalars(
                    made.where(~known.exists())
                )
                for keys in found.partitions():
                    entries = [_entry(self._run, self.name, kind, key, 1) for key in keys]
                    with self._transaction() as writing:
                        writing.execute(self._insert(outbox).on_conflict_do_nothing(), entries)

    def _made(self) -> dict[str, Any]:
        """The keys of what there is to deliver, by kind; large columns are read last, if at all."""
        if not self.name.startswith("hub:"):
            judged = or_(prompts.c.state == PAIRED, prompts.c.judgements != "[]")
            ended = and_(prompts.c.run == self._run, prompts.c.state.in_((PAIRED, REJECTED)))
            return {RECORD: select(prompts.c.key).where(ended, judged)}
        first = and_(pairs.c.run == self._run, pairs.c.index == 0)
        rated = and_(curated.c.run == self._run, curated.c.pairs != "[]")
        return {PAIRS: select(pairs.c.key).where(first), HUMAN: select(curated.c.key).where(rated)}

    def waiting(self, limit: int) -> list[Entry]:
        """The entries that wait longest, up to `limit`."""
        wanted = (outbox.c[name] for name in ("sequence", "kind", "key", "revision", "rows"))
        query = select(*wanted).where(self._mine, outbox.c.state == WAITING)
        with self._transaction(reading=True) as connection:
            found = connection.execute(query.order_by(outbox.c.sequence).limit(limit)).all()
        return [Entry(*row) for row in found]

    def delivered(self, entries: Iterable[Entry]) -> None:
        """Note that entries which belong to no shard have arrived as they were read."""
        arrived = update(outbox).where(
            outbox.c.sequence == bindparam("of"), outbox.c.revision == bindparam("as_of")
        )
        sent = [{"of": entry.sequence, "as_of": entry.revision} for entry in entries]
        with self._transaction() as connection:
            if sent:
                change = {"state": DELIVERED, "delivered_at": time.time()}
                connection.execute(arrived.values(change), sent)

    def refuse(self, refused: Mapping[Entry, str]) -> None:
        """Note why entries, as they were read, are not delivered; they are left out from now on."""
        refusing = update(outbox).where(
            outbox.c.sequence == bindparam("of"),
            outbox.c.revision == bindparam("as_of"),
            outbox.c.state == WAITING,
        )
        told = [
            {"of": entry.sequence, "as_of": entry.revision, "detail": why[:2000]}
            for entry, why in sorted(refused.items(), key=lambda item: item[0].sequence)
        ]
        if told:
            with self._transaction() as connection:
                change = {"state": REFUSED, "detail": bindparam("detail")}
                connection.execute(refusing.values(change), told)

    def missed(self) -> None:
        """Have everything delivered again: the place is empty, or another one of that name."""
        with self._transaction() as connection:
            held = and_(self._mine, outbox.c.state.in_(_IN_A_SHARD))
            _hold(connection, held)
            again = {"state": WAITING, "shard": None, "delivered_at": None}
            again |= dict.fromkeys(("next_shard", "next_sealed", "next_rows"))
            connection.execute(update(outbox).where(held).values(again))
            gone = {"state": GONE, "content": None}
            connection.execute(update(shards).where(self._shards).values(gone))

    def unseal(self, number: int) -> None:
        """Give the entries of a shard back that was never sent and must not be."""
        with self._transaction() as connection:
            of = and_(self._shards, shards.c.number == number, shards.c.state == SEALED)
            connection.execute(update(shards).where(of).values(state=GONE, content=None))
            held = and_(self._mine, outbox.c.shard == number)
            _hold(connection, held)
            again = {"state": WAITING, "shard": None, "delivered_at": None}
            connection.execute(update(outbox).where(held).values(again))

    def refusals(self, limit: int = 20) -> list[tuple[str, str]]:
        """(prompt's key, why) of entries that were refused."""
        query = select(outbox.c.key, outbox.c.detail).where(self._mine, outbox.c.state == REFUSED)
        with self._transaction(reading=True) as connection:
            found = connection.execute(query.order_by(outbox.c.sequence).limit(limit)).all()
        return [(row.key, row.detail or "") for row in found]

    def retry_refused(self) -> None:
        """Have what was refused looked at again."""
        again = update(outbox).where(self._mine, outbox.c.state == REFUSED)
        with self._transaction() as connection:
            connection.execute(again.values(state=WAITING, detail=None))

    def pending(self) -> int:
        """Rows or records that are not delivered yet."""
        waiting = outbox.c.state.in_((WAITING, SEALED))
        query = select(func.coalesce(func.sum(outbox.c.rows), 0)).where(self._mine, waiting)
        with self._transaction(reading=True) as connection:
            return int(connection.scalar(query) or 0)

    def backlog(self) -> Backlog:
        """How much is where."""
        with self._transaction(reading=True) as connection:
            return backlogs(connection, self._run, {"this": self.name})["this"]

    def note_trouble(self, trouble: str | None) -> None:
        """Note why nothing is delivered; None: it is."""
        entry = {"run": self._run, "destination": self.name, "trouble": trouble}
        insert = self._insert(destinations).values(**entry, since=time.time())
        updated = insert.on_conflict_do_update(
            index_elements=["run", "destination"],
            set_={"trouble": trouble, "since": insert.excluded.since},
            where=func.coalesce(destinations.c.trouble, "") != (trouble or ""),
        )
        with self._transaction() as connection:
            connection.execute(updated)

    # -- shards --------------------------------------------------------------------------------

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
            sealing = update(outbox).where(outbox.c.sequence == bindparam("of"))
            sealing = sealing.values(state=SEALED, shard=number, rows=bindparam("held"))
            held = [{"of": e.sequence, "held": rows} for e, rows in entries.items() if rows]
            if held:
                connection.execute(sealing, held)
            for entry in (entry for entry, rows in entries.items() if not rows):
                connection.execute(delete(outbox).where(outbox.c.sequence == entry.sequence))
            self._insert_files(connection, files)
        return True

    def _unchanged(self, connection: Connection, entries: Iterable[Entry]) -> bool:
        """Whether these entries are as they were read; they are held from now on."""
        expected = {entry.sequence: entry.revision for entry in entries}
        known: dict[int, int] = {}
        ordered = sorted(expected)
        for start in range(0, len(ordered), VARIABLES):
            some = outbox.c.sequence.in_(ordered[start : start + VARIABLES])
            known |= {row.sequence: row.revision for row in _hold(connection, some)}
        return known == expected

    def _insert_files(self, connection: Connection, files: Sequence[File]) -> None:
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
            connection.execute(self._insert(shards), entries)

    def shards_delivered(self, numbers: Iterable[int]) -> None:
        """Note that sealed shards are in the repository; their bytes are not kept any longer."""
        some = sorted(set(numbers))
        change = {"state": DELIVERED, "content": None}
        with self._transaction() as connection:
            of = and_(self._shards, shards.c.number.in_(some), shards.c.state == SEALED)
            connection.execute(update(shards).where(of).values(change))
            held = and_(self._mine, outbox.c.shard.in_(some), outbox.c.state == SEALED)
            _hold(connection, held)
            arrived = {"state": DELIVERED, "delivered_at": time.time()}
            connection.execute(update(outbox).where(held).values(arrived))

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
        query = select(outbox.c.shard).where(changed).distinct()
        with self._transaction(reading=True) as connection:
            return set(connection.scalars(query))

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
                for start in range(0, len(sequences), VARIABLES):
                    some = outbox.c.sequence.in_(sequences[start : start + VARIABLES])
                    connection.execute(update(outbox).where(some).values(change))
            gone = and_(self._shards, shards.c.number.in_(sorted(set(leaving))))
            connection.execute(update(shards).where(gone).values(state=LEAVING))
        return True

    def arrive(self, files: Sequence[File]) -> None:
        """Enter files of a compaction that is being planned."""
        with self._transaction() as connection:
            self._insert_files(connection, files)

    def abandon(self) -> None:
        """Forget a compaction that was never planned to its end: nothing of it was sent."""
        with self._transaction() as connection:
            if not connection.scalar(self._any(LEAVING)):
                gone = and_(self._shards, shards.c.state == ARRIVING)
                connection.execute(delete(shards).where(gone))

    def cancel(self) -> None:
        """Forget a planned compaction of which nothing was sent."""
        with self._transaction() as connection:
            planned = and_(self._mine, outbox.c.next_sealed.is_not(None))
            _hold(connection, planned)
            cleared = dict.fromkeys(("next_shard", "next_sealed", "next_rows"))
            connection.execute(update(outbox).where(planned).values(cleared))
            for before, after in ((ARRIVING, GONE), (LEAVING, DELIVERED)):
                of = and_(self._shards, shards.c.state == before)
                connection.execute(update(shards).where(of).values(state=after, content=None))

    def _any(self, state: str) -> Any:
        return select(func.count()).where(self._shards, shards.c.state == state)

    def compacted(self) -> None:
        """Note that the planned compaction is in the repository."""
        with self._transaction() as connection:
            leaving = select(shards.c.number).where(self._shards, shards.c.state == LEAVING)
            planned = and_(
                self._mine, outbox.c.shard.in_(leaving), outbox.c.next_sealed.is_not(None)
            )
            _hold(connection, planned)
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
            }
            connection.execute(update(outbox).where(planned).values(**moved, **cleared))
            gone = and_(self._shards, shards.c.state == LEAVING)
            connection.execute(update(shards).where(gone).values(state=GONE))
            come = and_(self._shards, shards.c.state == ARRIVING)
            connection.execute(update(shards).where(come).values(state=DELIVERED, content=None))
