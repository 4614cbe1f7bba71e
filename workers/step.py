"""What a task works with: its process, its batch, and the prompts of it that still want work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workers.earlier import reread, reread_judged
from workers.ledger import Work
from workers.messages import Batch
from workers.records import (
    Generation,
    Judgement,
    Prompt,
    generation_from_json,
    judgement_from_json,
)
from workers.worker import Worker


@dataclass(frozen=True)
class Step:
    """One step of a batch. Replies that an earlier version read are read anew."""

    mill: Worker
    batch: Batch
    work: Work

    @property
    def prompts(self) -> Mapping[str, Prompt]:
        """The prompts that still want work, by key."""
        return self.work.prompts

    @cached_property
    def known(self) -> Mapping[str, tuple[Generation, ...]]:
        """The generations that a prompt had when it failed before."""
        return {key: self._read(key, known) for key, known in self.work.known.items()}

    def generations(self, key: str, data: Sequence[Mapping[str, Any]]) -> tuple[Generation, ...]:
        """The generations of a prompt that a message holds."""
        return self._read(key, tuple(map(generation_from_json, data)))

    def judged(
        self,
        key: str,
        generations: Sequence[Mapping[str, Any]],
        judgements: Sequence[Mapping[str, Any]],
    ) -> tuple[tuple[Generation, ...], tuple[Judgement, ...]]:
        """The generations and judgements of a prompt that a message holds."""
        made = tuple(map(generation_from_json, generations))
        ratings = tuple(map(judgement_from_json, judgements))
        if key not in self.work.earlier:
            return made, ratings
        return reread_judged(self.mill.recipe, made, ratings)

    def _read(self, key: str, generations: tuple[Generation, ...]) -> tuple[Generation, ...]:
        return reread(self.mill.recipe, generations) if key in self.work.earlier else generations
