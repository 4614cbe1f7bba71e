"""From the outbox to a dataset repository: sealed shards, and compactions that were planned.

Before anything is sent the repository is looked at: a shard that is there already was sent by an
attempt whose answer was lost. A commit names the one that it was made for; if another came first,
it is looked at again. The card goes with the shards. Where the repository and the ledger differ, by
an older ledger that came back or by someone's hand, deliveries stand still until a person asks for
a compaction: the ledger is right then.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from workers import card
from workers.destinations.hub import HubRepository
from workers.entries import DELIVERED, SEALED
from workers.errors import DestinationAway, DestinationRefused
from workers.gate import why_unsafe
from workers.ledger import Ledger
from workers.recipe import Recipe
from workers.rows import CONFIGURATIONS, DEFAULT
from workers.sealed import ARRIVING, LEAVING, File, found_file
from workers.settings import hub_endpoint, hub_token, secrets
from workers.shards import Shards

log = logging.getLogger(__name__)

#: Shards that one commit carries at most, when there is much to catch up on.
SHARDS = 8


def open_hub(recipe: Recipe) -> HubRepository:
    """The recipe's repository on the Hub, not connected yet. Raises: SettingsError."""
    assert recipe.hub is not None
    return HubRepository(
        recipe.hub.repo_id,
        private=recipe.hub.private,
        token=hub_token(),
        endpoint=hub_endpoint(),
    )


