"""What a statement of the ledger costs at two sizes: it must not grow with the run.

    python -m tests.bench.ledger_size --prompts 3000 --prompts 300000
    python -m tests.bench.ledger_size --prompts 3000 --postgres

Builds ledgers of so many finished prompts (two generations of 1.5 KB, one judgement, a pair for
four in five, 5 % failed), measures CPU-milliseconds (with --postgres also the server's), and prints
each with its ratio to the first size. Nothing is checked.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, insert

from tests.postgres import start_postgres
from workers.ledger import Ledger
from workers.records import (
    FAILED,
    PAIRED,
    REJECTED,
    Generation,
    Judgement,
    Pair,
    Prompt,
    Rating,
    canonical_json,
    generation_to_json,
    judgement_to_json,
)
from workers.tables import pairs, prompts

RUN = "size"
BATCH = 32

#: A statement is repeated so often, or until this many CPU seconds are spent.
REPEATS, SPENT_S = 200, 2.0


def build(url: str, finished: int) -> None:
    """A ledger with so many finished prompts, as a run of batches of 32 would leave it."""
    ledger = Ledger(url)
    ledger.open_run(RUN, "h" * 64, {})
    ledger.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        for start in range(0, finished, 5000):
            numbers = range(start, min(finished, start + 5000))
            connection.execute(insert(prompts), [_prompt(number) for number in numbers])
            rows = [_pair(number) for number in numbers if _state(number) == PAIRED]
            connection.execute(insert(pairs), rows)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum does within minutes
    engine.dispose()


def _key(number: int) -> str:
    return Prompt(f"Task {number}").key(RUN)


def _state(number: int) -> str:
    return FAILED if number % 20 == 0 else REJECTED if number % 20 < 4 else PAIRED


def _text(number: int, which: str) -> str:
    return f"{which} {number:08} " * 136


def _prompt(number: int) -> dict[str, Any]:
    made = [Generation(name, f"m-{name}", text=_text(number, name)) for name in "ab"]
    ratings = (Rating(4.0, "Because it is."), Rating(2.0, "Because it is not."))
    judged = [Judgement("judge", "m-j", "overall-rating", ratings=ratings, order=(0, 1))]
    return {
        "run": RUN,
        "key": _key(number),
        "ordinal": number,
        "input": canonical_json(asdict(Prompt(f"Task {number}", {"topic": "t"}))),
        "state": _state(number),
        "reason": "too_few_generations" if _state(number) == FAILED else None,
        "attempt": 1,
        "begun": True,
        "batch": f"{number // BATCH:032x}",
        "accepted_at": number / 100,
        "published_at": number / 100 + 1,
        "finished_at": number / 100 + 20,
        "generations": json.dumps([generation_to_json(one) for one in made]),
        "judgements": json.dumps([judgement_to_json(one) for one in judged]),
        "recipe_hash": "h" * 64,
    }


def _pair(number: int) -> dict[str, Any]:
    texts = _text(number, "a"), "m-a", 4.0, _text(number, "b"), "m-b", 2.0
    row = canonical_json(asdict(Pair(*texts)))
    return {"run": RUN, "key": _key(number), "index": 0, "row": row, "tie": False}


def measure(url: str, finished: int, server: Callable[[], float]) -> dict[str, float]:
    """CPU-milliseconds of each statement."""
    ledger = Ledger(url)
    known = iter(range(10**9, 2 * 10**9))
    place: dict[str, Any] = {"source": "s", "position": {}, "schema": None, "batch_size": BATCH}

    def accepted(count: int) -> list[str]:
        new = {_key(n): Prompt(f"Task {n}") for n in islice(known, BATCH * count)}
        return ledger.accept(RUN, new, [], **place)

    def cost(works: Iterator[Callable[[], object]]) -> float:
        done, spent = 0, 0.0
        before = time.process_time() + server()
        for work in islice(works, REPEATS):
            work()
            done, spent = done + 1, time.process_time() + server() - before
            if spent > SPENT_S:
                break
        return 1000 * spent / max(done, 1)

    def pages(rows: Iterator[Any], page: int, after: int = 0) -> Iterator[Callable[[], object]]:
        for _ in islice(rows, after // page * page):
            pass
        return (lambda: list(islice(rows, page)) for _ in range(12))

    batches = accepted(REPEATS)
    first_pair = repeat(lambda: next(ledger.pairs(RUN)), 9)
    result = {
        "start, a batch": cost(
            partial(ledger.start, RUN, batch, attempt=True) for batch in batches
        ),
        "published, a batch": cost(partial(ledger.published, RUN, [batch]) for batch in batches),
        "note_error, a batch": cost(
            partial(ledger.note_error, RUN, batch, "e") for batch in batches
        ),
        "pairs, first page": cost(first_pair),
        "pairs, a late page": cost(pages(ledger.pairs(RUN, page=100), 80, finished // 2)),
        "concluded, a late page": cost(pages(ledger.concluded(RUN, page=95), 90, finished // 2)),
        "failures, first page": cost(repeat(lambda: next(ledger.failures(RUN, page=40)), REPEATS)),
        "failures, a late page": cost(pages(ledger.failures(RUN, page=5), 5, finished // 40)),
        "retry of one": cost(repeat(partial(ledger.retry, RUN, 1), 100)),
        "accept, a batch": cost(repeat(partial(accepted, 1), 100)),
    }
    ledger.close()
    return result


def _server_cpu_s(data: Path) -> float:
    """CPU seconds of a PostgreSQL server and of all that it started."""
    server = int((data / "postmaster.pid").read_text().split()[0])
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(entry.name) == server:
                ticks += sum(map(int, fields[11:15]))  # with children that ended
            elif int(fields[1]) == server:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def database(*, on_postgres: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """The URL of an empty database, and the CPU seconds of its server so far."""
    if on_postgres:
        with start_postgres() as (url, data):
            yield url, partial(_server_cpu_s, data)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/ledger.db", lambda: 0.0


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, action="append", required=True)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    columns = []
    for finished in options.prompts:
        with database(on_postgres=options.postgres) as (url, server):
            started = time.monotonic()
            build(url, finished)
            print(f"{finished} prompts built in {time.monotonic() - started:.0f} s", flush=True)
            columns.append(measure(url, finished, server))
    for name in columns[0]:
        figures = "".join(f"{column[name]:>12.2f}" for column in columns)
        ratios = "".join(f"{column[name] / columns[0][name]:>8.2f} x" for column in columns[1:])
        print(f"{name:<24}{figures}{ratios}")


if __name__ == "__main__":
    main()
