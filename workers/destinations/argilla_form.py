"""The form that people fill in at Argilla, as its API has it: fields, questions, metadata. Pure.

The seed's form: a whole rating and a reason for each generation, of which the first rating alone is
required, because Argilla wants one. Which model wrote a text is hidden from annotators.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.annotation import (
    RATINGS,
    field_names,
    metadata_types,
    rating_question,
    rationale_question,
)

#: One field, question or metadata property, as it is sent to and read from the API.
Part = Mapping[str, Any]

FIELDS = "fields"
QUESTIONS = "questions"
METADATA = "metadata-properties"

GUIDELINES = """\
Each record is one prompt with the answers that several models gave to it. Please rate the answers.

- Read the prompt first, then all the answers, before you rate any of them.
- Rate every answer by itself from 1 (useless, wrong or harmful) to 5 (nothing left to wish for).
  Two answers may have the same rating.
- Correct content and doing what the prompt asks count most; length and politeness count little.
- The ratings and reasons that are filled in already are suggestions by language models. Change them
  wherever you see it differently.
- A model that failed left its answer empty. Leave its rating out; where the first answer is empty
  Argilla insists on a rating: any will do, it is not used.
- Discard records that you cannot judge.

Every submitted answer counts. Drafts and discarded records do not.
"""


def form(generations: int) -> dict[str, list[Part]]:
    """All parts of the form for so many generations, by their kind, in order."""
    return {
        FIELDS: [_field(name, place) for place, name in enumerate(field_names(generations))],
        QUESTIONS: [part for slot in range(generations) for part in _questions(slot)],
        METADATA: [_property(name, kind) for name, kind in metadata_types(generations).items()],
    }


def difference(wanted: Sequence[Part], found: Sequence[Part], *, whole: bool) -> str | None:
    """The first part that differs, in words; None if there is none.

    Titles, guidelines and order are the people's own and do not count. A form that is not `whole`
    may lack parts.
    """
    ours, theirs = _shapes(wanted), _shapes(found)
    for name, shape in ours.items():
        if name in theirs and theirs[name] != shape:
            return f"{name!r} is of type {theirs[name]}, not {shape}"
        if name not in theirs and whole:
            return f"{name!r} ({shape}) is missing"
    for name, shape in theirs.items():
        if name not in ours:
            return f"{name!r} ({shape}) is not one of ours"
    return None


def takes(properties: Sequence[Part], extra: bool, generations: int) -> frozenset[str]:
    """The names of our metadata that a dataset takes.

    `properties` are those that it has; `extra` says whether it takes others as well.
    """
    have = _shapes(properties)
    ours = _shapes(form(generations)[METADATA])
    return frozenset(
        name for name, shape in ours.items() if (have[name] == shape if name in have else extra)
    )


def _shapes(found: Sequence[Part]) -> dict[str, str]:
    return {part["name"]: _shape(part["settings"]) for part in found}


def _shape(settings: Mapping[str, Any]) -> str:
    kind = str(settings["type"])
    if kind != "rating":
        return kind
    return f"rating of {', '.join(str(option['value']) for option in settings['options'])}"


def _field(name: str, place: int) -> Part:
    title = ("Prompt id", "Prompt")[place] if place < 2 else f"Answer {place - 1}"
    settings = {"type": "text", "use_markdown": False}
    return {"name": name, "title": title, "required": place < 3, "settings": settings}


def _questions(slot: int) -> list[Part]:
    number = slot + 1
    return [
        {
            "name": rating_question(slot),
            "title": f"How good is answer {number}?",
            "description": "From 1, useless, to 5, nothing left to wish for.",
            "required": slot == 0,
            "settings": {"type": "rating", "options": [{"value": value} for value in RATINGS]},
        },
        {
            "name": rationale_question(slot),
            "title": f"Why does answer {number} deserve that?",
            "required": False,
            "settings": {"type": "text", "use_markdown": False},
        },
    ]


def _property(name: str, kind: type[str] | type[float]) -> Part:
    return {
        "name": name,
        "title": name.replace("generations-", "answer ").replace("-", " "),
        "settings": {"type": "float" if kind is float else "terms"},
        "visible_for_annotators": not name.endswith("-model"),
    }
