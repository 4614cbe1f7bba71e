"""One prompt, step by step: generate, group, judge, format. Nothing is stored anywhere."""

from collections.abc import Iterator
from dataclasses import asdict

from workers import steps
from workers.admission import Unlimited
from workers.calls import Calls
from workers.grouping import group_columns, usable
from workers.outcomes import conclude
from workers.pairing import worth_judging
from workers.recipe import Recipe
from workers.records import Generation, Judgement, Prompt
from workers.rows import default_row
from workers.settings import api_keys

Step = tuple[str, object]


def trial(recipe: Recipe, instruction: str) -> Iterator[Step]:
    """What each step makes of one prompt, as (step, plain value) as soon as it is there.

    Raises: SettingsError if a key is missing.
    """
    prompt = Prompt(instruction)
    key = prompt.key(recipe.name)
    calls = Calls(recipe, api_keys(recipe), Unlimited())
    try:
        generations: list[Generation] = []
        for generator in recipe.generators:
            for made in calls.run(steps.generate(calls, recipe, generator, {key: prompt}))[key]:
                generations.append(made)
                sample = f" {made.sample + 1}" if generator.samples > 1 else ""
                yield f"generate {generator.name}{sample}", _plain(made)
        yield "group", _grouped(generations)
        judged = calls.run(steps.judge(calls, recipe, {key: prompt}, {key: generations}))
        for judgement in judged.get(key, []):
            direction = ", backward" if judgement.backward else ""
            yield f"judge {judgement.judge}: {judgement.aspect}{direction}", _plain(judgement)
        if not worth_judging(usable(generations)):
            yield "judge", "not asked: fewer than two different texts"
        outcome = conclude(recipe, {key: generations}, judged)[0]
        yield (
            "outcome",
            {"state": outcome.state, "reason": outcome.reason, "detail": outcome.detail},
        )
        for pair in outcome.pairs:
            yield "format", default_row(prompt, pair)
    finally:
        calls.close()


def _grouped(generations: list[Generation]) -> object:
    inputs = [[{"generation": g.text, "model_name": g.model}] for g in usable(generations)]
    return group_columns(
        *inputs,
        columns=["generation", "model_name"],
        output_columns=["generations", "generation_models"],
    )


def _plain(value: Generation | Judgement) -> dict[str, object]:
    return {name: found for name, found in asdict(value).items() if found not in (None, "")}
