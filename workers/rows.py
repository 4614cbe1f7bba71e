"""The rows of the dataset's configurations, built from what the ledger holds. Pure.

`default` trains unchanged with TRL (explicit prompt, message lists, verified with TRL 1.16);
`full` has everything, in distilabel's shape. Nothing is stored twice: both are derived from one
prompt, its generations and judgements, and one pair.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workers.grouping import usable
from workers.records import Generation, Judgement, Pair, Prompt

DEFAULT = "default"
FULL = "full"
CONFIGURATIONS = (DEFAULT, FULL)

#: Our columns and their types, in order; the source's own columns come before them.
Schema = tuple[tuple[str, str], ...]
DEFAULT_COLUMNS: Schema = (
    ("prompt", "messages"),
    ("prompt_id", "string"),
    ("chosen", "messages"),
    ("chosen_model", "string"),
    ("chosen_rating", "float"),
    ("rejected", "messages"),
    ("rejected_model", "string"),
    ("rejected_rating", "float"),
)
FULL_COLUMNS: Schema = (
    ("instruction", "string"),
    ("system_prompt", "string"),
    ("generations", "strings"),
    ("generation_models", "strings"),
    ("ratings", "floats"),
    ("rationales", "strings"),
    ("model_name", "string"),
    ("metadata", "string"),
    ("prompt", "string"),
    *DEFAULT_COLUMNS[1:],
)
COLUMNS = {DEFAULT: DEFAULT_COLUMNS, FULL: FULL_COLUMNS}

#: Names that TRL's trainers act on (trl/data_utils.py), so no source column may bear them.
TRL_NAMES = frozenset(
    {
        "margin",
        "image",
        "images",
        "tools",
        "chat_template_kwargs",
        "messages",
        "completion",
        "label",
    }
)
_OURS = frozenset(name for name, _ in (*DEFAULT_COLUMNS, *FULL_COLUMNS))


def ride_along_names(source_columns: Iterable[str]) -> dict[str, str]:
    """Theirs to ours: the name under which each source column rides along.

    A name that is one of ours, or that TRL acts on, gets the prefix `source_`, and again until it
    is free.
    """
    theirs = list(source_columns)
    names: dict[str, str] = {}
    for column in theirs:
        name = column
        while _acts(name) or name in names.values() or (name != column and name in theirs):
            name = f"source_{name}"
        names[column] = name
    return names


def _acts(name: str) -> bool:
    if name in _OURS or name in TRL_NAMES:
        return True
    if name.startswith("source_"):
        return False
    return name.endswith("_ids") or (name.startswith("ref_") and name.endswith("_logps"))


def default_row(prompt: Prompt, pair: Pair) -> dict[str, Any]:
    """One row of `default`, without the source's columns."""
    return {
        "prompt": [_message("user", prompt.instruction)],
        "prompt_id": prompt.prompt_id,
        "chosen": [_message("assistant", pair.chosen)],
        "chosen_model": pair.chosen_model,
        "chosen_rating": pair.chosen_rating,
        "rejected": [_message("assistant", pair.rejected)],
        "rejected_model": pair.rejected_model,
        "rejected_rating": pair.rejected_rating,
    }


def full_row(
    prompt: Prompt,
    pair: Pair,
    generations: Sequence[Generation],
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """One row of `full`, without the source's columns."""
    texts = usable(generations)
    asked = _message("user", prompt.instruction)
    return {
        "instruction": prompt.instruction,
        "system_prompt": None,
        "generations": [generation.text for generation in texts],
        "generation_models": [generation.model for generation in texts],
        "ratings": aggregated(judgements, len(texts)),
        "rationales": rationales(judgements, len(texts)),
        "model_name": "+".join(dict.fromkeys(judgement.model for judgement in judgements)),
        "metadata": _metadata(generations, judgements),
        **default_row(prompt, pair),
        "prompt": prompt.instruction,
        "chosen": [asked, _message("assistant", pair.chosen)],
        "rejected": [asked, _message("assistant", pair.rejected)],
    }


def aggregated(judgements: Sequence[Judgement], texts: int) -> list[float | None]:
    """The rating of each text over all judgements: with one judgement, that judgement's."""
    rated = [judgement.ratings for judgement in judgements if judgement.reason is None]
    if not rated:
        return [None] * texts
    return [rating.rating for rating in rated[0]]


def rationales(judgements: Sequence[Judgement], texts: int) -> list[str]:
    """The rationale of each text over all judgements: with one judgement, that judgement's."""
    rated = [judgement.ratings for judgement in judgements if judgement.reason is None]
    return [rating.rationale for rating in rated[0]] if rated else [""] * texts


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _metadata(generations: Sequence[Generation], judgements: Sequence[Judgement]) -> str:
    """A JSON object, for people and for later questions; trainers do not read it."""
    return json.dumps(
        {
            "generations": [_generation_facts(generation) for generation in generations],
            "judgements": [_judgement_facts(judgement) for judgement in judgements],
        },
        ensure_ascii=False,
    )


def _generation_facts(generation: Generation) -> Mapping[str, Any]:
    return {
        "generator": generation.generator,
        "model": generation.model,
        "reported_model": generation.reported_model,
        "parameters": dict(generation.parameters),
        "finish_reason": generation.finish_reason,
        "truncated": generation.finish_reason == "length",
        "failed": generation.reason,
        "input_tokens": generation.usage.input_tokens,
        "output_tokens": generation.usage.output_tokens,
    }


def _judgement_facts(judgement: Judgement) -> Mapping[str, Any]:
    return {
        "judge": judgement.judge,
        "model": judgement.model,
        "reported_model": judgement.reported_model,
        "parameters": dict(judgement.parameters),
        "aspect": judgement.aspect,
        "order": list(judgement.order),
        "ratings": [rating.rating for rating in judgement.ratings],
        "types": [rating.type for rating in judgement.ratings],
        "input_tokens": judgement.usage.input_tokens,
        "output_tokens": judgement.usage.output_tokens,
    }
