"""What happens to the prompts of one batch: generate, then judge.

A batch is transport, never a unit of failure: each prompt is asked, retried and judged by itself,
and what goes wrong with it becomes data with a reason. Knows no Celery, no database.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from workers.calls import CallEnded, Calls
from workers.concessions import SEED, ask, seed_of
from workers.grouping import usable
from workers.jury import judgement, questions
from workers.pairing import worth_judging
from workers.recipe import Generator, Recipe
from workers.records import Generation, Judgement, Prompt
from workers.reply import CUT, cut_off

T = TypeVar("T")

TRUNCATED = "truncated"


async def generate(
    calls: Calls,
    recipe: Recipe,
    generator: Generator,
    prompts: Mapping[str, Prompt],
    known: Mapping[str, Sequence[Generation]] = MappingProxyType({}),
) -> dict[str, list[Generation]]:
    """A generator's samples for each prompt, by key; a call that failed is one with a reason.

    `known` are generations that a prompt had when it failed before: usable ones are not paid again.
    Raises: HandedBack, BrokerError if calls cannot be made now.
    """
    wanted = [(key, sample) for key in prompts for sample in range(generator.samples)]
    done = await _all(
        _generation(calls, recipe, generator, key, prompts[key], sample, known.get(key, ()))
        for key, sample in wanted
    )
    made: dict[str, list[Generation]] = {key: [] for key in prompts}
    for (key, _), generation in zip(wanted, done, strict=True):
        made[key].append(generation)
    return made


async def _generation(
    calls: Calls,
    recipe: Recipe,
    generator: Generator,
    key: str,
    prompt: Prompt,
    sample: int,
    known: Sequence[Generation],
) -> Generation:
    asked = Generation(
        generator.name,
        generator.model,
        parameters=generator.parameters,
        sample=sample,
        system_prompt=None if prompt.system_prompt else generator.system_prompt,
    )
    for made in known:
        if made.usable and _same(made, asked):
            return replace(made, usage=replace(made.usage, retries=0, cached=1))
    seed = seed_of(generator, recipe.seed, key, generator.name, sample)

    def build(without: frozenset[str]) -> dict[str, Any]:
        request: dict[str, Any] = {"messages": prompt.conversation(generator.system_prompt)}
        return request if SEED in without else {**request, "seed": seed}

    try:
        conceded = await ask(calls, generator, build, [SEED], key=key)
    except CallEnded as exc:
        return replace(asked, reason=exc.reason, detail=exc.detail, usage=exc.usage)
    completion = conceded.answered.completion
    cut = completion.finish_reason == CUT and generator.truncated == "fail"
    return replace(
        asked,
        text=None if cut else completion.text,
        reason=TRUNCATED if cut else None,
        detail=cut_off(completion.output_tokens) if cut else "",
        finish_reason=completion.finish_reason,
        reported_model=completion.model,
        usage=conceded.answered.usage,
        seed=None if SEED in conceded.without else seed,
    )


def _same(known: Generation, asked: Generation) -> bool:
    """Whether a generation is what would be asked for now, but for its seed."""
    names = ("generator", "sample", "model", "system_prompt")
    parameters = dict(known.parameters) == dict(asked.parameters)
    return parameters and all(getattr(known, name) == getattr(asked, name) for name in names)


async def judge(
    calls: Calls,
    recipe: Recipe,
    prompts: Mapping[str, Prompt],
    generations: Mapping[str, Sequence[Generation]],
    known: Mapping[str, Sequence[Judgement]] = MappingProxyType({}),
) -> dict[str, list[Judgement]]:
    """The judgements of each prompt that has something to compare, by key.

    `known` are judgements that a prompt had when it failed before: good ones are not paid again.
    Raises: HandedBack, BrokerError if calls cannot be made now.
    """
    asked = [
        question
        for key, made in generations.items()
        if key in prompts and worth_judging(usable(made))
        for question in questions(recipe, key, prompts[key], usable(made))
    ]
    done = await _all(
        judgement(calls, recipe, question, known.get(question.key, ())) for question in asked
    )
    made_of: dict[str, list[Judgement]] = {}
    for question, made in zip(asked, done, strict=True):
        made_of.setdefault(question.key, []).append(made)
    return made_of


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result in order. An error waits until all have ended: no call is left half paid."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]
