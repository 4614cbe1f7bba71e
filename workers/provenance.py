"""Where a row comes from, as the JSON text in its `metadata`. Pure.

For people and for later questions; trainers do not read it. Nothing in it depends on when or where
a run ran, or on what had to be tried twice: the same answers give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.judging import flips
from workers.records import Generation, Judgement, Pair
from workers.reply import CUT


def metadata(
    key: str,
    recipe_hash: str,
    pair: Pair,
    generations: Sequence[Generation],
    judgements: Sequence[Judgement],
) -> str:
    """A JSON object: the pair, every generation and judgement of its prompt, and the recipe."""
    return json.dumps(
        {
            "prompt_key": key,
            "recipe_hash": recipe_hash,
            "pair": {
                "margin": pair.chosen_rating - pair.rejected_rating,
                "tie": pair.tie,
                "flipped": pair.flipped,
            },
            "flips": {
                judge: {"flipped": flipped, "compared": compared}
                for judge, (flipped, compared) in flips(judgements).items()
            },
            "generations": [_generation(generation) for generation in generations],
            "judgements": [_judgement(judgement) for judgement in judgements],
        },
        ensure_ascii=False,
    )


def _generation(generation: Generation) -> Mapping[str, Any]:
    return {
        "generator": generation.generator,
        "sample": generation.sample,
        "model": generation.model,
        "reported_model": generation.reported_model,
        "parameters": dict(sorted(generation.parameters.items())),
        "seed": generation.seed,
        "system_prompt": generation.system_prompt,
        "finish_reason": generation.finish_reason,
        "truncated": generation.finish_reason == CUT,
        "failed": generation.reason,
        "input_tokens": generation.usage.input_tokens,
        "output_tokens": generation.usage.output_tokens,
    }


def _judgement(judgement: Judgement) -> Mapping[str, Any]:
    return {
        "judge": judgement.judge,
        "model": judgement.model,
        "reported_model": judgement.reported_model,
        "weight": judgement.weight,
        "parameters": dict(sorted(judgement.parameters.items())),
        "seed": judgement.seed,
        "aspect": judgement.aspect,
        "template": judgement.template,
        "backward": judgement.backward,
        "order": list(judgement.order),
        "score": judgement.score,
        "ratings": [rating.rating for rating in judgement.ratings],
        "stated": [
            rating.rating if rating.stated is None else rating.stated
            for rating in judgement.ratings
        ],
        "types": [rating.type for rating in judgement.ratings],
        "rationales": [rating.rationale for rating in judgement.ratings],
        "unparsable": judgement.unparsable,
        "failed": judgement.reason,
        "input_tokens": judgement.usage.input_tokens,
        "output_tokens": judgement.usage.output_tokens,
    }
