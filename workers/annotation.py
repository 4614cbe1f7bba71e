"""What people are shown of a judged prompt, and what they say of it. Pure.

The names are those of distilabel's PreferenceToArgilla, so that datasets made by either look alike:
a field for each generation, and for each a question for its rating and one for the reason. Position
counts, not success: a generation that failed leaves its field empty, and the others keep their
names. Knows neither Argilla nor any other place where people work.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workers.grouping import usable
from workers.judging import Verdict, rationales, verdict
from workers.records import Generation, Judgement, Prompt, Slot, whole_characters

#: The whole ratings that people choose from.
RATINGS = (1, 2, 3, 4, 5)

#: Argilla takes 1 to 200 of letters, digits, space and -_:./ as the author of a suggestion.
AGENT_LENGTH = 200

_RATING = re.compile(r"generations-(0|[1-9][0-9]*)-rating")
_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Record:
    """One judged prompt as people see it; `id` is the prompt's key.

    `ratings` (whole, 1 to 5) and `rationales` are the judges' suggestions by the generation's
    position among the slots, `agent` is who made them. Exact ratings are in `metadata`.
    """

    id: str
    fields: Mapping[str, str]
    ratings: Mapping[int, int]
    rationales: Mapping[int, str]
    agent: str
    metadata: Mapping[str, str | float]


def field_names(generations: int) -> list[str]:
    """The names of a record's fields, in the order in which people see them."""
    return ["id", "instruction", *(_generation(slot) for slot in range(generations))]


def rating_question(slot: int) -> str:
    """The name of the question for the rating of the generation at this position."""
    return f"{_generation(slot)}-rating"


def rationale_question(slot: int) -> str:
    """The name of the question for the reason of that rating."""
    return f"{_generation(slot)}-rationale"


def questions(generations: int) -> list[str]:
    """The names of a record's questions, in the order in which people see them."""
    names = ((rating_question(slot), rationale_question(slot)) for slot in range(generations))
    return [name for both in names for name in both]


def slot_of(question: str) -> int | None:
    """The position of the generation that a question rates; None if it asks for no rating."""
    found = _RATING.fullmatch(question)
    return int(found[1]) if found else None


def metadata_types(generations: int) -> dict[str, type[str] | type[float]]:
    """The names that a record's metadata may have, and the type of each."""
    by_slot: dict[str, type[str] | type[float]] = {}
    for slot in range(generations):
        by_slot |= {_model(slot): str, _score(slot): float}
    return {"state": str, "reason": str, "judges": str, "margin": float, **by_slot}


def record(
    key: str,
    prompt: Prompt,
    state: str,
    reason: str | None,
    generations: Sequence[Generation],
    judgements: Sequence[Judgement],
    slots: Sequence[Slot],
) -> Record | None:
    """What people see of a prompt; None if no judgement of it counts.

    `state` and `reason` are the prompt's outcome, `slots` the recipe's, in their order. Generations
    of a slot that the recipe no longer has are left out.
    """
    texts = usable(generations)
    judged = verdict(judgements, len(texts), quorum=1) if judgements else None
    if not isinstance(judged, Verdict):
        return None
    places = {slot: place for place, slot in enumerate(slots)}
    shown = [(places[text.slot], i) for i, text in enumerate(texts) if text.slot in places]
    exact = {place: judged.ratings[i] for place, i in shown}
    scores = {place: rating for place, rating in exact.items() if rating is not None}
    reasons = rationales(judgements, len(texts))
    return Record(
        id=key,
        fields=_fields(prompt, {place: texts[i].text or "" for place, i in shown}, len(slots)),
        ratings={place: _whole(score) for place, score in scores.items()},
        rationales={place: _fit(reasons[i]) for place, i in shown if reasons[i].strip()},
        agent=_agent(judged.judges),
        metadata={
            **{_model(place): _fit(texts[i].model) for place, i in shown},
            **{_score(place): float(score) for place, score in scores.items()},
            **dict(_about(state, reason, judged.judges, list(scores.values()))),
        },
    )


def _generation(slot: int) -> str:
    return f"generations-{slot}"


def _model(slot: int) -> str:
    return f"{_generation(slot)}-model"


def _score(slot: int) -> str:
    return f"{_generation(slot)}-score"


def _fields(prompt: Prompt, texts: Mapping[int, str], generations: int) -> dict[str, str]:
    values = [prompt.prompt_id, _asked(prompt), *(texts.get(i, "") for i in range(generations))]
    return dict(zip(field_names(generations), map(_fit, values), strict=True))


def _asked(prompt: Prompt) -> str:
    """The instruction, or the whole conversation if there is more to it."""
    messages = prompt.conversation()
    if len(messages) == 1:
        return prompt.instruction
    return "\n\n".join(
        f"{_SPEAKERS.get(message['role'], message['role'])}:\n{message['content']}"
        for message in messages
    )


def _about(
    state: str, reason: str | None, judges: Sequence[str], scores: Sequence[float]
) -> Iterator[tuple[str, str | float]]:
    yield "state", state
    if reason is not None:
        yield "reason", reason
    yield "judges", "+".join(judges)
    if scores:
        yield "margin", float(max(scores) - min(scores))


def _whole(rating: float) -> int:
    """Half points go up; people rate in whole points."""
    return min(max(math.floor(rating + 0.5), RATINGS[0]), RATINGS[-1])


def _agent(judges: Sequence[str]) -> str:
    joined = " / ".join(judges)
    return joined if len(joined) <= AGENT_LENGTH else f"{judges[0]} and {len(judges) - 1} more"


def _fit(text: str) -> str:
    """The text without what PostgreSQL or JSON cannot carry: NUL, halves of characters."""
    return whole_characters(text).replace("\0", "\N{REPLACEMENT CHARACTER}")
