"""Delivery: what waits in the outbox is carried to Argilla and to the Hub, once.

One at a time for each destination; one that is away or refuses delays nothing else and loses
nothing: the outbox keeps. Whatever is sent twice (an answer that was lost, a process that was
killed) is recognised: records are upserts by prompt, and a shard that is there already is there.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workers.annotation import Record, record
from workers.destinations.argilla import ArgillaDataset
from workers.destinations.hub import HubRepository
from workers.errors import ConfigurationError, DestinationAway, DestinationRefused
from workers.ledger import Concluded, Ledger
from workers.outbox import ARRIVING, DELIVERED, LEAVING, SEALED, Backlog, Entry, File, Outbox
from workers.recipe import Recipe
from workers.rows import DEFAULT
from workers.settings import argilla_access, hub_token, hub_token_if_any, secrets
from workers.shards import Shards

log = logging.getLogger(__name__)

#: So much that waits is delivered at once, without waiting for `PREFMILL_DELIVER_EVERY` to pass.
ENOUGH = {"argilla": 200, "hub": 2_000}

#: Records that one request to Argilla carries; between two requests a worker may be told to stop.
TOGETHER = 100

#: Shards that one commit carries at most, when there is much to catch up on.
SHARDS = 8

#: Pauses between two attempts double from the first to the last of these, in seconds.
PAUSES_S = (0.5, 30.0)

Tell = Callable[[str], None]


def due(destination: str, backlog: Backlog, every_s: float) -> bool:
    """Whether a destination's backlog is large or old enough to be delivered."""
    if not backlog.waiting or backlog.oldest is None:
        return False
    return backlog.waiting >= ENOUGH[destination] or time.time() - backlog.oldest >= every_s


#: How long a worker's delivery tries a destination that is away, in seconds; the next tick is near.
PATIENCE_S = 15.0

#: How long a worker leaves a destination alone that refused, in seconds: a person has to act.
REFUSED_S = 60.0


@dataclass
class Delivery:
    """The way to one of a run's destinations. It is opened once and used again and again."""

    ledger: Ledger
    recipe: Recipe
    destination: str
    stopping: threading.Event

    @cached_property
    def outbox(self) -> Outbox:
        """What waits for this destination."""
        name = self.recipe.destinations[self.destination]
        return self.ledger.outbox(self.recipe.name, name)

    @cached_property
    def _way(self) -> "_ToArgilla | _ToHub":
        if self.destination == "argilla":
            return _ToArgilla(self.ledger, self.recipe, self.outbox)
        return _ToHub(self.ledger, self.recipe, self.outbox)

    @cached_property
    def _filled(self) -> bool:
        """Once a process: what was made before this destination was configured waits as well."""
        self.outbox.fill()
        return True

    def due(self, every_s: float) -> bool:
        """Whether so much waits, or for so long, that it should be delivered now."""
        _ = self._filled
        return due(self.destination, self.outbox.backlog(), every_s)

    def run(self, *, patience_s: float, tell: Tell = lambda _: None, compact: bool = False) -> bool:
        """Deliver all that waits, trying again while the destination is away.

        Returns False at once if another process is at it. With `compact` few shards replace
        changed and small ones first.

        Raises: DestinationAway after `patience_s` seconds without success, DestinationRefused,
        LedgerError.
        """
        with self.ledger.alone(f"{self.recipe.name} {self.outbox.name}") as mine:
            if not mine:
                return False
            try:
                _ = self._filled
                self._patiently(compact, patience_s, tell)
            except (DestinationAway, DestinationRefused) as exc:
                self.outbox.note_trouble(str(exc))
                raise
            self.outbox.note_trouble(None)
        return True

    def _patiently(self, compact: bool, patience_s: float, tell: Tell) -> None:
        """The one place where deliveries are tried again; a stop is heard while it waits."""
        failures, since = 0, time.monotonic()
        left = self.outbox.backlog().waiting
        while True:
            try:
                return self._way.deliver(self.stopping, tell, compact=compact)
            except DestinationAway as exc:
                waiting = self.outbox.backlog().waiting
                if waiting < left:  # it took something: it is there
                    failures, since, left = 0, time.monotonic(), waiting
                pause_s = exc.retry_after_s or _pause_s(failures)
                if time.monotonic() + pause_s - since > patience_s or self.stopping.is_set():
                    raise
                failures += 1
                tell(f"{exc}; tried again in {pause_s:.0f} s")
                self.stopping.wait(pause_s)


def _pause_s(failures: int) -> float:
    first, last = PAUSES_S
    return float(min(last, first * 2**failures) * random.uniform(0.5, 1.0))


