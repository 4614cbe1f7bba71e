"""People's ratings back from Argilla: into the ledger, and pairs again where they are given.

A person's word wins over the judge's, text by text; what people did not rate keeps the judge's
rating. The judge's own pairs stay as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workers.curation import (
    Agreement,
    Answer,
    latest,
    people_from_json,
    people_to_json,
    summarise,
    winning,
)
from workers.earlier import reread_judged
from workers.grouping import usable
from workers.judging import Verdict, verdict
from workers.ledger import Concluded, Curated, Ledger
from workers.pairing import make_pairs
from workers.recipe import Recipe
from workers.records import Pair, Rejected, Slot

#: After so many answers there is a line of progress.
TOLD_EVERY = 1_000


@dataclass(slots=True)
class Pulled:
    """What a pull found."""

    prompts: int = 0
    changed: int = 0
    rows: int = 0
    flipped: int = 0
    unknown: int = 0
    agreement: Agreement = field(default_factory=Agreement)

    def lines(self) -> list[str]:
        """The same for people."""
        lines = [
            f"{self.prompts} prompts are rated by people, {self.changed} of them changed since the "
            "last pull",
            f"{self.rows} pairs follow from that, in the configuration `human`; {self.flipped} "
            "prompts have their preference turned",
        ]
        if self.unknown:
            lines.append(f"{self.unknown} rated records belong to no judged prompt of this run")
        return [*lines, *self.agreement.lines()]


def pull(ledger: Ledger, recipe: Recipe, say: Callable[[str], None]) -> Pulled:
    """Read what people submitted, and make pairs of it.

    Raises: DestinationAway, DestinationRefused, LedgerError.
    """
    from workers.to_argilla import open_argilla  # every `enqueue` imports this module

    with open_argilla(recipe) as dataset:
        answers = list(_told(dataset.answers(), say))
        place = dataset.id
    named = {answer.record_id for answer in answers}
    judged = _judged_prompts(ledger, recipe, named)
    said = [_of_texts(judged[a.record_id], a) for a in answers if a.record_id in judged]
    rated, each = summarise(said), latest(said)
    found = Pulled(unknown=len(named) - len(judged))
    made: dict[str, Curated] = {}
    for key in rated:
        one, people = judged[key], people_to_json(rated[key])
        pairs = pairs_by_people(recipe, one, people)
        made[key] = Curated(people, pairs, place)
        found.prompts += 1
        found.rows += len(pairs)
        found.flipped += _turned(one.pairs, pairs)
        _compare(found.agreement, one, people, each[key])
    names = recipe.destinations.values()
    found.changed = ledger.curate(recipe.name, made, names, place=place)
    return found


def again(ledger: Ledger, recipe: Recipe) -> int:
    """People's pairs again, by the recipe's policy; returns how many prompts changed."""
    known = ledger.people(recipe.name)
    judged = _judged_prompts(ledger, recipe, known)
    made = {
        key: replace(one, pairs=pairs_by_people(recipe, judged[key], one.people))
        for key, one in known.items()
        if key in judged
    }
    return ledger.curate(recipe.name, made, recipe.destinations.values()) if known else 0


def _judged_prompts(ledger: Ledger, recipe: Recipe, keys: Iterable[str]) -> dict[str, Concluded]:
    """Those of these prompts that were judged, by key, with replies read by today's rules."""
    judged = ledger.judged_prompts(recipe.name, sorted(keys))
    for key, prompt in judged.items():
        if prompt.earlier:
            both = reread_judged(recipe, prompt.generations, prompt.judgements)
            judged[key] = replace(prompt, generations=both[0], judgements=both[1])
    return judged


def pairs_by_people(
    recipe: Recipe, judged: Concluded, people: Mapping[str, Any]
) -> tuple[Pair, ...]:
    """The pairs of a prompt with people's ratings in place of the judge's; none if they tie."""
    texts = usable(judged.generations)
    said = verdict(judged.judgements, len(texts), quorum=1)
    if not isinstance(said, Verdict):
        return ()
    rating = people_from_json(people)
    nobody: list[float | None] = [None] * len(texts)
    spoken = winning(texts, nobody, _slots(judged), rating)
    made = make_pairs(
        texts,
        winning(texts, said.ratings, _slots(judged), rating),
        recipe.pairs,
        # Where people spoke, it does not matter what a judge made of the order.
        flipped={(i, j) for i, j in said.flipped if spoken[i] is None and spoken[j] is None},
        draw=f"{recipe.seed}:{judged.key}:pairs",
    )
    return () if isinstance(made, Rejected) else tuple(made)


def _of_texts(judged: Concluded, answer: Answer) -> Answer:
    """The answer without ratings of generations that failed: there was nothing to see."""
    shown = {n for n, made in enumerate(judged.generations) if made.usable}
    return replace(answer, ratings={n: r for n, r in answer.ratings.items() if n in shown})


def _slots(judged: Concluded) -> list[Slot]:
    """The slots in whose order people saw the texts: the recipe's may be others by now."""
    return [made.slot for made in judged.generations]


def _compare(
    agreement: Agreement,
    judged: Concluded,
    people: Mapping[str, Any],
    each: Sequence[Mapping[int, int]],
) -> None:
    texts = usable(judged.generations)
    said = verdict(judged.judgements, len(texts), quorum=1)
    if isinstance(said, Verdict):
        nobody: list[float | None] = [None] * len(texts)
        rating = people_from_json(people)
        agreement.add(said.ratings, winning(texts, nobody, _slots(judged), rating), each)


def _turned(judges: Iterable[Pair], peoples: Iterable[Pair]) -> bool:
    """Whether people chose a text that the judge had rejected against the same one."""
    before = {(pair.chosen, pair.rejected) for pair in judges if not pair.tie}
    return any((pair.rejected, pair.chosen) in before for pair in peoples)


def _told(answers: Iterable[Answer], say: Callable[[str], None]) -> Iterable[Answer]:
    for number, answer in enumerate(answers, 1):
        if number % TOLD_EVERY == 0:
            say(f"{number} answers read")
        yield answer
