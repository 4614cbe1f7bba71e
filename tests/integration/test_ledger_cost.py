"""What a statement of the ledger costs does not grow with the run: its work at two sizes.

Counted is work, not time: steps of SQLite's virtual machine, rows that PostgreSQL looked at.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text

from tests.bench.ledger_size import BATCH, RUN, build
from workers.ledger import Ledger
from workers.records import Prompt

SMALL, LARGE = 400, 4000
#: Prompts of a page; of failed ones, of which there are few.
PAGE, FEW = 20, 2

Work = Callable[[Ledger, str], object]


def _late(rows: Iterator[Any], after: int, page: int) -> Callable[[], object]:
    """The five pages after so many rows, which are read now."""
    for _ in islice(rows, after):
        pass
    return lambda: list(islice(rows, 5 * page))


STATEMENTS: dict[str, Work] = {
    "start": lambda ledger, batch: ledger.start(RUN, batch, attempt=True),
    "published": lambda ledger, batch: ledger.published(RUN, [batch]),
    "note_error": lambda ledger, batch: ledger.note_error(RUN, batch, "broke"),
    "crashed": lambda ledger, batch: ledger.crashed(RUN, batch, "worker", 0, 3),
    "accept": lambda ledger, _batch: _accept(ledger),
    "accepted_bound": lambda ledger, _batch: ledger.accepted_bound(RUN),
    "retry": lambda ledger, _batch: ledger.retry(RUN, 1),
    "pairs": lambda ledger, _batch: list(islice(ledger.pairs(RUN, page=PAGE), PAGE)),
    "concluded": lambda ledger, _batch: list(islice(ledger.concluded(RUN, page=PAGE), PAGE)),
    "failures": lambda ledger, _batch: next(ledger.failures(RUN, page=PAGE)),
}
LATE_PAGES: dict[str, Callable[[Ledger], Iterator[Any]]] = {
    "pairs": lambda ledger: ledger.pairs(RUN, page=PAGE),
    "concluded": lambda ledger: ledger.concluded(RUN, page=PAGE),
    "failures": lambda ledger: ledger.failures(RUN, page=FEW),
}


_numbers = count()


def _accept(ledger: Ledger) -> str:
    """A fresh batch."""
    new = (Prompt(f"New {number}") for number in islice(_numbers, BATCH))
    prompts = {prompt.key(RUN): prompt for prompt in new}
    place: dict[str, Any] = {"source": "s", "position": {}, "schema": None, "batch_size": BATCH}
    return ledger.accept(RUN, prompts, [], **place)[0]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledgers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Ledger]]:
    """A small and a large ledger of one kind of database."""
    opened = []
    for size in (SMALL, LARGE):
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"
        else:
            url = _database(request.getfixturevalue("postgres_server"), size)
        build(url, size)
        opened.append(Ledger(url))
    yield opened
    for ledger in opened:
        ledger.close()


def _database(server: str, size: int) -> str:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE cost_{size}"))
    engine.dispose()
    # A table of this size is cheap to read whole; a large one is not.
    url = make_url(server).set(database=f"cost_{size}")
    url = url.update_query_dict({"options": "-cenable_seqscan=off"})
    return url.render_as_string(hide_password=False)


@contextmanager
def counted(ledger: Ledger) -> Iterator[list[int]]:
    """Within the block, the work that each statement of this ledger took."""
    engine, work = ledger._engine, [0]
    if engine.dialect.name == "sqlite":

        def step() -> int:
            work[0] += 1
            return 0

        def watch(connection: sqlite3.Connection, *_: Any) -> None:
            connection.set_progress_handler(step, 10)

        event.listen(engine, "checkout", watch)
        try:
            yield work
        finally:
            event.remove(engine, "checkout", watch)
            with engine.connect() as connection:
                connection.connection.driver_connection.set_progress_handler(None, 0)  # type: ignore[union-attr]
        return
    before = _rows_looked_at(ledger)
    yield work
    work[0] = _rows_looked_at(ledger) - before


def _rows_looked_at(ledger: Ledger) -> int:
    """Rows that scans of tables and indexes returned so far, in this whole database."""
    query = (
        "SELECT pg_stat_force_next_flush(), (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) "
        "FROM pg_stat_user_tables) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
    )
    ledger._engine.dispose()  # sessions that end tell what they did
    with ledger._engine.connect() as connection:
        return int(connection.execute(text(query)).one()[1])


def cost(ledger: Ledger, work: Callable[[], object]) -> int:
    """The work of one statement, the second time it is done."""
    work()
    with counted(ledger) as steps:
        work()
    return steps[0]


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_costs_the_same_in_a_large_run(ledgers: list[Ledger], name: str) -> None:
    costs = []
    for ledger in ledgers:
        batches = iter([_accept(ledger), _accept(ledger)])
        costs.append(cost(ledger, lambda: STATEMENTS[name](ledger, next(batches))))  # noqa: B023
    assert costs[0] > 0
    assert costs[1] <= 1.5 * costs[0] + 20, costs


@pytest.mark.parametrize("name", LATE_PAGES)
def test_a_late_page_costs_what_an_early_one_does(ledgers: list[Ledger], name: str) -> None:
    costs = []
    for ledger, size in zip(ledgers, (SMALL, LARGE), strict=True):
        few = name == "failures"
        after, page = (size // 40, FEW) if few else (size // 2, PAGE)
        late_pages = _late(LATE_PAGES[name](ledger), after, page)
        with counted(ledger) as steps:
            late_pages()
        costs.append(steps[0])
    assert costs[1] <= 1.5 * costs[0] + 20, costs
