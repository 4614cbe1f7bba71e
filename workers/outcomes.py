"""How prompts end: from generations and judgements to paired, rejected or failed. Pure.

The same function concludes fresh work and makes pairs again under another policy, so both come to
the same rows.
"""

from collections.abc import Mapping, Sequence

from workers.grouping import usable, why_unusable
from workers.judging import Verdict, verdict
from workers.pairing import make_pairs, worth_judging
from workers.recipe import Recipe
from workers.records import (
    FAILED,
    PAIRED,
    REJECTED,
    Generation,
    Judgement,
    Outcome,
    Pair,
    Rejected,
)

TOO_FEW = "too_few_generations"


def conclude(
    recipe: Recipe,
    generations: Mapping[str, Sequence[Generation]],
    judgements: Mapping[str, Sequence[Judgement]],
) -> list[Outcome]:
    """The outcome of each prompt: paired, rejected with a reason, or failed with a reason.

    A prompt whose judgement is missing has no outcome: it stays in flight, to be published again.
    """
    recipe_hash = recipe.hash
    return [
        _outcome(recipe, recipe_hash, key, tuple(made), tuple(judgements.get(key, ())))
        for key, made in generations.items()
        if judgements.get(key) or not worth_judging(usable(made))
    ]


def _outcome(
    recipe: Recipe,
    recipe_hash: str,
    key: str,
    generations: tuple[Generation, ...],
    judgements: tuple[Judgement, ...],
) -> Outcome:
    def ended(
        state: str, reason: str | None, detail: str = "", pairs: tuple[Pair, ...] = ()
    ) -> Outcome:
        return Outcome(key, state, reason, detail, generations, judgements, pairs, recipe_hash)

    texts = usable(generations)
    if len(texts) < 2:
        return ended(FAILED, TOO_FEW, why_unusable(generations))
    judged: Verdict | Judgement = Verdict((None,) * len(texts), frozenset(), ())
    if judgements:
        # Judged before the recipe asked for more judges than it then had: all of them are enough.
        asked = len({judgement.judge for judgement in judgements})
        judged = verdict(judgements, len(texts), min(recipe.judging.quorum, asked))
    if isinstance(judged, Judgement):
        return ended(FAILED, judged.reason, judged.detail)
    made = make_pairs(
        texts,
        judged.ratings,
        recipe.pairs,
        flipped=judged.flipped,
        draw=f"{recipe.seed}:{key}:pairs",
    )
    if isinstance(made, Rejected):
        return ended(REJECTED, made.reason, pairs=made.kept)
    return ended(PAIRED, None, pairs=tuple(made))
