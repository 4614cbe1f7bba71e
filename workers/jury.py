"""One judgement of one prompt: a judge is asked, its reply read, and asked again if need be.

A reply that does not keep the contract is never repaired into a rating: the judge is told what was
wrong, at most `CORRECTIONS` times, and then the judgement fails as `unparsable_judgement`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers.calls import Answered, CallEnded, Calls
from workers.concessions import LOGPROBS, RESPONSE_FORMAT, SEED, Conceded, ask, seed_of
from workers.errors import InvalidJudgement
from workers.judging import (
    aspect_hash,
    correction,
    expected_ratings,
    judge_prompt,
    parse_reply,
    presentation_orders,
    response_format,
)
from workers.recipe import Judge, Recipe
from workers.records import (
    UNPARSABLE,
    Generation,
    Judgement,
    Message,
    Prompt,
    Rating,
    canonical_json,
    sha256,
)
from workers.reply import CUT, cut_off

#: How often a judge is asked again after a reply that did not keep the contract.
CORRECTIONS = 2

#: Of a reply that did not keep the contract a judge is shown so many characters again.
SHOWN_AGAIN = 4000

#: Alternatives of each token that are asked for; more than five ratings there are not.
TOP_LOGPROBS = 5


@dataclass(frozen=True, slots=True)
class Question:
    """What one judge is asked about one prompt: an aspect of these texts, in this order."""

    judge: Judge
    aspect: str
    prompt: Prompt
    key: str
    texts: tuple[str, ...]
    order: tuple[int, ...]
    backward: bool

    @property
    def shown(self) -> list[str]:
        """The texts in the order in which the judge sees them."""
        shown = [""] * len(self.order)
        for text, position in zip(self.texts, self.order, strict=True):
            shown[position] = text
        return shown


def questions(
    recipe: Recipe, key: str, prompt: Prompt, generations: Sequence[Generation]
) -> list[Question]:
    """Everything that the recipe asks about a prompt's usable generations."""
    texts = tuple(generation.text or "" for generation in generations)
    orders = presentation_orders(recipe.seed, key, len(texts), recipe.judging.order)
    return [
        Question(judge, aspect, prompt, key, texts, order, backward=number > 0)
        for judge in recipe.judges
        for aspect in judge.aspects
        for number, order in enumerate(orders)
    ]


async def judgement(
    calls: Calls, recipe: Recipe, question: Question, known: Sequence[Judgement] = ()
) -> Judgement:
    """The answer to one question; a call that failed is a judgement with a reason.

    `known` are judgements that were paid for before: one that answers the same question is taken.
    Raises: HandedBack, BrokerError if calls cannot be made now.
    """
    made = _asked(recipe, question)
    for one in known:
        if _same(one, made):
            return replace(one, usage=replace(one.usage, retries=0, cached=1 + one.unparsable))
    said: list[Message] = []
    for _ in range(1 + CORRECTIONS):
        made = await _once(calls, recipe, question, made, said)
        if made.reason != UNPARSABLE:
            break
    return made


async def _once(
    calls: Calls, recipe: Recipe, question: Question, before: Judgement, said: list[Message]
) -> Judgement:
    """Ask once; a reply that is no judgement makes `said` longer, by it and by what was wrong."""
    asked = (question.judge.name, question.aspect, question.backward, before.unparsable)
    seed = seed_of(question.judge, recipe.seed, question.key, *asked)
    try:
        conceded = await _ask(calls, recipe, question, said, seed)
    except CallEnded as exc:
        reason, usage = f"judge_{exc.reason}", before.usage + exc.usage
        return replace(before, reason=reason, detail=exc.detail, usage=usage)
    answered = conceded.answered
    made = replace(
        before,
        reported_model=answered.completion.model,
        seed=None if SEED in conceded.without else seed,
        usage=before.usage + answered.usage,
    )
    try:
        ratings, score = _read(answered, recipe, question)
    except InvalidJudgement as exc:
        said += _told(answered, recipe, question, str(exc), conceded.without)
        unparsable = before.unparsable + 1
        return replace(made, reason=UNPARSABLE, detail=str(exc), unparsable=unparsable)
    ordered = tuple(ratings[position] for position in question.order)
    return replace(made, reason=None, detail="", ratings=ordered, score=score)


def _asked(recipe: Recipe, question: Question) -> Judgement:
    """A judgement without its answer."""
    judge = question.judge
    return Judgement(
        judge.name,
        judge.model,
        question.aspect,
        order=question.order,
        parameters=judge.parameters,
        weight=judge.weight,
        backward=question.backward,
        template=aspect_hash(question.aspect),
        texts=sha256(canonical_json(question.texts)),
    )


def _same(known: Judgement, asked: Judgement) -> bool:
    """Whether a judgement answers the question that is asked now."""
    if known.reason is not None:
        return False
    names = ("judge", "model", "aspect", "order", "backward", "template", "texts")
    parameters = dict(known.parameters) == dict(asked.parameters)
    return parameters and all(getattr(known, name) == getattr(asked, name) for name in names)


async def _ask(
    calls: Calls,
    recipe: Recipe,
    question: Question,
    said: Sequence[Message],
    seed: int | None,
) -> Conceded:
    judge, half_points = question.judge, recipe.judging.half_points

    def build(without: frozenset[str]) -> dict[str, Any]:
        structured = _structured(judge, without)
        asked = judge_prompt(
            question.aspect,
            question.prompt,
            question.shown,
            seed=recipe.seed,
            key=question.key,
            structured=structured,
            half_points=half_points,
        )
        request: dict[str, Any] = {"messages": [{"role": "user", "content": asked}, *said]}
        if SEED not in without:
            request["seed"] = seed
        if structured:
            request["response_format"] = response_format(
                len(question.texts), question.aspect, half_points=half_points
            )
        if recipe.judging.score == "expectation" and LOGPROBS not in without:
            request |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return request

    schema = [RESPONSE_FORMAT] if judge.structured == "auto" else []
    return await ask(calls, judge, build, [SEED, LOGPROBS, *schema], key=question.key)


def _structured(judge: Judge, without: frozenset[str]) -> bool:
    return judge.structured != "text" and RESPONSE_FORMAT not in without


def _read(answered: Answered, recipe: Recipe, question: Question) -> tuple[list[Rating], str]:
    """The ratings in the order in which the texts were shown, and how they were read.

    Raises: InvalidJudgement.
    """
    completion = answered.completion
    if completion.finish_reason == CUT:
        raise InvalidJudgement(f"the reply was {cut_off(completion.output_tokens)}")
    ratings = parse_reply(
        completion.text,
        len(question.texts),
        question.aspect,
        half_points=recipe.judging.half_points,
    )
    if recipe.judging.score == "expectation" and completion.tokens is not None:
        expected = expected_ratings(completion.text, completion.tokens, ratings)
        if expected is not None:
            return expected, "expectation"
    return ratings, "stated"


def _told(
    answered: Answered, recipe: Recipe, question: Question, why: str, without: frozenset[str]
) -> list[Message]:
    """The turns that ask a judge again: what it said, and what was wrong with it."""
    told = correction(
        why,
        len(question.texts),
        question.aspect,
        structured=_structured(question.judge, without),
        half_points=recipe.judging.half_points,
    )
    reply = answered.completion.text[:SHOWN_AGAIN]
    return [{"role": "assistant", "content": reply}, {"role": "user", "content": told}]
