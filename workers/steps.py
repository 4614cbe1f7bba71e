"""What happens to the prompts of one batch: generate, judge, conclude.

A batch is transport, never a unit of failure: each prompt is asked, retried, judged and concluded
by itself, and what goes wrong with it becomes data with a reason. Knows no Celery, no database.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from workers.calls import Answered, CallEnded, Calls
from workers.errors import InvalidJudgement
from workers.grouping import usable, why_unusable
from workers.judging import judge_prompt, parse_reply, presentation_order, response_format
from workers.pairing import make_pairs, worth_judging
from workers.recipe import Generator, Judge, Recipe
from workers.records import (
    FAILED,
    PAIRED,
    REJECTED,
    Generation,
    Judgement,
    Outcome,
    Prompt,
    Rejected,
)
from workers.rows import aggregated

T = TypeVar("T")

TOO_FEW = "too_few_generations"
UNPARSABLE = "unparsable_judgement"
TRUNCATED = "truncated"


async def generate(
    calls: Calls,
    generator: Generator,
    prompts: Mapping[str, Prompt],
    known: Mapping[str, Sequence[Generation]] = MappingProxyType({}),
) -> dict[str, Generation]:
    """One generation for each prompt, by key; a call that failed is a generation with a reason.

    `known` are generations that a prompt had when it failed before: usable ones are not paid again.
    Raises: HandedBack, BrokerError if calls cannot be made now.
    """
    made = {key: _known(generator, known.get(key, ())) for key in prompts}
    missing = [key for key, generation in made.items() if generation is None]
    done = await _all(_generation(calls, generator, key, prompts[key]) for key in missing)
    found = dict(zip(missing, done, strict=True))
    return {key: generation or found[key] for key, generation in made.items()}


def _known(generator: Generator, known: Sequence[Generation]) -> Generation | None:
    """The usable generation among these that this very generator made."""
    for made in known:
        same = (made.generator, made.model) == (generator.name, generator.model)
        if same and made.usable and dict(made.parameters) == generator.parameters:
            return replace(made, usage=replace(made.usage, retries=0, cached=True))
    return None


async def _generation(calls: Calls, generator: Generator, key: str, prompt: Prompt) -> Generation:
    request = {"messages": [{"role": "user", "content": prompt.instruction}]}
    asked: dict[str, Any] = {"model": generator.model, "parameters": generator.parameters}
    try:
        answered = await calls.ask(generator, request, key=key)
    except CallEnded as exc:
        return Generation(
            generator.name, reason=exc.reason, detail=exc.detail, usage=exc.usage, **asked
        )
    completion = answered.completion
    cut = completion.finish_reason == "length" and generator.truncated == "fail"
    return Generation(
        generator.name,
        text=None if cut else completion.text,
        reason=TRUNCATED if cut else None,
        detail=f"cut off after {completion.output_tokens} tokens" if cut else "",
        finish_reason=completion.finish_reason,
        reported_model=completion.model,
        usage=answered.usage,
        **asked,
    )


async def judge(
    calls: Calls,
    recipe: Recipe,
    prompts: Mapping[str, Prompt],
    generations: Mapping[str, Sequence[Generation]],
) -> dict[str, list[Judgement]]:
    """The judgements of each prompt that has something to compare, by key.

    Raises: HandedBack, BrokerError if calls cannot be made now.
    """
    keys = [
        key for key in generations if key in prompts and worth_judging(usable(generations[key]))
    ]
    done = await _all(
        _judgement(calls, recipe, key, prompts[key], usable(generations[key])) for key in keys
    )
    return {key: [judgement] for key, judgement in zip(keys, done, strict=True)}


async def _judgement(
    calls: Calls,
    recipe: Recipe,
    key: str,
    prompt: Prompt,
    generations: Sequence[Generation],
) -> Judgement:
    asked, aspect = recipe.judges[0], recipe.judges[0].aspects[0]
    order = presentation_order(recipe.seed, key, len(generations), recipe.judging.order)
    shown = [""] * len(order)
    for generation, position in zip(generations, order, strict=True):
        shown[position] = generation.text or ""
    made = partial(
        Judgement, asked.name, asked.model, aspect, order=order, parameters=asked.parameters
    )
    try:
        answered = await ask_judge(calls, recipe, asked, aspect, prompt.instruction, shown, key=key)
    except CallEnded as exc:
        return made(reason=f"judge_{exc.reason}", detail=exc.detail, usage=exc.usage)
    completion = answered.completion
    made = partial(made, reported_model=completion.model, usage=answered.usage)
    try:
        if completion.finish_reason == "length":
            raise InvalidJudgement(f"cut off after {completion.output_tokens} tokens")
        ratings = parse_reply(completion.text, len(order), aspect)
    except InvalidJudgement as exc:
        return made(reason=UNPARSABLE, detail=str(exc))
    return made(ratings=tuple(ratings[position] for position in order))


async def ask_judge(
    calls: Calls,
    recipe: Recipe,
    asked: Judge,
    aspect: str,
    instruction: str,
    shown: Sequence[str],
    *,
    key: str,
) -> Answered:
    """A judge's reply, held to a schema where the endpoint can.

    With `structured: auto` an endpoint that refuses the request is asked again for plain text, and
    from then on by this process for plain text alone. Raises: CallEnded, BrokerError.
    """

    async def _ask(structured: bool) -> Answered:
        prompt = judge_prompt(
            aspect, instruction, shown, seed=recipe.seed, key=key, structured=structured
        )
        request: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if structured:
            request["response_format"] = response_format(len(shown))
        return await calls.ask(asked, request, key=key)

    if asked.structured == "text" or asked.name in calls.text_only:
        return await _ask(False)
    try:
        return await _ask(True)
    except CallEnded as exc:
        if asked.structured != "auto" or exc.reason != "bad_request":
            raise
    answered = await _ask(False)
    calls.text_only.add(asked.name)
    return answered


def conclude(
    recipe: Recipe,
    generations: Mapping[str, Sequence[Generation]],
    judgements: Mapping[str, Sequence[Judgement]],
) -> list[Outcome]:
    """The outcome of each prompt: paired, rejected with a reason, or failed with a reason. Pure.

    A prompt whose judgement is missing has no outcome: it stays in flight, to be published again.
    """
    return [
        _outcome(recipe, key, tuple(made), tuple(judgements.get(key, ())))
        for key, made in generations.items()
        if judgements.get(key) or not worth_judging(usable(made))
    ]


def _outcome(
    recipe: Recipe,
    key: str,
    generations: tuple[Generation, ...],
    judgements: tuple[Judgement, ...],
) -> Outcome:
    texts = usable(generations)
    if len(texts) < 2:
        return Outcome(key, FAILED, TOO_FEW, why_unusable(generations), generations)
    for judgement in judgements:
        if judgement.reason is not None:
            return Outcome(key, FAILED, judgement.reason, judgement.detail, generations, judgements)
    made = make_pairs(texts, aggregated(judgements, len(texts)), recipe.pairs)
    if isinstance(made, Rejected):
        return Outcome(key, REJECTED, made.reason, "", generations, judgements)
    return Outcome(key, PAIRED, None, "", generations, judgements, tuple(made))


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result in order. An error waits until all have ended: no call is left half paid."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]
