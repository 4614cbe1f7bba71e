"""The ledger: the only memory of a run. Every other store may be wiped at any time.

Each method is one transaction, and running it twice changes nothing the second time. States,
counts and progress are derived from the prompts' rows, never counted beside them; so at every
moment accepted = paired + rejected + failed + in_flight. The module is long because it is all the
SQL of runs, prompts and pairs; that of deliveries is in `outbox` and `sealed`.
"""

import json
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from workers import entries
from workers.alone import alone
from workers.database import first_line, open_database
from workers.entries import Backlog
from workers.errors import ConfigurationError, LedgerError, PrefmillError
from workers.judging import flips
from workers.outbox import Outbox
from workers.records import (
    FAILED,
    IN_FLIGHT,
    PAIRED,
    REJECTED,
    UNPARSABLE,
    Generation,
    Judgement,
    Outcome,
    Pair,
    Prompt,
    Usage,
    canonical_json,
    generation_from_json,
    generation_to_json,
    judgement_from_json,
    judgement_to_json,
    whole_characters,
)
from workers.reply import RULES
from workers.sealed import SealedOutbox
from workers.tables import (
    COLUMN_CHARACTERS,
    POSITION_CHARACTERS,
    calls,
    curated,
    pairs,
    prompts,
    runs,
    shards,
    skipped,
)
from workers.tables import left_out as left_out_values

LOST = "lost"
POISON = "poison"
CALL_COUNTS = ("ok", "retried", "failed", "cached", "input_tokens", "output_tokens")

#: Of a judge: replies that did not keep the contract; pairs of texts that it compared in both
#: orders; those of them where its preference flipped.
JUDGE_COUNTS = ("unparsable", "compared", "flipped")

#: Values that one statement names at most; SQLite takes 32,766.
VARIABLES = 10_000

#: What a prompt's outcome was made from.
_MADE = (prompts.c.generations, prompts.c.judgements)

#: Columns of which left out values are counted one by one; those of all others count together.
MOST_COLUMNS, OTHER_COLUMNS = 200, "(other columns)"

#: A detail is for people; longer ones are cut.
DETAIL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Skip:
    """A row of the source that is no prompt, by its position."""

    position: str
    reason: str
    detail: str


class SchemaChanged(PrefmillError):
    """Another producer changed the run's source columns meanwhile; nothing was accepted."""

    def __init__(self, schema: str | None) -> None:
        super().__init__("the run's source columns changed")
        self.schema = schema


@dataclass(frozen=True, slots=True)
class Counts:
    """What the ledger says about a run; `prefmill status --json` in other words."""

    in_flight: int = 0
    paired: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    #: Values of accepted prompts that did not fit the run's source columns, by column.
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    calls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    #: By model's name `JUDGE_COUNTS`; all 0 for a generator.
    judging: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    #: By destination's short name, of those that were asked about.
    deliveries: Mapping[str, Backlog] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Prompts that have an outcome."""
        return self.paired + sum(self.rejected.values()) + sum(self.failed.values())

    @property
    def accepted(self) -> int:
        """Prompts that were ever accepted."""
        return self.finished + self.in_flight


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with the prompt, generations and judgements that it came from.

    `key` is the prompt's, `recipe_hash` that of the recipe by which it was judged.
    """

    key: str
    prompt: Prompt
    pair: Pair
    generations: tuple[Generation, ...]
    judgements: tuple[Judgement, ...]
    recipe_hash: str
    #: What people said of the prompt, where the pair follows from that.
    people: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Concluded:
    """A prompt that was judged: how it ended, with which pairs, made from what."""

    key: str
    state: str
    reason: str | None
    pairs: tuple[Pair, ...]
    generations: tuple[Generation, ...]
    judgements: tuple[Judgement, ...]
    prompt: Prompt
    #: Whether an earlier version read the replies: see `workers.earlier`.
    earlier: bool = False


