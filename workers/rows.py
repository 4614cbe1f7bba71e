"""The rows of the dataset's configurations, built from what the ledger holds. Pure.

`default` trains unchanged with TRL (explicit prompt, message lists, verified with TRL 1.16); `full`
has everything, in distilabel's shape, and kept ties; `reward` repeats the prompt in both texts;
`kto` is unpaired; `human` has the pairs that follow from people's ratings. Nothing is stored twice:
all are derived from one prompt, its generations and judgements, and its pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workers.grouping import usable
from workers.judging import Verdict, rationales, verdict
from workers.provenance import metadata
from workers.records import Generation, Judgement, Message, Pair, Prompt

DEFAULT = "default"
FULL = "full"
REWARD = "reward"
KTO = "kto"
HUMAN = "human"

#: The configurations of a dataset's folder; `COLUMNS` names all there are.
CONFIGURATIONS = (DEFAULT, FULL, HUMAN)

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
REWARD_COLUMNS: Schema = DEFAULT_COLUMNS[1:]
KTO_COLUMNS: Schema = (
    ("prompt", "messages"),
    ("prompt_id", "string"),
    ("completion", "messages"),
    ("label", "bool"),
    ("model", "string"),
    ("rating", "float"),
)
HUMAN_COLUMNS: Schema = (
    *DEFAULT_COLUMNS,
    ("annotators", "int"),
    ("disagreement", "float"),
)
COLUMNS = {
    DEFAULT: DEFAULT_COLUMNS,
    FULL: FULL_COLUMNS,
    REWARD: REWARD_COLUMNS,
    KTO: KTO_COLUMNS,
    HUMAN: HUMAN_COLUMNS,
}

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
#: Endings of names that the collator of TRL's ORPOTrainer takes for tensors.
TRL_ENDINGS = ("_input_ids", "_attention_mask", "_labels", "_pixel_values", "_logps")
_OURS = frozenset(name for columns in COLUMNS.values() for name, _ in columns)


def ride_along_names(source_columns: Iterable[str]) -> dict[str, str]:
    """Theirs to ours: the name under which each source column rides along.

    A name that is one of ours, or that TRL acts on, gets the prefix `source_`, and again until it
    is free; one whose ending TRL acts on gets another ending as well.
    """
    theirs = list(source_columns)
    names: dict[str, str] = {}
    for column in theirs:
        # A prefix would leave the ending, or make one of what stands alone.
        name = f"source_{column}_column" if f"_{column}".endswith(TRL_ENDINGS) else column
        while _acts(name) or name in names.values() or (name != column and name in theirs):
            name = f"source_{name}"
        names[column] = name
    return names


def _acts(name: str) -> bool:
    if name in _OURS or name in TRL_NAMES:
        return True
    return name.endswith("_ids") and not name.startswith("source_")


def default_row(prompt: Prompt, pair: Pair) -> dict[str, Any]:
    """One row of `default`, without the source's columns.

    A generator's own system prompt is not in `prompt`: chosen and rejected may have had two.
    """
    return {
        "prompt": prompt.conversation(),
        "prompt_id": prompt.prompt_id,
        "chosen": [_answer(pair.chosen)],
        "chosen_model": pair.chosen_model,
        "chosen_rating": pair.chosen_rating,
        "rejected": [_answer(pair.rejected)],
        "rejected_model": pair.rejected_model,
        "rejected_rating": pair.rejected_rating,
    }


def reward_row(prompt: Prompt, pair: Pair) -> dict[str, Any]:
    """One row of `reward` (implicit prompt: TRL's RewardTrainer), without the source's columns."""
    row = default_row(prompt, pair)
    asked = row.pop("prompt")
    return row | {"chosen": asked + row["chosen"], "rejected": asked + row["rejected"]}


def human_row(prompt: Prompt, pair: Pair, people: Mapping[str, Any]) -> dict[str, Any]:
    """One row of `human`, without the source's columns: `default` and how sure people were.

    `people` is what `workers.curation` makes of their answers, in JSON. `disagreement` is in points
    of the rating, null if one person answered.
    """
    return default_row(prompt, pair) | {
        "annotators": people["annotators"],
        "disagreement": people["disagreement"],
    }


def kto_rows(prompt: Prompt, pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """A prompt's rows of `kto` (unpaired: TRL's KTOTrainer), without the source's columns.

    Each text comes once. One that is chosen in one pair and rejected in another has no label that
    is true, and is left out.
    """
    texts: dict[str, dict[bool, tuple[str, float]]] = {}
    for pair in pairs:
        chosen, rejected = texts.setdefault(pair.chosen, {}), texts.setdefault(pair.rejected, {})
        chosen.setdefault(True, (pair.chosen_model, pair.chosen_rating))
        rejected.setdefault(False, (pair.rejected_model, pair.rejected_rating))
    return [
        {
            "prompt": prompt.conversation(),
            "prompt_id": prompt.prompt_id,
            "completion": [_answer(text)],
            "label": label,
            "model": model,
            "rating": rating,
        }
        for text, labels in texts.items()
        if len(labels) == 1
        for label, (model, rating) in labels.items()
    ]


def full_row(
    prompt: Prompt,
    pair: Pair,
    generations: Sequence[Generation],
    judgements: Sequence[Judgement],
    *,
    key: str = "",
    recipe_hash: str = "",
) -> dict[str, Any]:
    """One row of `full`, without the source's columns.

    `key` and `recipe_hash` are the prompt's and the recipe's by which it was judged.
    """
    texts = usable(generations)
    judged = verdict(judgements, len(texts), quorum=1)
    ratings: Sequence[float | None] = [None] * len(texts)
    counted: Sequence[str] = ()
    if isinstance(judged, Verdict):
        ratings, counted = judged.ratings, judged.judges
    models = [judgement.model for judgement in judgements if judgement.judge in counted]
    asked = prompt.conversation()
    return {
        "instruction": prompt.instruction,
        "system_prompt": prompt.system_prompt,
        "generations": [generation.text for generation in texts],
        "generation_models": [generation.model for generation in texts],
        "ratings": list(ratings),
        "rationales": rationales(judgements, len(texts)),
        "model_name": "+".join(dict.fromkeys(models)),
        "metadata": metadata(key, recipe_hash, pair, generations, judgements),
        **default_row(prompt, pair),
        "prompt": prompt.instruction,
        "chosen": [*asked, _answer(pair.chosen)],
        "rejected": [*asked, _answer(pair.rejected)],
    }


def _answer(content: str) -> Message:
    return {"role": "assistant", "content": content}
