"""What a judge is asked: the order of the texts, the prompt, the schema of the reply.

Everything is derived from the run's seed and the prompt's key, so that the same request is
byte-identical when it is made again. Delimiters carry a nonce that no generation can know.
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workers.records import sha256

#: The most characters of a rationale in a schema-constrained reply.
RATIONALE_CHARACTERS = 200

_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701 (plain text for a model, not HTML for a browser)
    keep_trailing_newline=False,
)


def presentation_order(seed: int, key: str, texts: int, order: str) -> tuple[int, ...]:
    """The position (from 0) at which each of `texts` generations is shown to the judge.

    `shuffled` is drawn anew for each prompt: judges favour positions systematically, most of all
    when answers are close (arXiv 2305.17926, 2406.07791).
    """
    positions = list(range(texts))
    if order == "shuffled":
        random.Random(sha256(f"{seed}:{key}:order")).shuffle(positions)
    return tuple(positions)


def judge_prompt(
    aspect: str, instruction: str, texts: Sequence[str], *, seed: int, key: str, structured: bool
) -> str:
    """The one user message that asks for a judgement of `texts`, in the order they are given."""
    return _ENVIRONMENT.get_template(f"{aspect}.txt.j2").render(
        instruction=instruction,
        texts=texts,
        nonce=sha256(f"{seed}:{key}:nonce")[:16],
        structured=structured,
    )


def response_format(texts: int) -> dict[str, Any]:
    """OpenAI's `response_format` for a judgement of `texts` texts: rationale before rating."""
    entry = {
        "type": "object",
        "properties": {
            "id": {"type": "integer", "enum": list(range(1, texts + 1))},
            "rationale": {"type": "string", "maxLength": RATIONALE_CHARACTERS},
            "rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
        },
        "required": ["id", "rationale", "rating"],
        "additionalProperties": False,
    }
    listed = {"type": "array", "items": entry, "minItems": texts, "maxItems": texts}
    schema = {
        "type": "object",
        "properties": {"texts": listed},
        "required": ["texts"],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "judgement", "strict": True, "schema": schema},
    }


@cache
def template_hash() -> str:
    """SHA-256 (hex) over every judge template and the bound on rationales."""
    parts = [path.name + "\n" + path.read_text("utf-8") for path in sorted(_TEMPLATES.iterdir())]
    return sha256("\n".join([*parts, str(RATIONALE_CHARACTERS)]))
