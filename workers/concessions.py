"""Asking an endpoint that may not take every field: what it refuses is left out from then on.

OpenAI-compatible servers differ in what they take. A seed, token probabilities or a schema make a
reply better, but none is worth failing a prompt for. Knows nothing of what the fields are good for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.admission import Model
from workers.calls import Answered, CallEnded, Calls
from workers.records import derived_seed

SEED = "seed"
LOGPROBS = "logprobs"
RESPONSE_FORMAT = "response_format"

#: Words by which a refusal names a field.
_NAMES = {
    SEED: ("seed",),
    LOGPROBS: ("logprob",),
    RESPONSE_FORMAT: ("response_format", "json_schema", "response format", "schema", "grammar"),
}


def seed_of(model: Model, *parts: object) -> int | None:
    """The seed of one call: what the recipe's parameters say, else one that `parts` decide."""
    seed = model.parameters.get(SEED, derived_seed(*parts))
    return seed if isinstance(seed, int) else None


@dataclass(frozen=True, slots=True)
class Conceded:
    """An answer, and the optional fields that it was asked for without."""

    answered: Answered
    without: frozenset[str]


async def ask(
    calls: Calls,
    model: Model,
    build: Callable[[frozenset[str]], Mapping[str, Any]],
    optional: Sequence[str],
    *,
    key: str,
) -> Conceded:
    """The answer to `build(fields to leave out)`, leaving out what the endpoint refuses.

    A refused request (`bad_request`) that names an optional field is asked again without it; one
    that names none, without the schema if there is one. A process remembers what helped.
    Raises: CallEnded; HandedBack; BrokerError.
    """
    known = without = calls.refused.get(model.name, frozenset())
    while True:
        try:
            answered = await calls.ask(model, build(without), key=key)
        except CallEnded as exc:
            field = _refused(exc, [one for one in optional if one not in without])
            if field is None:
                raise
            without |= {field}
            continue
        if without != known:
            calls.refused[model.name] = calls.refused.get(model.name, frozenset()) | without
        return Conceded(answered, without)


def _refused(exc: CallEnded, left: Sequence[str]) -> str | None:
    """The field to do without, if that may help."""
    if exc.reason != "bad_request":
        return None
    said = exc.detail.lower()
    named = [field for field in left if any(name in said for name in _NAMES[field])]
    return next(iter(named), RESPONSE_FORMAT if RESPONSE_FORMAT in left else None)
