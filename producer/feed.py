"""The feed: rows of a source into the ledger and out to the fleet, never more than the window.

Accepting and noting the place in the source are one transaction, so a restart goes on exactly where
it stopped, and publishing what was accepted but perhaps never left is the first thing it does.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from celery import Celery

from producer.columns import LeftOut, SourceColumns, shown
from producer.prompts import BadRow, Item, Row
from producer.sources import identity, read
from workers.errors import BrokerError
from workers.flow import publish
from workers.ledger import Ledger, SchemaChanged, Skip
from workers.recipe import Recipe
from workers.records import Prompt

log = logging.getLogger(__name__)

#: Prompts that one transaction accepts at most.
ACCEPT = 100

#: Columns with values left out that are named one by one.
TOLD_COLUMNS = 50

#: How often a full window is looked at again, in seconds.
POLL_S = 0.5


@dataclass
class Feed:
    """One pass over a recipe's source."""

    app: Celery
    ledger: Ledger
    recipe: Recipe
    follow: bool = False
    limit: int | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    on_skip: Callable[[BadRow], None] = lambda _row: None
    #: Told once of each column of which values are left out: its name, where first, and why.
    on_left_out: Callable[[str, str, str], None] = lambda _column, _where, _why: None
    #: Called while reading or waiting for the window goes on.
    on_round: Callable[[], None] = lambda: None
    #: Whether `run` saw the source's end.
    ended: bool = False
    #: Places in the run's order that no prompt has, as they were counted last; None: not yet.
    _uncounted: int | None = None
    #: The run's source columns as text, as this process last saw them; None: still open.
    _schema: str | None = None
    _told: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Accept and publish until the source ends, the limit is reached or `stopping` is set.

        Raises: SourceError, LedgerError; BrokerError only before anything was read.
        """
        self._publish(self.ledger.rebatch_unpublished(self.recipe.name, self._batch_size))
        position, self._schema = self.ledger.source_state(self.recipe.name, self._source)
        held: list[Row | BadRow] = []
        room = self._room()
        if room == 0:
            return
        # An abandoned stream of `datasets` prints a traceback when the interpreter exits.
        with closing(self._items(position)) as items:
            for item in items:
                self.on_round()
                if item is not None:
                    held.append(item)
                if len(held) >= room or (item is None and held):
                    self._accept(held)
                    held, room = [], self._room()
                if room == 0 or self.stopping.is_set():
                    return
        if held:
            self._accept(held)
        self.ended = True

    @property
    def _batch_size(self) -> int:
        return self.recipe.fleet.batch_size

    @property
    def _source(self) -> str:
        return identity(self.recipe.source)

    def _items(self, position: dict[str, object] | None) -> Generator[Item, None, None]:
        return read(self.recipe.source, position=position, follow=self.follow)

    def _room(self) -> int:
        """How many rows may be accepted now, after waiting for the window; 0 to stop."""
        limit = self.limit or self.recipe.source.limit
        while not self.stopping.is_set():
            self.on_round()
            # Whole batches: each message of a fleet's window should carry as much as it can.
            left = ACCEPT // self._batch_size * self._batch_size or ACCEPT
            if limit is not None:
                left = min(left, self._left(limit))
                if left <= 0:
                    self.ended = True
                    return 0
            in_flight = self.ledger.in_flight(self.recipe.name)
            paused = self.ledger.paused(self.recipe.name)
            room = 0 if paused else self.recipe.fleet.window - in_flight
            # Whole batches, or the messages of a full window would dwindle to one prompt each.
            if room >= self._batch_size or (room > 0 and in_flight == 0):
                return min(left, room)
            self.stopping.wait(POLL_S)
        return 0

    def _left(self, limit: int) -> int:
        """How many prompts the run may still accept; fewer than there are, but 0 only if none.

        Counting a large run takes long: it is counted at first and when the bound leaves nothing;
        what the bound was too high by holds from then on.
        """
        bound = self.ledger.accepted_bound(self.recipe.name)
        if self._uncounted is not None and bound - self._uncounted < limit:
            return limit - (bound - self._uncounted)
        accepted = self.ledger.accepted(self.recipe.name)
        self._uncounted = bound - accepted
        return limit - accepted

    def _accept(self, rows: list[Row | BadRow]) -> None:
        """One transaction for some rows, then their messages."""
        bad_rows = [row for row in rows if isinstance(row, BadRow)]
        for row in bad_rows:
            self.on_skip(row)
        skips = [Skip(self._place(row), row.reason, row.detail) for row in bad_rows]
        while True:
            fitted = self._fit([row for row in rows if isinstance(row, Row)])
            try:
                batches = self.ledger.accept(
                    self.recipe.name,
                    fitted.prompts,
                    skips,
                    source=self._source,
                    position=rows[-1].position or None,
                    schema=fitted.schema,
                    expected_schema=self._schema,
                    left_out=fitted.left_out,
                    batch_size=self._batch_size,
                )
            except SchemaChanged as exc:  # another producer was first
                self._schema = exc.schema
                continue
            self._schema = fitted.schema
            return self._publish(batches)

    def _fit(self, rows: list[Row]) -> "_Fitted":
        """The prompts of some rows by key, without the values that do not fit the run's columns."""
        first, run = self._schema is None, self.recipe.name
        columns = SourceColumns.from_text(self._schema, lambda: self.ledger.has_shards(run))
        fitted = _Fitted()
        for row in rows:
            key = row.prompt.key(run)
            if key in fitted.prompts:
                continue
            misfits = columns.fit(row.prompt.columns, first=first)
            kept = {n: value for n, value in row.prompt.columns.items() if n not in misfits}
            fitted.prompts[key] = replace(row.prompt, columns=kept)
            if left_out := row.left_out | {shown(name): why for name, why in misfits.items()}:
                fitted.left_out[key] = list(left_out)
                self._tell(row.where, left_out)
        fitted.schema = columns.to_text() if fitted.prompts or not first else None
        return fitted

    def _tell(self, where: str, left_out: LeftOut) -> None:
        for name, why in left_out.items():
            if name not in self._told and len(self._told) < TOLD_COLUMNS:
                self._told.add(name)
                self.on_left_out(name, where, why)

    def _place(self, row: BadRow) -> str:
        """A position that two readings of one stream do not share, but of one file do."""
        return f"{row.where} ({self._started})" if self.recipe.source.stdin else row.where

    def __post_init__(self) -> None:
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def _publish(self, batches: list[str]) -> None:
        """Publish, waiting for a broker that is away: what was accepted is safe in the ledger."""
        told = False
        while True:
            try:
                return publish(self.app, self.ledger, self.recipe, batches)
            except BrokerError as exc:
                if self.stopping.is_set():
                    return None
                if not told:
                    log.warning("feed.paused", extra={"because": str(exc)})
                told = True
                self.stopping.wait(2.0)
                # Under new ids: some of these messages may have left before the broker went.
                batches = self.ledger.rebatch_unpublished(self.recipe.name, self._batch_size)


def left_out_line(column: str, where: str, why: str) -> str:
    """What people are told of a column of which values are left out."""
    return (
        f"column {column!r} {why}: left out at {where}, the prompt is kept; "
        "`prefmill status` counts further ones"
    )


@dataclass
class _Fitted:
    """Rows as the ledger takes them: prompts by key, columns left out by key, the run's columns."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    schema: str | None = None
