"""From the outbox to an Argilla dataset: judged prompts as records, some at a time.

A record's id is its prompt's key, so sending one again replaces it; people's answers stay.
"""

import logging
from collections.abc import Callable, Sequence

from workers.annotation import Record, record
from workers.destinations.argilla import ArgillaDataset
from workers.entries import Entry
from workers.errors import DestinationRefused
from workers.ledger import Concluded, Ledger
from workers.outbox import Outbox
from workers.recipe import Recipe
from workers.settings import argilla_access, hub_token_if_any

log = logging.getLogger(__name__)

#: Records that are read and sent at a time; in between, a worker may be told to stop.
TOGETHER = 100


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


class ToArgilla:
    """Judged prompts to an Argilla dataset."""

    def __init__(self, ledger: Ledger, recipe: Recipe, outbox: Outbox) -> None:
        self._ledger, self._recipe, self._outbox = ledger, recipe, outbox
        self.dataset = open_argilla(recipe)
        self._prepared = False

    def prepare(self) -> None:
        """Make the dataset, or look whether it is of our form."""
        if not self._prepared:
            if not self.dataset.exists() and self._outbox.backlog().delivered:
                log.warning("deliver.argilla_is_empty", extra={"run": self._recipe.name})
                self._outbox.missed()  # first, so that a kill in between forgets nothing
            self.dataset.prepare()
            self._prepared = True

    def deliver(
        self, go_on: Callable[[], bool], tell: Callable[[str], None], *, compact: bool
    ) -> None:
        """Log what waits, some at a time."""
        self.prepare()
        try:
            while go_on() and (entries := self._outbox.waiting(TOGETHER)):
                self._log(entries)
                tell(f"{self._outbox.pending()} left")
        except DestinationRefused:
            self._prepared = False  # someone may have deleted the dataset: the next time it is made
            raise

    def _log(self, entries: Sequence[Entry]) -> None:
        judged = self._ledger.judged_prompts(self._recipe.name, [entry.key for entry in entries])
        records = {e.key: self._record(judged.get(e.key)) for e in entries}
        refused = self.dataset.log([one for one in records.values() if one is not None])
        refused |= {key: "nothing was judged" for key, one in records.items() if one is None}
        self._outbox.refuse({e: refused[e.key] for e in entries if e.key in refused})
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
            # Those by which it was generated: a recipe's may be in another order by now.
            [made.slot for made in judged.generations],
        )
