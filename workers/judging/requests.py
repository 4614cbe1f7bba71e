"""What a judge is asked: the orders of the texts, the prompt, the schema of the reply.

Everything is derived from the run's seed and the prompt's key, so that the same request is
byte-identical when it is made again. Delimiters carry a nonce that no generation can know. The
aspects and their scales are those of UltraFeedback (arXiv 2310.01377), in words of our own.
"""

import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workers.judging.replies import TYPED_ASPECTS
from workers.records import Prompt, sha256

#: The most characters of a rationale in a schema-constrained reply.
RATIONALE_CHARACTERS = 200

#: Types of informativeness and of hallucination are numbered from 1 to this.
TYPES = 3

#: The most characters of what was wrong with a reply, as its judge is told.
WHY_CHARACTERS = 200

_SUFFIX = ".txt.j2"
_SHARED = ("judgement", "form", "correction")
_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701 (plain text for a model, not HTML for a browser)
    trim_blocks=True,
    lstrip_blocks=True,
)


def presentation_orders(seed: int, key: str, texts: int, order: str) -> list[tuple[int, ...]]:
    """The orders in which a judge is shown `texts` generations, one for each judgement.

    `order[i]` is the position (from 0) of generation `i`. `shuffled` is drawn anew for each prompt,
    and `both` adds its reverse: judges favour positions systematically, most of all when answers
    are close (arXiv 2305.17926, 2406.07791).
    """
    positions = list(range(texts))
    if order != "as-given":
        random.Random(sha256(f"{seed}:{key}:order")).shuffle(positions)
    forward = tuple(positions)
    if order != "both":
        return [forward]
    return [forward, tuple(texts - 1 - position for position in forward)]


def judge_prompt(
    aspect: str,
    prompt: Prompt,
    texts: Sequence[str],
    *,
    seed: int,
    key: str,
    structured: bool,
    half_points: bool,
) -> str:
    """The one user message that asks for a judgement of `texts`, in the order they are given.

    A chat, or a prompt with a system prompt, is shown turn by turn, each between its own marks.
    """
    return _render(
        aspect,
        instruction=prompt.instruction,
        turns=prompt.conversation() if prompt.messages or prompt.system_prompt else [],
        texts=texts,
        nonce=sha256(f"{seed}:{key}:nonce")[:16],
        structured=structured,
        half_points=half_points,
        typed=aspect in TYPED_ASPECTS,
    )


def correction(why: str, texts: int, aspect: str, *, structured: bool, half_points: bool) -> str:
    """The user message that asks a judge again whose reply did not keep the contract.

    `why` is the InvalidJudgement's message; it may quote the reply, so it is cut to one short line.
    """
    line = " ".join(why.split())
    return _render(
        "correction",
        why=line if len(line) <= WHY_CHARACTERS else line[: WHY_CHARACTERS - 3] + "...",
        count=texts,
        structured=structured,
        half_points=half_points,
        typed=aspect in TYPED_ASPECTS,
    )


def response_format(texts: int, aspect: str, *, half_points: bool) -> dict[str, Any]:
    """OpenAI's `response_format` for a judgement of `texts` texts: rationale before rating."""
    entry = _object(
        id={"type": "integer", "enum": list(range(1, texts + 1))},
        **({"type": _listed(_TYPE, 0, TYPES)} if aspect in TYPED_ASPECTS else {}),
        rationale={"type": "string", "maxLength": RATIONALE_CHARACTERS},
        rating=_HALF_POINTS if half_points else _WHOLE_POINTS,
    )
    schema = _object(texts=_listed(entry, texts, texts))
    return {
        "type": "json_schema",
        "json_schema": {"name": "judgement", "strict": True, "schema": schema},
    }


_TYPE = {"type": "integer", "enum": list(range(1, TYPES + 1))}
_WHOLE_POINTS = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
_HALF_POINTS = {"type": "number", "enum": [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]}


def _listed(items: object, least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _object(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@cache
def template_hash() -> str:
    """SHA-256 (hex) over every template, the wording of corrections among them, and the bounds."""
    return _hash(sorted(path.name for path in _TEMPLATES.glob("*" + _SUFFIX)))


@cache
def aspect_hash(aspect: str) -> str:
    """SHA-256 (hex) over what an aspect's judgements are asked with, and the bounds."""
    return _hash(name + _SUFFIX for name in (aspect, *_SHARED))


def _hash(names: Iterable[str]) -> str:
    parts = [f"{name}\n{(_TEMPLATES / name).read_text('utf-8')}" for name in names]
    return sha256("\n".join([*parts, f"{RATIONALE_CHARACTERS} {TYPES} {WHY_CHARACTERS}"]))


def _render(template: str, **values: object) -> str:
    return _ENVIRONMENT.get_template(template + _SUFFIX).render(values).removesuffix("\n")
