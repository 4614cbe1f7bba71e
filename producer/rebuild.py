"""Pairs again, from the generations and judgements that the ledger holds; no LLM is called.

What would change is found first and shown; writing goes page by page, so a rebuild that was
interrupted is finished by the next one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from producer import curation
from workers.earlier import reread_judged
from workers.errors import ConfigurationError
from workers.ledger import Concluded, Ledger
from workers.outcomes import conclude
from workers.recipe import Recipe
from workers.records import FAILED, Outcome, canonical_json
from workers.reply import RULES

#: Prompts whose pairs one transaction replaces.
TOGETHER = 200


@dataclass(slots=True)
class Difference:
    """What a rebuild changes. `before` and `after` count prompts by how they ended."""

    prompts: int = 0
    changed: int = 0
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    kept_rows: int = 0
    gone_rows: int = 0
    new_rows: int = 0

    def lines(self) -> list[str]:
        """The same for people."""
        ends = sorted({*self.before, *self.after})
        width = max(map(len, [*ends, "rows"]))
        rows = self.kept_rows + self.gone_rows, self.kept_rows + self.new_rows
        return [
            f"{self.changed} of {self.prompts} judged prompts change",
            *(f"{end:<{width}}  {self.before[end]} -> {self.after[end]}" for end in ends),
            f"{'rows':<{width}}  {rows[0]} -> {rows[1]}  "
            f"({self.kept_rows} stay, {self.gone_rows} go, {self.new_rows} are new)",
        ]


def check(ledger: Ledger, recipe: Recipe) -> None:
    """Raises: ConfigurationError if the ledger holds no run of this very recipe."""
    known = ledger.recipe_hash(recipe.name)
    if known is None:
        raise ConfigurationError(
            f"no run {recipe.name!r} in this ledger; accepted: one that was begun"
        )
    if known != recipe.hash:
        ledger.open_run(recipe.name, recipe.hash, recipe.fingerprint())


def difference(ledger: Ledger, recipe: Recipe) -> Difference:
    """What `rebuild` would change; nothing is written. Raises: LedgerError."""
    found = Difference()
    for was, now in _again(ledger, recipe):
        found.prompts += 1
        found.changed += _differs(was, now)
        found.before[_end(was.state, was.reason)] += 1
        found.after[_end(now.state, now.reason)] += 1
        old = {pair for pair in was.pairs if not pair.tie}
        new = {pair for pair in now.pairs if not pair.tie}
        found.kept_rows += len(old & new)
        found.gone_rows += len(old - new)
        found.new_rows += len(new - old)
    return found


def rebuild(ledger: Ledger, recipe: Recipe) -> int:
    """Write what changes; returns the number of prompts. Raises: LedgerError."""
    changed = (now for was, now in _again(ledger, recipe) if _differs(was, now))
    done = 0
    while some := list(islice(changed, TOGETHER)):
        ledger.replace_pairs(recipe.name, some, recipe.destinations.values())
        done += len(some)
    curation.again(ledger, recipe)
    ledger.note_pair_policy(recipe.name, policy(recipe))
    return done


def policy(recipe: Recipe) -> str:
    """What pairs are made by, as text to be compared: the pair policy, how replies are read."""
    return canonical_json(recipe.pairs.model_dump(mode="json") | {"replies": RULES})


def warnings(ledger: Ledger, recipe: Recipe) -> Iterator[str]:
    """What is allowed and yet spoils data, as a run begins or goes on; one line each.

    The first recipe of a run decides which pair policy its pairs are said to be made by.
    """
    yield from recipe.warnings()
    known = ledger.pair_policy(recipe.name)
    if known is None:
        ledger.note_pair_policy(recipe.name, policy(recipe))
    elif known != policy(recipe):
        yield (
            "pairs: this run's earlier pairs were made by another policy, or by a version that "
            "read replies otherwise; `prefmill rebuild` shows what changes and makes them again"
        )


def _again(ledger: Ledger, recipe: Recipe) -> Iterator[tuple[Concluded, Outcome]]:
    """Each judged prompt as it ended, and as it ends under the recipe's policy."""
    for was in ledger.concluded(recipe.name):
        generations, judgements = was.generations, was.judgements
        if was.earlier:
            generations, judgements = reread_judged(recipe, generations, judgements)
        for now in conclude(recipe, {was.key: generations}, {was.key: judgements}):
            # A prompt that was judged under an earlier recipe keeps its end if this one would not
            # have taken its judgements.
            if now.state != FAILED or now.generations != was.generations:
                yield was, now


def _differs(was: Concluded, now: Outcome) -> bool:
    before = (was.state, was.reason, was.pairs, was.generations)
    return before != (now.state, now.reason, now.pairs, now.generations)


def _end(state: str, reason: str | None) -> str:
    return f"{state} ({reason})" if reason else state
