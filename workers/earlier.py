"""What an earlier version stored of replies, read by today's rules. Pure.

Those versions kept half texts, thoughts and withheld texts as answers. A generation that is none by
today's rules loses its text and gets the reason; judgements lose its rating and keep the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from workers.errors import CallFailed
from workers.recipe import Recipe
from workers.records import Generation, Judgement
from workers.reply import CUT, Completion, answer, cut_off


def reread(recipe: Recipe, generations: Iterable[Generation]) -> tuple[Generation, ...]:
    """A prompt's generations by today's rules; those that had no text stay as they are."""
    keep_cut = {one.name for one in recipe.generators if one.truncated == "keep"}
    return tuple(_reread(one, keep_cut=one.generator in keep_cut) for one in generations)


def reread_judged(
    recipe: Recipe, generations: Sequence[Generation], judgements: Iterable[Judgement]
) -> tuple[tuple[Generation, ...], tuple[Judgement, ...]]:
    """The same with their judgements, whose ratings are those of usable generations, in order."""
    now = reread(recipe, generations)
    kept = [new.usable for old, new in zip(generations, now, strict=True) if old.usable]
    return now, tuple(_of_the_kept(judgement, kept) for judgement in judgements)


def _reread(generation: Generation, *, keep_cut: bool) -> Generation:
    if generation.text is None or not generation.usable:
        return generation
    tokens = generation.usage.output_tokens
    reply = Completion(
        generation.text, generation.finish_reason, generation.reported_model, 0, tokens
    )
    try:
        now = answer(reply)
    except CallFailed as exc:
        return replace(generation, text=None, reason=exc.reason, detail=exc.detail)
    if now.finish_reason == CUT and not keep_cut:
        return replace(generation, text=None, reason="truncated", detail=cut_off(tokens))
    return replace(generation, text=now.text, finish_reason=now.finish_reason)


def _of_the_kept(judgement: Judgement, kept: Sequence[bool]) -> Judgement:
    """A judgement without the ratings of texts that are no answers any more."""
    if all(kept) or judgement.reason is not None:
        return judgement
    places = [place for place, text in zip(judgement.order, kept, strict=True) if text]
    return replace(
        judgement,
        ratings=tuple(r for r, text in zip(judgement.ratings, kept, strict=True) if text),
        order=tuple(sorted(places).index(place) for place in places),
    )