class ToHub:
    """Rows to a dataset repository, in shards."""

    def __init__(self, ledger: Ledger, recipe: Recipe) -> None:
        self._ledger, self._recipe = ledger, recipe
        self._secrets = secrets(recipe)
        self._outbox = ledger.sealed(recipe.name, recipe.destinations["hub"])
        self._shards = Shards(ledger, recipe.name, self._outbox, self._secrets)
        self._repository = open_hub(recipe)

    def prepare(self) -> None:
        """Make the repository, or look whether it is ours to write to."""
        self._look()

    def deliver(
        self, go_on: Callable[[], bool], tell: Callable[[str], None], *, compact: bool
    ) -> None:
        """Push what is sealed, then seal and push what waits; a compaction comes first."""
        # Before anything is fixed: a token that is refused seals nothing.
        head = self._look(compact=compact)
        if compact and self._outbox.files(LEAVING) and any(self._differing(head)):
            self._outbox.cancel()  # by a plan that does not know of it, rows could be there twice
        head = self._push_compaction(head)
        if compact and self._shards.compact(self._other_shards(head, tell)):
            head = self._push_compaction(head)
        head = self._push_sealed(head)
        self._refuse_changed()
        while go_on() and self._seal():
            head = self._push_sealed(head)
            tell(f"{self._outbox.pending()} left")

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

    def _push_sealed(self, head: str) -> str:
        while files := self._outbox.files(SEALED, limit=SHARDS):
            head = self._push(head, files, [])
            self._outbox.shards_delivered(file.number for file in files)
        return head

    def _push_compaction(self, head: str) -> str:
        leaving = self._outbox.files(LEAVING)
        if leaving:
            head = self._push(head, self._outbox.files(ARRIVING), leaving)
            self._outbox.compacted()
            self._outbox.fill()  # what the gate kept back is looked at, and said, as what waits
        return head

    def _push(self, head: str, files: Sequence[File], leaving: Sequence[File]) -> str:
        """Bring the repository to hold these files and not those, in one commit if need be.

        Returns the newest commit. If another one than `head` came meanwhile, the Hub refuses, and
        everything is looked at anew.
        """
        delivered = self._outbox.files(DELIVERED)
        last = [file for file in delivered if file.number == delivered[-1].number]
        ours = {file.path: file for file in files}
        # A number that is ours in one configuration is in all of them.
        taken = {
            replace(file, configuration=name).path for file in files for name in CONFIGURATIONS
        }
        taken -= {file.path for file in (*delivered, *leaving)}
        asked = taken | {file.path for file in (*files, *leaving, *last)}
        there = self._repository.existing(sorted(asked), head)
        self._refuse_lost(file for file in last if file.path not in there)
        for path in sorted(taken & there.keys()):
            file = ours.get(path)
            if file is None or not there[path].holds(self._outbox.content(file)):
                raise DestinationRefused(
                    f"hub.repo_id: {path} in {self._place} holds something else: an older "
                    "ledger came back, or others write there; accepted: `prefmill compact`, which "
                    "deletes what the ledger does not know, or another repository"
                )
        missing = [file for file in files if file.path not in there]
        self._hold_back(missing)
        gone = [file.path for file in leaving if file.path in there]
        if missing or gone:
            readme = self._card(self._repository.card(head), [*delivered, *files])
            add = self._contents(missing, readme)
            message = _message(missing, gone)
            return self._repository.commit(head, add=add, delete=gone, message=message)
        return head

    def _contents(self, files: Sequence[File], readme: str) -> Iterator[tuple[str, bytes]]:
        for file in files:
            yield file.path, self._outbox.content(file)
        yield "README.md", readme.encode()

    @property
    def _place(self) -> str:
        assert self._recipe.hub is not None
        return self._recipe.hub.repo_id

    def _look(self, *, compact: bool = False) -> str:
        """The newest commit, in a repository that holds no data but this run's."""
        head = self._repository.find()
        if head is None:
            if self._outbox.files(DELIVERED):
                log.warning("deliver.hub_is_empty", extra={"run": self._recipe.name})
                self._outbox.missed()  # first, so that a kill in between forgets nothing
            head = self._repository.head(create=True)
        if self._outbox.files(DELIVERED, LEAVING):
            return head  # it was looked at before the first shard went there
        ours = {file.path for file in self._outbox.files(SEALED, ARRIVING)}
        paths = self._repository.paths(head)
        others = [path for path in paths if path.endswith(_DATA) and path not in ours]
        mine = bool(others) and self._is_ours(head)
        if others and not mine:
            raise DestinationRefused(
                f"hub.repo_id: {self._place} holds {others[0]}, which this run did not write; "
                "accepted: a repository of its own, which is made if it is not there"
            )
        unknown = [path for path in others if found_file(path, 0, None)]
        if unknown and not compact:
            raise DestinationRefused(
                f"hub.repo_id: {self._place} holds {unknown[0]}, of which this ledger knows "
                "nothing; accepted: `prefmill compact`, which deletes what the ledger does not "
                "know, or another repository"
            )
        return head

    def _differing(self, head: str) -> tuple[set[int], list[File]]:
        """Delivered shards that are not there as a whole, and files that are not the ledger's."""
        known = {f.path: f for f in self._outbox.files(SEALED, DELIVERED, ARRIVING, LEAVING)}
        paths = [path for path in self._repository.paths(head) if found_file(path, 0, None)]
        there = self._repository.existing(paths, head)
        lost = {f.number for f in known.values() if f.state == DELIVERED and f.path not in there}
        others = []
        for path, blob in there.items():
            ours = known.get(path)
            same = ours and (ours.state == LEAVING or blob.may_hold(ours.size, ours.sha256))
            if not same and (file := found_file(path, blob.size, blob.sha256)):
                others.append(file)
        return lost, others

    def _other_shards(self, head: str, tell: Callable[[str], None]) -> set[int]:
        """The numbers of shards that a compaction has to replace for what the repository holds.

        Raises: DestinationRefused if it does not say that it is this run's.
        """
        lost, others = self._differing(head)
        if others:
            if not self._is_ours(head):
                raise DestinationRefused(
                    f"hub.repo_id: {self._place} holds {others[0].path}, which this ledger does "
                    "not know, and its card does not name this run; accepted: that file away, or "
                    "another repository"
                )
            tell(f"{len(others)} files of {self._place} are not the ledger's and are deleted")
            self._outbox.adopt(others)
        return lost | {file.number for file in others}

    def _is_ours(self, head: str) -> bool:
        """Whether the repository's card was written from this ledger, or from one it came from."""
        run = self._recipe.name
        return card.names(self._repository.card(head), run, self._ledger.identity(run))

    def _refuse_lost(self, lost: Iterable[File]) -> None:
        for file in lost:
            raise DestinationRefused(
                f"hub.repo_id: {file.path} was delivered to {self._place} and is not there any "
                "more; accepted: `prefmill compact`, which delivers again what is missing"
            )

    def _hold_back(self, files: Sequence[File]) -> None:
        """Undo shards that were made by a process which knew fewer secrets than this one."""
        unsafe = [file for file in files if self._shards.unsafe(self._outbox.content(file))]
        if any(file.state == ARRIVING for file in unsafe):
            self._outbox.cancel()
        for number in {file.number for file in unsafe if file.state == SEALED}:
            self._outbox.unseal(number)
        if unsafe:
            raise DestinationAway("hub: a shard held a key or token; its rows are looked at again")

    def _card(self, existing: str, files: Sequence[File]) -> str:
        """The dataset card, once these files are there."""
        rows = dict.fromkeys(CONFIGURATIONS, 0)
        for file in files:
            rows[file.configuration] += file.rows
        for sample in (self._shards.sample(), None):
            text = self._rendered(existing, rows, sample)
            refusal = why_unsafe({"card": text}, secrets=self._secrets)
            if refusal is None:
                return text
        raise DestinationRefused(
            f"hub: the card of {self._place} would hold a key or token; accepted: a recipe and a "
            "README without"
        )

    def _rendered(
        self, existing: str, rows: Mapping[str, int], sample: Mapping[str, Any] | None
    ) -> str:
        counts = self._ledger.counts(self._recipe.name)
        people = self._ledger.rated(self._recipe.name)
        ended = (counts.accepted, counts.paired, counts.rejected, counts.failed)
        shapes = self._shards.shapes()
        return card.render(
            existing,
            repo_id=self._place,
            run=self._recipe.name,
            configurations=[
                card.ConfigurationFacts(name, rows[name], features(shapes[name].schema))
                for name in CONFIGURATIONS
            ],
            recipe=self._recipe.model_dump(mode="json"),
            counts=card.Counts(*ended, by_people=people),
            sample=sample,
            private=self._recipe.hub.private if self._recipe.hub else True,
            identity=self._ledger.identity(self._recipe.name),
        )


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a schema as a card's `dataset_info` lists them."""
    import datasets  # takes seconds

    found: list[dict[str, Any]] = datasets.Features.from_arrow_schema(schema)._to_yaml_list()
    return found


#: Files that `datasets` would load.
_DATA = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".txt", ".zip", ".gz", ".tar", ".zst")


def _message(missing: Sequence[File], gone: Collection[str]) -> str:
    rows = sum(file.rows for file in missing if file.configuration == DEFAULT)
    if gone:
        return f"Compact: {len(gone)} files become {len(missing)}, {rows} rows"
    return f"Add {rows} rows"
