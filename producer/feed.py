"""The feed: rows of a source into the ledger and out to the fleet, never more than the window.

Accepting and noting the place in the source are one transaction, so a restart goes on exactly where
it stopped, and publishing what was accepted but perhaps never left is the first thing it does.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from celery import Celery

from producer.columns import SourceColumns
from producer.prompts import BadRow, Item, Row
from producer.sources import identity, read
from workers.errors import BrokerError
from workers.flow import publish
from workers.ledger import Ledger, Skip
from workers.recipe import Recipe
from workers.records import Prompt

log = logging.getLogger(__name__)

#: Prompts that one transaction accepts at most.
ACCEPT = 100

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
    #: Called while reading or waiting for the window goes on.
    on_round: Callable[[], None] = lambda: None
    #: Whether `run` saw the source's end.
    ended: bool = False
    #: Places in the run's order that no prompt has, as far as they were counted.
    _uncounted: int = 0

    def run(self) -> None:
        """Accept and publish until the source ends, the limit is reached or `stopping` is set.

        Raises: SourceError, LedgerError; BrokerError only before anything was read.
        """
        self._publish(self.ledger.rebatch_unpublished(self.recipe.name, self._batch_size))
        position, schema = self.ledger.source_state(self.recipe.name, self._source)
        columns = SourceColumns.from_text(schema)
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
                    self._accept(held, columns)
                    held, room = [], self._room()
                if room == 0 or self.stopping.is_set():
                    return
        if held:
            self._accept(held, columns)
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

        Counting a large run takes long: it is counted only when the bound leaves nothing, and what
        the bound was too high by holds from then on.
        """
        bound = self.ledger.accepted_bound(self.recipe.name)
        if bound - self._uncounted < limit:
            return limit - (bound - self._uncounted)
        accepted = self.ledger.accepted(self.recipe.name)
        self._uncounted = bound - accepted
        return limit - accepted

    def _accept(self, rows: list[Row | BadRow], columns: SourceColumns) -> None:
        """One transaction for some rows, then their messages."""
        first = self._first_batch()
        accepted: dict[str, Prompt] = {}
        skips = []
        for row in rows:
            bad = row if isinstance(row, BadRow) else self._misfit(row, columns, first=first)
            if bad is None and isinstance(row, Row):
                accepted.setdefault(row.prompt.key(self.recipe.name), row.prompt)
            elif bad is not None:
                skips.append(Skip(self._place(bad), bad.reason, bad.detail))
                self.on_skip(bad)
        batches = self.ledger.accept(
            self.recipe.name,
            accepted,
            skips,
            source=self._source,
            position=rows[-1].position or None,
            schema=columns.to_text() if accepted or not first else None,
            batch_size=self._batch_size,
        )
        self._publish(batches)

    def _first_batch(self) -> bool:
        """Whether the run's source columns are still open."""
        return self.ledger.source_state(self.recipe.name, self._source)[1] is None

    def _misfit(self, row: Row, columns: SourceColumns, *, first: bool) -> BadRow | None:
        misfit = columns.admit(row.prompt.columns, first=first)
        if misfit is None:
            return None
        return BadRow(misfit.reason, misfit.detail, row.where, row.position)

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