@dataclass(frozen=True, slots=True)
class Curated:
    """What people said of a prompt's generations, in JSON, and the pairs that follow from it.

    `place` tells where they said it from other places.
    """

    people: Mapping[str, Any]
    pairs: tuple[Pair, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """The prompts of a batch that still want work, by key."""

    prompts: Mapping[str, Prompt]
    #: Generations that a prompt had when it failed, before someone had it tried again.
    known: Mapping[str, tuple[Generation, ...]]
    #: Judgements that it had then, by the same recipe.
    judged: Mapping[str, tuple[Judgement, ...]]
    #: The most often that work on one of them began.
    attempt: int = 0
    #: Whether a worker died while it worked on one of them.
    suspect: bool = False
    #: Those whose replies an earlier version may have read: see `workers.earlier`.
    earlier: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed prompt. `detail` holds the last error, `finished_at` epoch seconds."""

    key: str
    instruction: str
    reason: str
    detail: str
    attempts: int
    finished_at: float


class Ledger:
    """One database that holds any number of runs."""

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        """Open the database and make its tables. Raises: LedgerError."""
        self._engine = open_database(url, must_exist=must_exist)
        self._insert: Any = postgresql.insert
        self._writing: AbstractContextManager[Any] = nullcontext()
        if self._engine.dialect.name == "sqlite":
            self._insert = sqlite.insert
            # Writers of one process queue here: SQLite's own waiting is by sleeping, and unfair.
            self._writing = threading.Lock()

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def outbox(self, run: str, destination: str) -> Outbox:
        """The outbox of a run for one destination, by its name with its place."""
        return Outbox(self._transaction, self._insert, run, destination)

    def sealed(self, run: str, destination: str) -> SealedOutbox:
        """The same for a repository, with its shards."""
        return SealedOutbox(self._transaction, self._insert, run, destination)

    def alone(self, name: str) -> AbstractContextManager[bool]:
        """Whether this is the only one within such a block, on whichever host; ends with a process.

        Raises: LedgerError.
        """
        return alone(self._engine, name)

    @contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[Connection]:
        options: dict[str, Any] = {"reading": reading}
        if reading and self._engine.dialect.name == "postgresql":
            # What is read together is of one moment, as it always is in SQLite.
            options["isolation_level"] = "REPEATABLE READ"
        try:
            with (
                nullcontext() if reading else self._writing,
                self._engine.connect().execution_options(**options) as connection,
                connection.begin(),
            ):
                yield connection
        except SQLAlchemyError as exc:
            raise LedgerError(f"ledger: {first_line(getattr(exc, 'orig', None) or exc)}") from exc

    # -- a run ---------------------------------------------------------------------------------

    def open_run(
        self, run: str, recipe_hash: str, fingerprint: Any, *, accept_changes: bool = False
    ) -> None:
        """Enter a run, or check that it is still the same recipe.

        With `accept_changes` another recipe takes over: what is in flight is published anew.
        Raises: ConfigurationError, saying what changed and how to go on; LedgerError.
        """
        with self._transaction() as connection:
            entry = {
                "name": run,
                "hash": recipe_hash,
                "fingerprint": _exact(fingerprint),
                "created_at": time.time(),
            }
            connection.execute(self._insert(runs).values(entry).on_conflict_do_nothing())
            query = select(runs).where(runs.c.name == run).with_for_update()
            known = connection.execute(query).one()
            if known.hash != recipe_hash:
                if not accept_changes:
                    raise ConfigurationError(
                        _changed(run, json.loads(known.fingerprint), fingerprint)
                    )
                change = {"hash": recipe_hash, "fingerprint": _exact(fingerprint)}
                connection.execute(update(runs).where(runs.c.name == run).values(change))
                _hold(connection, _waiting(run))
                released = {"batch": None, "published_at": None}
                connection.execute(update(prompts).where(_waiting(run)).values(released))

    def identity(self, run: str) -> str:
        """Tells a run from its namesakes in other ledgers; a copy of the ledger has the same."""
        with self._transaction(reading=True) as connection:
            query = select(runs.c.created_at).where(runs.c.name == run)
            begun = connection.scalar(query)
        return "" if begun is None else f"{begun:.6f}"

    def pause(self, run: str) -> None:
        """Note that nothing is to begin in a run until `resume`."""
        self._set_paused(run, time.time())

    def resume(self, run: str) -> None:
        """Note that a run goes on."""
        self._set_paused(run, None)

    def _set_paused(self, run: str, at: float | None) -> None:
        with self._transaction() as connection:
            connection.execute(update(runs).where(runs.c.name == run).values(paused_at=at))

    def paused(self, run: str) -> bool:
        """Whether someone paused the run."""
        with self._transaction(reading=True) as connection:
            query = select(runs.c.paused_at).where(runs.c.name == run)
            return connection.scalar(query) is not None

    def recipe_hash(self, run: str) -> str | None:
        """The hash of the recipe that a run goes by now; None for an unknown run."""
        with self._transaction(reading=True) as connection:
            return connection.scalar(select(runs.c.hash).where(runs.c.name == run))

    def source_state(self, run: str, source: str) -> tuple[dict[str, Any] | None, str | None]:
        """Where to go on in a source, and the run's source columns as text; None each if new."""
        with self._transaction(reading=True) as connection:
            row = connection.execute(
                select(runs.c.source_position, runs.c.source_schema).where(runs.c.name == run)
            ).one_or_none()
        if row is None:
            return None, None
        return json.loads(row.source_position).get(source), row.source_schema

    def has_shards(self, run: str) -> bool:
        """Whether rows of the run were put into files for the Hub: their columns are fixed."""
        with self._transaction(reading=True) as connection:
            query = select(shards.c.number).where(shards.c.run == run).limit(1)
            return connection.scalar(query) is not None

    def stored_schema(self, run: str) -> str | None:
        """The run's source columns as text; None while nothing was accepted."""
        with self._transaction(reading=True) as connection:
            return connection.scalar(select(runs.c.source_schema).where(runs.c.name == run))

    # -- prompts in ----------------------------------------------------------------------------

    def accept(
        self,
        run: str,
        accepted: Mapping[str, Prompt],
        skips: Iterable[Skip],
        *,
        source: str,
        position: Mapping[str, Any] | None,
        schema: str | None,
        batch_size: int,
        expected_schema: str | None = None,
        left_out: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> list[str]:
        """Enter prompts by key, in batches, with the place in the source that they end at.

        Prompts that the run already has are left alone. `schema` are the run's source columns from
        now on, if they still are the `expected_schema`; `left_out` names columns by prompt whose
        values did not fit. Returns the ids of the new batches, which are not published yet.
        Raises: SchemaChanged.
        """
        now, ids = time.time(), [uuid.uuid4().hex for _ in range(-(-len(accepted) // batch_size))]
        entries: list[dict[str, Any]] = [
            {
                "run": run,
                "key": key,
                "input": _exact(asdict(prompt)),
                "state": IN_FLIGHT,
                "attempt": 0,
                "begun": False,
                "replies": RULES,
                "batch": ids[number // batch_size],
                "accepted_at": now,
            }
            for number, (key, prompt) in enumerate(accepted.items())
        ]
        places = {key: place for place, key in enumerate(accepted)}
        entries.sort(key=lambda entry: str(entry["key"]))
        insert = self._insert(prompts).on_conflict_do_nothing()
        insert = insert.returning(prompts.c.batch, prompts.c.key)
        with self._transaction() as connection:
            first = _next_ordinal(connection, run)
            for entry in entries:
                entry["ordinal"] = first + places[str(entry["key"])]
            new = connection.execute(insert, entries).all() if entries else []
            self._note_skips(connection, run, skips)
            self._note_left_out(connection, run, [left_out.get(row.key, ()) for row in new])
            _note_position(connection, run, source, position, schema, expected_schema)
        published = {row.batch for row in new}
        return [batch for batch in ids if batch in published]

    def _note_left_out(
        self, connection: Connection, run: str, columns: Iterable[Sequence[str]]
    ) -> None:
        counts = Counter(_text(name)[:COLUMN_CHARACTERS] for names in columns for name in names)
        if not counts:
            return
        query = select(left_out_values.c.column).where(left_out_values.c.run == run)
        known = set(connection.scalars(query))
        for name in sorted(counts.keys() - known)[max(0, MOST_COLUMNS - len(known)) :]:
            counts[OTHER_COLUMNS] += counts.pop(name)
        for name, number in sorted(counts.items()):
            entry = {"run": run, "column": name, "values": number}
            insert = self._insert(left_out_values).values(entry)
            grown = {"values": left_out_values.c["values"] + insert.excluded["values"]}
            connection.execute(
                insert.on_conflict_do_update(index_elements=["run", "column"], set_=grown)
            )

    def _note_skips(self, connection: Connection, run: str, skips: Iterable[Skip]) -> None:
        entries = [
            {
                "run": run,
                "position": _text(skip.position)[-POSITION_CHARACTERS:],
                "reason": skip.reason,
                "detail": _detail(skip.detail),
            }
            for skip in sorted(skips, key=lambda skip: skip.position)
        ]
        if entries:
            connection.execute(self._insert(skipped).on_conflict_do_nothing(), entries)

    def published(self, run: str, batches: Sequence[str]) -> None:
        """Note that the batches' messages are with the broker."""
        mine = and_(prompts.c.run == run, prompts.c.batch.in_(batches))
        with self._transaction() as connection:
            _hold(connection, mine)
            connection.execute(update(prompts).where(mine).values(published_at=time.time()))

    def rebatch_unpublished(self, run: str, batch_size: int) -> list[str]:
        """Put prompts whose message may never have left into fresh batches."""
        with self._transaction(reading=True) as connection:
            query = select(prompts.c.key).where(_waiting(run), prompts.c.published_at.is_(None))
            keys = list(connection.scalars(query))
        return self.rebatch(run, batch_size, keys) if keys else []

    def rebatch(
        self, run: str, batch_size: int, keys: Sequence[str] | None = None, *, lost: bool = True
    ) -> list[str]:
        """Put prompts in flight (these, or all) into fresh batches; returns the batches' ids.

        Every older message of theirs is stale from now on. Without `lost` what had begun begins
        again at the same attempt: a person who starts a run anew uses none up.
        """
        ids = []
        with self._transaction() as connection:
            held = (
                _hold(connection, _waiting(run))
                if keys is None
                else _hold_keys(connection, run, keys)
            )
            waiting = [row.key for row in sorted(held, key=lambda row: row.accepted_at)]
            for start in range(0, 0 if lost else len(waiting), VARIABLES):
                these = _these(run, waiting[start : start + VARIABLES])
                connection.execute(
                    update(prompts)
                    .where(these, prompts.c.begun.is_(True))
                    .values(attempt=prompts.c.attempt - 1)
                )
            for start in range(0, len(waiting), batch_size):
                ids.append(_renew(connection, run, waiting[start : start + batch_size]))
        return ids

    # -- work ----------------------------------------------------------------------------------

    def start(self, run: str, batch: str, recipe_hash: str = "", *, attempt: bool = False) -> Work:
        """The prompts of a batch that still want work; none if the batch is stale.

        `recipe_hash` is that of the recipe by which they are worked on. With `attempt` this is
        where work begins: it counts once for each publication.
        """
        mine = _in_batch(run, batch)
        names = ("key", "input", "begun", "attempt", "dead_worker", "recipe_hash", "replies")
        query = select(*(prompts.c[name] for name in (*names, "state")), *_MADE).where(mine)
        with self._transaction(reading=True) as connection:
            rows = connection.execute(query).all()
        found = sorted((row for row in rows if row.state == IN_FLIGHT), key=lambda row: row.key)
        fresh = {row.key for row in found if attempt and not row.begun}
        if fresh:
            # Only the first of the models writes: writers queue for an SQLite file.
            started = {"begun": True, "attempt": prompts.c.attempt + 1}
            with self._transaction() as connection:
                held = _hold_batch(connection, run, batch)
                waiting = _these(run, [row.key for row in held])
                connection.execute(
                    update(prompts).where(waiting, prompts.c.begun.is_(False)).values(started)
                )
        return Work(
            prompts={row.key: _prompt(row.input) for row in found},
            known={row.key: _generations(row.generations) for row in found if row.generations},
            judged={
                row.key: _judgements(row.judgements)
                for row in found
                if row.judgements and row.recipe_hash == recipe_hash
            },
            attempt=max((row.attempt + (row.key in fresh) for row in found), default=0),
            suspect=any(row.dead_worker is not None for row in found),
            earlier=frozenset(row.key for row in found if row.replies != RULES),
        )

    def crashed(
        self, run: str, batch: str, worker: str, attempt: int, max_attempts: int
    ) -> list[str]:
        """Account for a process that died at a batch's `attempt`-th time, once for all its steps.

        If that was the last, its prompts fail as poison. If the next is the last, each goes on by
        itself, so that the one that kills is told from its neighbours: returns the ids of these
        fresh batches, which are not published yet. Otherwise the batch goes on as it is.
        """
        with self._transaction() as connection:
            held = _hold_batch(connection, run, batch)
            if max((row.attempt for row in held), default=0) != attempt:
                return []  # another step of this batch, or an earlier delivery, told already
            told = f"{max_attempts} workers died while they worked on it"
            poisoned = [row for row in held if row.attempt >= max_attempts]
            _fail(connection, run, poisoned, POISON, told)
            left = [row.key for row in held if row.attempt < max_attempts]
            suspects = update(prompts).where(_these(run, left))
            connection.execute(suspects.values(dead_worker=worker))
            if attempt + 1 >= max_attempts and len(left) > 1:
                return [_renew(connection, run, [key]) for key in left]
            connection.execute(suspects.values(attempt=prompts.c.attempt + 1))
        return []

    def note_error(self, run: str, batch: str, error: str) -> None:
        """Keep what went wrong with a batch, for the day its prompts fail."""
        noted = {"detail": _detail(" ".join(error.split())) or None}
        with self._transaction() as connection:
            held = _hold_batch(connection, run, batch)
            waiting = _these(run, [row.key for row in held])
            connection.execute(update(prompts).where(waiting).values(noted))

    def commit(
        self, run: str, batch: str, outcomes: Sequence[Outcome], destinations: Iterable[str] = ()
    ) -> int:
        """Enter outcomes, their pairs, what their calls cost and what is to be delivered.

        Returns how many were new. `destinations` are names with their places.

        A prompt that has an outcome keeps it, and so does one that was published again since: its
        newer batch decides.
        """
        first: dict[str, Outcome] = {}
        for outcome in outcomes:
            first.setdefault(outcome.key, outcome)
        with self._transaction() as connection:
            held = _hold_keys(connection, run, list(first))
            known = {row.key: row for row in held if row.batch == batch}
            new = [outcome for key, outcome in first.items() if key in known]
            if new:
                _finish(connection, run, new)
                self._enter_pairs(connection, run, new)
                entries.enter(connection, self._insert, run, destinations, new)
                uncounted = (_uncounted(outcome, known[outcome.key]) for outcome in new)
                self._enter_calls(connection, run, uncounted)
        return len(new)

    def _enter_pairs(self, connection: Connection, run: str, outcomes: Iterable[Outcome]) -> None:
        entries = [
            {
                "run": run,
                "key": outcome.key,
                "index": index,
                "row": _json(asdict(pair)),
                "tie": pair.tie,
            }
            for outcome in outcomes
            for index, pair in enumerate(outcome.pairs)
        ]
        if entries:
            connection.execute(self._insert(pairs).on_conflict_do_nothing(), entries)

    def _enter_calls(self, connection: Connection, run: str, outcomes: Iterable[Outcome]) -> None:
        for name, counts in sorted(sum_calls(outcomes).items()):
            insert = self._insert(calls).values({"run": run, "name": name, **counts})
            grown = {count: calls.c[count] + insert.excluded[count] for count in counts}
            connection.execute(
                insert.on_conflict_do_update(index_elements=["run", "name"], set_=grown)
            )

    # -- looking after what is in flight -------------------------------------------------------

    def overdue(self, run: str, before: float) -> dict[str, list[str]]:
        """Keys in flight by batch, of batches published (or accepted) before that time."""
        since = func.coalesce(prompts.c.published_at, prompts.c.accepted_at)
        query = select(prompts.c.key, prompts.c.batch).where(_waiting(run), since < before)
        found: dict[str, list[str]] = defaultdict(list)
        with self._transaction(reading=True) as connection:
            for row in connection.execute(query.order_by(prompts.c.accepted_at)):
                found[row.batch or ""].append(row.key)
        return dict(found)

    def give_up(self, run: str, keys: Sequence[str], max_attempts: int) -> int:
        """Fail those prompts in flight whose work began `max_attempts` times; returns how many."""
        told = f"work began {max_attempts} times and never arrived at the sink"
        with self._transaction() as connection:
            held = _hold_keys(connection, run, keys)
            tired = [row for row in held if row.attempt >= max_attempts]
            _fail(connection, run, tired, LOST, told)
        return len(tired)

    def retry(self, run: str, limit: int) -> list[str]:
        """Put up to `limit` failed prompts, oldest first, back in flight; returns their keys.

        They begin anew, but for the generations and judgements they had.
        """
        cleared = ("reason", "detail", "finished_at", "batch", "published_at", "dead_worker")
        change: dict[str, Any] = dict.fromkeys(cleared)
        change |= {"state": IN_FLIGHT, "attempt": 0, "begun": False}
        with self._transaction() as connection:
            query = select(prompts.c.key).where(_failed(run))
            query = query.order_by(prompts.c.finished_at, prompts.c.key).limit(max(0, limit))
            keys = list(connection.scalars(query.with_for_update(skip_locked=True)))
            for start in range(0, len(keys), VARIABLES):
                these = _these(run, keys[start : start + VARIABLES])
                connection.execute(update(prompts).where(these).values(change))
        return keys

    # -- pairs under another policy ------------------------------------------------------------

    def concluded(self, run: str, *, page: int = 200) -> Iterator[Concluded]:
        """Every paired or rejected prompt of a run, in the order of acceptance, page by page."""
        names = ("key", "input", "state", "reason", "replies", "generations", "judgements")
        for rows in self._judged_pages(run, names, page):
            with self._transaction(reading=True) as connection:
                by_key = _pairs_of(connection, run, [row.key for row in rows])
            for row in rows:
                yield _concluded(row, by_key[row.key])

    def replace_pairs(
        self, run: str, outcomes: Sequence[Outcome], destinations: Iterable[str] = ()
    ) -> None:
        """Give paired and rejected prompts these ends and pairs instead of those they have.

        What they were made from is replaced too: replies that an earlier version read may be read
        otherwise now, and too few of them be left. Pairs that were delivered count as changed from
        then on, others are delivered as they are.
        """
        ended = (PAIRED, REJECTED)
        of = {outcome.key: outcome for outcome in outcomes}
        with self._transaction() as connection:
            held = _hold(connection, _these(run, sorted(of)))
            new = [of[row.key] for row in held if row.state in ended]
            for outcome in new:
                change = {
                    "state": outcome.state,
                    "reason": outcome.reason,
                    "detail": _detail(outcome.detail) or None,
                    **_made_from(outcome),
                }
                mine = and_(pairs.c.run == run, pairs.c.key == outcome.key)
                connection.execute(update(prompts).where(_is(run, outcome.key)).values(change))
                connection.execute(delete(pairs).where(mine))
            self._enter_pairs(connection, run, new)
            numbers = {outcome.key: len(outcome.pairs) for outcome in new}
            entries.change(connection, self._insert, run, destinations, entries.PAIRS, numbers)

    def pair_policy(self, run: str) -> str | None:
        """The pair policy that a run's pairs were made by, as it was noted; None if none was."""
        with self._transaction(reading=True) as connection:
            return connection.scalar(select(runs.c.pairs).where(runs.c.name == run))

    def note_pair_policy(self, run: str, policy: str) -> None:
        """Note the pair policy that a run's pairs are made by."""
        with self._transaction() as connection:
            connection.execute(update(runs).where(runs.c.name == run).values(pairs=policy))

    # -- what people said ----------------------------------------------------------------------

    def judged_prompts(self, run: str, keys: Sequence[str]) -> dict[str, Concluded]:
        """Those of these prompts that were paired or rejected, by key."""
        found: dict[str, Concluded] = {}
        for start in range(0, len(keys), VARIABLES):
            some = keys[start : start + VARIABLES]
            names = ("key", "input", "state", "reason", "replies")
            query = select(*(prompts.c[name] for name in names), *_MADE)
            query = query.where(_these(run, some), prompts.c.state.in_((PAIRED, REJECTED)))
            with self._transaction(reading=True) as connection:
                rows = connection.execute(query).all()
                made = _pairs_of(connection, run, [row.key for row in rows])
            found |= {row.key: _concluded(row, made[row.key]) for row in rows}
        return found

    def people(self, run: str) -> dict[str, Curated]:
        """What people said of each prompt that they rated, by key, with the pairs that follow."""
        query = select(curated).where(curated.c.run == run).order_by(curated.c.key)
        with self._transaction(reading=True) as connection:
            rows = connection.execute(query).all()
        return {row.key: _curated(row) for row in rows}

    def rated(self, run: str) -> int:
        """How many prompts people rated."""
        with self._transaction(reading=True) as connection:
            query = select(func.count()).select_from(curated).where(curated.c.run == run)
            return connection.scalar(query) or 0

    def curate(
        self,
        run: str,
        rated: Mapping[str, Curated],
        destinations: Iterable[str] = (),
        *,
        place: str | None = None,
    ) -> int:
        """Take what people say by now of some prompts; returns how many of them changed.

        What was said at this `place` of prompts that are not named any more was taken back there.
        """
        now = time.time()
        with self._transaction() as connection:
            connection.execute(select(runs.c.name).where(runs.c.name == run).with_for_update())
            query = select(curated).where(curated.c.run == run).order_by(curated.c.key)
            known = {row.key: _curated(row) for row in connection.execute(query)}
            changed = {key: one for key, one in rated.items() if known.get(key) != one}
            gone = {key for key, one in known.items() if key not in rated and one.place == place}
            for key in sorted({*changed, *gone}):
                mine = and_(curated.c.run == run, curated.c.key == key)
                connection.execute(delete(curated).where(mine))
            said = [
                {
                    "run": run,
                    "key": key,
                    "people": _json(one.people),
                    "pairs": _json([asdict(pair) for pair in one.pairs]),
                    "place": one.place,
                    "pulled_at": now,
                }
                for key, one in sorted(changed.items())
            ]
            if said:
                connection.execute(self._insert(curated), said)
            numbers = {key: len(one.pairs) for key, one in changed.items()}
            numbers |= dict.fromkeys(gone, 0)
            entries.change(connection, self._insert, run, destinations, entries.HUMAN, numbers)
        return len(numbers)

    # -- what people ask -----------------------------------------------------------------------

    def in_flight(self, run: str) -> int:
        """How many prompts are in flight."""
        with self._transaction(reading=True) as connection:
            return connection.scalar(select(func.count()).where(_waiting(run))) or 0

    def in_flight_since(self, run: str) -> float | None:
        """When the oldest prompt in flight was accepted, in epoch seconds; None if none is."""
        with self._transaction(reading=True) as connection:
            query = select(func.min(prompts.c.accepted_at)).where(_waiting(run))
            since: float | None = connection.scalar(query)
            return since

    def accepted(self, run: str) -> int:
        """How many prompts the run ever accepted."""
        with self._transaction(reading=True) as connection:
            return connection.scalar(select(func.count()).where(prompts.c.run == run)) or 0

    def accepted_bound(self, run: str) -> int:
        """At least as many prompts as the run ever accepted, without counting them.

        Their places in the run's order count prompts with gaps.
        """
        with self._transaction(reading=True) as connection:
            return _next_place(connection, run)

    def counts(self, run: str, destinations: Mapping[str, str] | None = None) -> Counts:
        """All counts of a run, of one moment; of deliveries by the short names of destinations."""
        by_state = select(prompts.c.state, prompts.c.reason, func.count()).where(
            prompts.c.run == run
        )
        by_skip = select(skipped.c.reason, func.count()).where(skipped.c.run == run)
        with self._transaction(reading=True) as connection:
            states = connection.execute(by_state.group_by(prompts.c.state, prompts.c.reason)).all()
            skips = connection.execute(by_skip.group_by(skipped.c.reason)).all()
            untied = and_(pairs.c.run == run, pairs.c.tie.is_(False))
            rows = connection.scalar(select(func.count()).where(untied)) or 0
            spent = connection.execute(select(calls).where(calls.c.run == run)).mappings().all()
            deliveries = entries.backlogs(connection, run, destinations or {})
            of_run = left_out_values.c.run == run
            values = connection.execute(select(left_out_values).where(of_run)).mappings().all()
        reasons: dict[str, dict[str, int]] = defaultdict(dict)
        for state, reason, number in states:
            reasons[state][reason or ""] = number
        return Counts(
            in_flight=sum(reasons[IN_FLIGHT].values()),
            paired=sum(reasons[PAIRED].values()),
            rejected=reasons[REJECTED],
            failed=reasons[FAILED],
            skipped=dict(skips),
            left_out={row["column"]: row["values"] for row in values},
            rows=rows,
            calls={row["name"]: {count: row[count] for count in CALL_COUNTS} for row in spent},
            judging={row["name"]: {count: row[count] for count in JUDGE_COUNTS} for row in spent},
            deliveries=deliveries,
        )

    def failures(self, run: str, *, page: int = 500) -> Iterator[Failure]:
        """Every failed prompt of a run, oldest first, read page by page."""
        wanted = ("key", "input", "reason", "detail", "attempt", "finished_at")
        query = select(*(prompts.c[name] for name in wanted))
        place = (prompts.c.finished_at, prompts.c.key)
        query = query.where(_failed(run)).order_by(*place).limit(page)
        after: Any = None
        while True:
            rest = query
            if after is not None:
                rest = query.where(tuple_(*place) > (after.finished_at, after.key))
            with self._transaction(reading=True) as connection:
                found = connection.execute(rest).all()
            for row in found:
                text = _prompt(row.input).instruction
                more = (row.reason or "", row.detail or "", row.attempt, row.finished_at or 0.0)
                yield Failure(row.key, text, *more)
            if len(found) < page:
                return
            after = found[-1]

    def pairs(self, run: str, *, page: int = 500) -> Iterator[Judged]:
        """Every pair of a run, kept ties among them, in the order of their prompts' acceptance.

        That order does not depend on which worker was faster. Read page by page, of prompts.
        """
        for rows in self._judged_pages(run, ("key",), page):
            keys = [row.key for row in rows]
            by_key = self.pairs_of(run, keys)
            for key in keys:
                yield from by_key.get(key, ())

    def _judged_pages(self, run: str, names: Sequence[str], page: int) -> Iterator[list[Any]]:
        """Columns of the paired and rejected prompts of a run, in the order of acceptance.

        The state is looked at here: asked for it, a database may sort the whole run for each page.
        """
        place = (prompts.c.ordinal, prompts.c.key)
        columns = (prompts.c[name] for name in dict.fromkeys((*names, "ordinal", "key", "state")))
        query = select(*columns).where(prompts.c.run == run).order_by(*place).limit(page)
        after: Any = None
        while True:
            rest = query
            if after is not None:
                rest = query.where(tuple_(*place) > (after.ordinal, after.key))
            with self._transaction(reading=True) as connection:
                rows = connection.execute(rest).all()
            yield [row for row in rows if row.state in (PAIRED, REJECTED)]
            if len(rows) < page:
                return
            after = rows[-1]

    def pairs_of(self, run: str, keys: Sequence[str]) -> dict[str, list[Judged]]:
        """The pairs of some prompts, by key, each prompt's in their order.

        Two statements of one table each: a join may be planned over the whole run.
        """
        by_key: dict[str, list[Judged]] = {}
        names = ("key", "input", "recipe_hash")
        for start in range(0, len(keys), VARIABLES):
            some = keys[start : start + VARIABLES]
            with self._transaction(reading=True) as connection:
                made = _pairs_of(connection, run, some)
                query = select(*(prompts.c[name] for name in names), *_MADE)
                rows = connection.execute(query.where(_these(run, list(made)))).all()
            for row in rows:
                first, *others = made[row.key]
                judged = _prompt_of(row, first)
                by_key[row.key] = [judged, *(replace(judged, pair=pair) for pair in others)]
        return by_key

    def human_pairs(
        self, run: str, keys: Sequence[str] | None = None, *, page: int = 500
    ) -> Iterator[Judged]:
        """The pairs that follow from people's ratings, of some prompts or of all, in their order.

        Read page by page. Each brings what people said of its prompt.
        """
        of = and_(curated.c.run == prompts.c.run, curated.c.key == prompts.c.key)
        names = ("key", "ordinal", "input", "recipe_hash")
        query = select(*(prompts.c[name] for name in names), *_MADE, curated.c.people)
        query = (
            query.add_columns(curated.c.pairs, curated.c.place)
            .join(curated, of)
            .where(prompts.c.run == run)
        )
        query = query.order_by(prompts.c.ordinal, prompts.c.key)
        if keys is not None:
            query = query.where(curated.c.key.in_(keys))
        after: Any = None
        while True:
            rest = query
            if after is not None:
                rest = query.where(
                    tuple_(prompts.c.ordinal, prompts.c.key) > (after.ordinal, after.key)
                )
            with self._transaction(reading=True) as connection:
                found = connection.execute(rest.limit(page)).all()
            for row in found:
                one = _curated(row)
                for pair in one.pairs:
                    yield replace(_prompt_of(row, pair), people=one.people)
            if len(found) < page:
                return
            after = found[-1]


def sum_calls(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """What the calls behind some outcomes cost, by generator's or judge's name.

    `ok` counts calls with a usable answer, `failed` those without, replies that did not keep the
    judge's contract among them; `cached` are the answers among them that were found in the cache
    when they were needed (paid once and counted once), `retried` the attempts after the first.
    `JUDGE_COUNTS` beside them.
    """
    names = (*CALL_COUNTS, *JUDGE_COUNTS)
    total: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(names, 0))
    for outcome in outcomes:
        for generation in outcome.generations:
            counts = total[generation.generator]
            counts["ok" if generation.usable else "failed"] += 1
            _add(counts, generation.usage)
        for judgement in outcome.judgements:
            counts = total[judgement.judge]
            counts["ok"] += judgement.reason is None
            counts["failed"] += judgement.reason not in (None, UNPARSABLE)
            counts["failed"] += judgement.unparsable
            counts["unparsable"] += judgement.unparsable
            _add(counts, judgement.usage)
        for judge, (flipped, compared) in flips(outcome.judgements).items():
            total[judge]["flipped"] += flipped
            total[judge]["compared"] += compared
    return dict(total)


def _add(counts: dict[str, int], usage: Usage) -> None:
    counts["retried"] += usage.retries
    counts["cached"] += usage.cached
    counts["input_tokens"] += usage.input_tokens
    counts["output_tokens"] += usage.output_tokens


def _failed(run: str) -> Any:
    """The failed prompts of a run, said so that the index of failed prompts serves them."""
    return and_(prompts.c.run == run, prompts.c.state == literal_column(f"'{FAILED}'"))


def _pairs_of(connection: Connection, run: str, keys: Sequence[str]) -> dict[str, list[Pair]]:
    """The pairs of these prompts, by key, in their order."""
    found: dict[str, list[Pair]] = defaultdict(list)
    mine = and_(pairs.c.run == run, pairs.c.key.in_(keys))
    query = select(pairs.c.key, pairs.c.row).where(mine).order_by(pairs.c.key, pairs.c.index)
    for row in connection.execute(query):
        found[row.key].append(Pair(**json.loads(row.row)))
    return found


def _concluded(row: Any, made: Iterable[Pair]) -> Concluded:
    return Concluded(
        row.key,
        row.state,
        row.reason,
        tuple(made),
        _generations(row.generations),
        _judgements(row.judgements),
        _prompt(row.input),
        earlier=row.replies != RULES,
    )


def _curated(row: Any) -> Curated:
    made = tuple(Pair(**pair) for pair in json.loads(row.pairs))
    return Curated(json.loads(row.people), made, row.place)


def _is(run: str, key: str) -> Any:
    return and_(prompts.c.run == run, prompts.c.key == key)


def _in_batch(run: str, batch: str) -> Any:
    """The prompts of a batch, whatever became of them.

    Asked without the state, by which SQLite would walk all that is in flight.
    """
    return and_(prompts.c.run == run, prompts.c.batch == batch)


def _these(run: str, keys: Sequence[str]) -> Any:
    return and_(prompts.c.run == run, prompts.c.key.in_(keys))


def _hold(connection: Connection, chosen: Any) -> Sequence[Any]:
    """The chosen prompts, kept from every other transaction until this one ends; in any order.

    PostgreSQL locks them in the order of their keys: two transactions must not wait for each other.
    In SQLite a writer is alone, and asked for that order it would walk the whole run to avoid a
    sort.
    """
    wanted = ("key", "state", "batch", "attempt", "detail", "accepted_at")
    query = select(*(prompts.c[name] for name in wanted), *_MADE).where(chosen)
    if connection.dialect.name == "postgresql":
        query = query.order_by(prompts.c.key).with_for_update()
    return connection.execute(query).all()


def _hold_batch(connection: Connection, run: str, batch: str) -> list[Any]:
    """The prompts of a batch that are in flight, held, in the order of their keys."""
    held = _hold(connection, _in_batch(run, batch))
    return sorted((row for row in held if row.state == IN_FLIGHT), key=lambda row: row.key)


def _hold_keys(connection: Connection, run: str, keys: Iterable[str]) -> list[Any]:
    """Those of these prompts that are in flight, held."""
    held: list[Any] = []
    ordered = sorted(set(keys))
    for start in range(0, len(ordered), VARIABLES):
        # Asked without the state, which would make SQLite walk all that is in flight.
        held += _hold(connection, _these(run, ordered[start : start + VARIABLES]))
    return [row for row in held if row.state == IN_FLIGHT]


def _renew(connection: Connection, run: str, keys: Sequence[str]) -> str:
    """Put prompts, which the transaction holds, into a fresh batch; returns its id."""
    batch = uuid.uuid4().hex
    # Nothing that was answered before is left but what the row itself holds.
    unanswered = prompts.c.generations.is_(None)
    rules = case((unanswered, RULES), else_=prompts.c.replies)
    change = {"batch": batch, "begun": False, "published_at": None, "replies": rules}
    connection.execute(update(prompts).where(_these(run, keys)).values(change))
    return batch


def _fail(connection: Connection, run: str, held: Iterable[Any], reason: str, told: str) -> None:
    """Fail prompts, which the transaction holds, with the error that was noted of them."""
    for row in held:
        said = f"{told}; last error: {row.detail}" if row.detail else told
        change = {"state": FAILED, "reason": reason, "finished_at": time.time()}
        connection.execute(
            update(prompts).where(_is(run, row.key)).values(**change, detail=_detail(said))
        )


def _detail(text: str) -> str:
    return _text(text)[:DETAIL_CHARACTERS]


def _generations(text: str | None) -> tuple[Generation, ...]:
    return tuple(generation_from_json(data) for data in json.loads(text or "[]"))


def _judgements(text: str | None) -> tuple[Judgement, ...]:
    return tuple(judgement_from_json(data) for data in json.loads(text or "[]"))


def _waiting(run: str) -> Any:
    return and_(prompts.c.run == run, prompts.c.state == IN_FLIGHT)


def _text(text: str) -> str:
    """A text as a database takes it: endpoints may send halves of characters, and NUL."""
    return whole_characters(text.replace("\0", ""))


def _json(value: object) -> str:
    """JSON of what an endpoint sent, with no halves of characters."""
    return whole_characters(canonical_json(value))


def _exact(value: object) -> str:
    """JSON that gives back the very same value, halves of characters too."""
    text = canonical_json(value)
    return text if whole_characters(text) is text else json.dumps(value, sort_keys=True)


def _finish(connection: Connection, run: str, outcomes: Sequence[Outcome]) -> None:
    """End prompts, which the transaction holds."""
    told = ("state", "reason", "detail", "generations", "judgements", "recipe_hash", "replies")
    ending = update(prompts).where(prompts.c.run == run, prompts.c.key == bindparam("of"))
    ending = ending.values(**{name: bindparam(name) for name in told}, finished_at=time.time())
    entries = [
        {
            "of": outcome.key,
            "state": outcome.state,
            "reason": outcome.reason,
            "detail": _detail(outcome.detail) or None,
            "recipe_hash": outcome.recipe_hash,
            **_made_from(outcome),
        }
        for outcome in outcomes
    ]
    connection.execute(ending, entries)


def _made_from(outcome: Outcome) -> dict[str, Any]:
    """The columns that hold what an outcome was made from."""
    return {
        "generations": _json([generation_to_json(g) for g in outcome.generations]),
        "judgements": _json([judgement_to_json(j) for j in outcome.judgements]),
        "replies": RULES,
    }


def _uncounted(outcome: Outcome, known: Any) -> Outcome:
    """The outcome without the answers that were counted when its prompt failed before.

    `known` is the prompt's row as it was until now.
    """
    if known.generations is None:
        return outcome
    texts = {(made.slot, made.text) for made in _generations(known.generations) if made.usable}
    ratings = {
        (made.judge, made.aspect, made.order, made.ratings)
        for made in _judgements(known.judgements)
        if made.reason is None
    }
    return replace(
        outcome,
        generations=tuple(
            made
            for made in outcome.generations
            if not (made.usage.cached and (made.slot, made.text) in texts)
        ),
        judgements=tuple(
            made
            for made in outcome.judgements
            if not (
                made.usage.cached and (made.judge, made.aspect, made.order, made.ratings) in ratings
            )
        ),
    )


def _next_ordinal(connection: Connection, run: str) -> int:
    """Where the next prompts of a run stand in its order; other producers wait."""
    connection.execute(select(runs.c.name).where(runs.c.name == run).with_for_update())
    return _next_place(connection, run)


def _next_place(connection: Connection, run: str) -> int:
    last = connection.scalar(select(func.max(prompts.c.ordinal)).where(prompts.c.run == run))
    return 0 if last is None else last + 1


def _note_position(
    connection: Connection,
    run: str,
    source: str,
    position: Mapping[str, Any] | None,
    schema: str | None,
    expected_schema: str | None,
) -> None:
    """Raises: SchemaChanged."""
    query = select(runs.c.source_position, runs.c.source_schema).where(runs.c.name == run)
    known = connection.execute(query.with_for_update()).one()
    if known.source_schema not in (expected_schema, schema):
        raise SchemaChanged(known.source_schema)
    positions = {**json.loads(known.source_position or "{}"), source: position}
    change = {"source_position": _exact(positions), "source_schema": schema}
    connection.execute(update(runs).where(runs.c.name == run).values(change))


def _prompt(text: str) -> Prompt:
    data = json.loads(text)
    # Stored with sorted keys; people and models expect the role first.
    turns = tuple({"role": t["role"], "content": t["content"]} for t in data.get("messages", ()))
    return Prompt(**{**data, "messages": turns})


def _prompt_of(row: Any, pair: Pair) -> Judged:
    return Judged(
        key=row.key,
        prompt=_prompt(row.input),
        pair=pair,
        generations=_generations(row.generations),
        judgements=_judgements(row.judgements),
        recipe_hash=row.recipe_hash or "",
    )


def _changed(run: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return (
        f"run {run!r} was made with another recipe: {', '.join(keys)} changed. "
        "Give the recipe another name, or go on with --accept-changes "
        "(what is in flight is then published anew)"
    )
