"""One destination's outbox: what waits there, what arrived, what was refused and why.

Whoever delivers reads entries as of a revision and notes what became of them as of that revision:
what changed meanwhile waits on. What was made before the destination was in the recipe is entered
here.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update
from sqlalchemy import literal as lit

from workers.entries import (
    DELIVERED,
    HUMAN,
    IN_A_SHARD,
    PAIRS,
    RECORD,
    REFUSED,
    SEALED,
    WAITING,
    Backlog,
    Entry,
    backlogs,
    hold,
    new_entry,
)
from workers.records import PAIRED, REJECTED
from workers.tables import curated, destinations, outbox, pairs, prompts

#: Entries that one transaction enters when a destination is new.
FILLED_TOGETHER = 2_000


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
                    entries = [new_entry(self._run, self.name, kind, key, 1) for key in keys]
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
            self._give_back(connection, outbox.c.state.in_(IN_A_SHARD))

    def _give_back(self, connection: Connection, chosen: Any) -> None:
        """Have these entries wait again, as if nothing of them had ever been sent."""
        held = and_(self._mine, chosen)
        hold(connection, held)
        none = ("shard", "delivered_at", "next_shard", "next_sealed", "next_rows")
        again = {"state": WAITING, **dict.fromkeys(none)}
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
        insert = self._insert(destinations).values(
            run=self._run, destination=self.name, trouble=trouble
        )
        updated = insert.on_conflict_do_update(
            index_elements=["run", "destination"], set_={"trouble": trouble}
        )
        with self._transaction() as connection:
            connection.execute(updated)
