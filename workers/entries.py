"""What is to be delivered, entered where it is made: SQL for transactions of the ledger.

An entry is a judged prompt's `record`, its `pairs`, or the `human` pairs that follow from people's
ratings; the sink enters it with the rows themselves. What a destination is, and how it is reached,
is unknown here.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, update

from workers.records import PAIRED, REJECTED, Outcome
from workers.tables import destinations, outbox

RECORD = "record"
PAIRS = "pairs"
HUMAN = "human"

WAITING = "waiting"
SEALED = "sealed"
DELIVERED = "delivered"
#: In a shard that holds other pairs of its prompt than the ledger by now.
CHANGED = "changed"
REFUSED = "refused"
#: Values that one statement names at most; SQLite takes 32,766.
VARIABLES = 10_000

IN_A_SHARD = (SEALED, DELIVERED, CHANGED)


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


def enter(
    connection: Connection,
    insert: Any,
    run: str,
    names: Iterable[str],
    outcomes: Iterable[Outcome],
) -> None:
    """Enter what new outcomes bring for each destination, within the caller's transaction."""
    entries = [
        new_entry(run, name, kind, outcome.key, rows)
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
            new_entry(run, name, kind, key, number)
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
    there, gone = set(), []
    to: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for entry in hold(connection, mine):
        if entry.kind == RECORD:
            to[WAITING, None].append(entry.sequence)
        elif entry.state in IN_A_SHARD:
            to[CHANGED, None].append(entry.sequence)
        elif rows[entry.key]:
            to[WAITING, rows[entry.key]].append(entry.sequence)
        else:
            gone.append(entry.sequence)
            continue
        there.add((entry.destination, entry.key))
    for (state, number), sequences in to.items():
        change: dict[str, Any] = {"state": state, "revision": outbox.c.revision + 1}
        if state == WAITING:
            change |= {"detail": None, "queued_at": time.time()}
        if number is not None:
            change |= {"rows": number}
        alter(connection, sequences, change)
    for start in range(0, len(gone), VARIABLES):
        some = outbox.c.sequence.in_(gone[start : start + VARIABLES])
        connection.execute(delete(outbox).where(some))
    return there


def alter(connection: Connection, sequences: Sequence[int], change: Mapping[str, Any]) -> None:
    """Make one change of many entries, which the transaction holds."""
    for start in range(0, len(sequences), VARIABLES):
        some = outbox.c.sequence.in_(sequences[start : start + VARIABLES])
        connection.execute(update(outbox).where(some).values(dict(change)))


def hold(connection: Connection, chosen: Any) -> Sequence[Any]:
    """The chosen entries, kept from every other transaction until this one ends.

    Always in the order of their sequence: two transactions must not wait for each other.
    """
    names = ("sequence", "destination", "kind", "key", "state", "revision")
    query = select(*(outbox.c[name] for name in names)).where(chosen)
    return connection.execute(query.order_by(outbox.c.sequence).with_for_update()).all()


def new_entry(run: str, name: str, kind: str, key: str, rows: int) -> dict[str, Any]:
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