class Ticking:
    """A worker's delivery: done when a tick finds it due, silent about what it said already."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._not_before = 0.0
        self._told: str | None = None

    def tick(self, every_s: float) -> None:
        """Deliver if it is time. Raises: LedgerError."""
        if time.monotonic() < self._not_before or not self._delivery.due(every_s):
            return
        extra: dict[str, Any] = {"destination": self._delivery.destination}
        try:
            if self._delivery.run(patience_s=PATIENCE_S) and self._told:
                log.info("deliver.goes_on", extra=extra)
                self._told = None
        except (DestinationAway, ConfigurationError) as exc:
            after_s = exc.retry_after_s if isinstance(exc, DestinationAway) else REFUSED_S
            self._not_before = time.monotonic() + (after_s or 0)
            if self._told != type(exc).__name__:
                self._told = type(exc).__name__
                log.warning("deliver.stands_still", extra={**extra, "because": str(exc)})


class _ToArgilla:
    """Judged prompts to an Argilla dataset."""

    def __init__(self, ledger: Ledger, recipe: Recipe, outbox: Outbox) -> None:
        self._ledger, self._recipe, self._outbox = ledger, recipe, outbox
        self.dataset = open_argilla(recipe)
        self._prepared = False

    def deliver(self, stopping: threading.Event, tell: Tell, *, compact: bool) -> None:
        """Log what waits, some at a time."""
        if not self._prepared:
            self.dataset.prepare()
            self._prepared = True
        while not stopping.is_set() and (entries := self._outbox.waiting(TOGETHER)):
            self._log(entries)
            tell(f"{self._outbox.backlog().waiting} left")

    def _log(self, entries: Sequence[Entry]) -> None:
        judged = self._ledger.judged_prompts(self._recipe.name, [entry.key for entry in entries])
        records = {e.key: self._record(judged.get(e.key)) for e in entries}
        refused = self.dataset.log([one for one in records.values() if one is not None])
        refused |= {key: "nothing was judged" for key, one in records.items() if one is None}
        self._outbox.refuse({e.sequence: refused[e.key] for e in entries if e.key in refused})
        self._outbox.delivered([entry for entry in entries if entry.key not in refused])

    def _record(self, judged: Concluded | None) -> Record | None:
        if judged is None:
            return None
        return record(
            judged.key,
            judged.prompt,
            judged.state,
            judged.reason,
            judged.generations,
            judged.judgements,
            self._recipe.slots,
        )


def open_argilla(recipe: Recipe) -> ArgillaDataset:
    """The recipe's dataset in Argilla, not connected yet. Raises: SettingsError."""
    assert recipe.argilla is not None
    url, key = argilla_access(recipe)
    return ArgillaDataset(
        url,
        key,
        recipe.argilla.workspace,
        recipe.argilla.dataset,
        len(recipe.slots),
        hf_token=hub_token_if_any(),
    )


class _ToHub:
    """Rows to a dataset repository, in shards."""

    def __init__(self, ledger: Ledger, recipe: Recipe, outbox: Outbox) -> None:
        assert recipe.hub is not None
        self._ledger, self._recipe, self._outbox = ledger, recipe, outbox
        self._shards = Shards(ledger, recipe.name, outbox.name, secrets(recipe))
        self._repository = HubRepository(
            recipe.hub.repo_id, private=recipe.hub.private, token=hub_token()
        )

    def deliver(self, stopping: threading.Event, tell: Tell, *, compact: bool) -> None:
        """Push what is sealed, then seal and push what waits; a compaction comes first."""
        self._push_sealed()
        self._push_compaction()
        if compact and self._shards.compact():
            self._push_compaction()
        self._refuse_changed()
        while not stopping.is_set() and self._seal():
            self._push_sealed()
            tell(f"{self._outbox.backlog().waiting} left")

    def _refuse_changed(self) -> None:
        changed = self._outbox.backlog().changed
        if changed:
            raise DestinationRefused(
                f"hub: the pairs of {changed} delivered prompts are others by now (`rebuild` or "
                "`pull` made them again); accepted: `prefmill compact`, which replaces them in one "
                "commit"
            )

    def _seal(self) -> int:
        """Seal as many shards as one commit may carry; returns how many."""
        for number in range(SHARDS):
            if not self._shards.seal():
                return number
        return SHARDS

    def _push_sealed(self) -> None:
        while files := self._outbox.files(SEALED, limit=SHARDS):
            self._push(files, [])
            self._outbox.shards_delivered(file.number for file in files)

    def _push_compaction(self) -> None:
        leaving = self._outbox.files(LEAVING)
        if leaving:
            self._push(self._outbox.files(ARRIVING), leaving)
            self._outbox.compacted()

    def _push(self, files: Sequence[File], leaving: Sequence[File]) -> None:
        """Bring the repository to hold these files and not those, in one commit if need be."""
        head = self._repository.head(create=True)
        delivered = self._outbox.files(DELIVERED)
        if not delivered and not leaving:
            self._refuse_foreign(head, files)
        there = self._repository.existing([file.path for file in (*files, *leaving)], head)
        for file in files:
            if file.path in there and not there[file.path].holds(self._outbox.content(file)):
                raise DestinationRefused(
                    f"hub.repo_id: {file.path} in {self._place} holds something else, from another "
                    "run or a person; accepted: a repository of this run's own"
                )
        missing = [file for file in files if file.path not in there]
        gone = [file.path for file in leaving if file.path in there]
        if missing or gone:
            readme = self._card(self._repository.card(head), [*delivered, *files])
            self._repository.commit(
                head,
                add=[
                    *((file.path, self._loader(file)) for file in missing),
                    ("README.md", lambda: readme.encode()),
                ],
                delete=gone,
                message=_message(missing, gone),
            )

    def _loader(self, file: File) -> Callable[[], bytes]:
        return lambda: self._outbox.content(file)

    @property
    def _place(self) -> str:
        assert self._recipe.hub is not None
        return self._recipe.hub.repo_id

    def _refuse_foreign(self, head: str, files: Sequence[File]) -> None:
        """A repository that holds data of others is not written to."""
        ours = {file.path for file in files}
        for path in self._repository.paths(head):
            if path.endswith(_DATA) and path not in ours:
                raise DestinationRefused(
                    f"hub.repo_id: {self._place} holds {path}, which this run did not write; "
                    "accepted: a repository of its own, which is made if it is not there"
                )

    def _card(self, existing: str, files: Sequence[File]) -> str:
        raise NotImplementedError


#: Files that `datasets` would load.
_DATA = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".txt", ".zip", ".gz", ".tar", ".zst")


def _message(missing: Sequence[File], gone: Collection[str]) -> str:
    rows = sum(file.rows for file in missing if file.configuration == DEFAULT)
    if gone:
        return f"Compact: {len(gone)} files become {len(missing)}, {rows} rows"
    return f"Add {rows} rows"
