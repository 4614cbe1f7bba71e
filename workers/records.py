"""The values that flow through the mill: small, frozen, and free of any service.

A prompt gets one `Generation` a slot (a generator's name), one `Judgement`, and ends in exactly one
`Outcome`. Generations and judgements travel in messages and lie in the ledger as plain JSON.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PAIRED = "paired"
REJECTED = "rejected"
FAILED = "failed"
IN_FLIGHT = "in_flight"
STATES = (IN_FLIGHT, PAIRED, REJECTED, FAILED)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as accepted: its instruction, and the source's own columns that ride along."""

    instruction: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    def key(self, run: str) -> str:
        """SHA-256 (hex) of the canonical JSON of what makes this prompt one prompt in `run`."""
        identity = {
            "run": run,
            "instruction": self.instruction,
            "system_prompt": None,
            "messages": None,
        }
        return sha256(canonical_json(identity))

    @property
    def prompt_id(self) -> str:
        """SHA-256 (hex) of the instruction, as in the UltraFeedback-style datasets."""
        return sha256(self.instruction)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one answered or failed call cost. `cached` answers were paid for earlier."""

    retries: int = 0
    cached: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A generator's answer to one prompt: a text, or the reason why there is none."""

    generator: str
    model: str
    text: str | None = None
    reason: str | None = None
    detail: str = ""
    finish_reason: str | None = None
    reported_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()

    @property
    def usable(self) -> bool:
        """Whether there is a text that a judge may see."""
        return self.text is not None and self.reason is None


@dataclass(frozen=True, slots=True)
class Rating:
    """A judge's word on one text: a rating from 1 to 5 (None: not applicable) and why."""

    rating: float | None
    rationale: str
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's ratings of a prompt's usable generations, in the generations' own order.

    `order[i]` is the position (from 0) at which the judge was shown generation `i`.
    """

    judge: str
    model: str
    aspect: str
    ratings: tuple[Rating, ...] = ()
    order: tuple[int, ...] = ()
    reason: str | None = None
    detail: str = ""
    reported_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts to the same prompt, of which the chosen one was rated higher."""

    chosen: str
    chosen_model: str
    chosen_rating: float
    rejected: str
    rejected_model: str
    rejected_rating: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why judged generations make no pair."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one prompt ended: a state other than in flight, with a reason unless it was paired."""

    key: str
    state: str
    reason: str | None = None
    detail: str = ""
    generations: tuple[Generation, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    pairs: tuple[Pair, ...] = ()


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs joined, and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def sha256(text: str) -> str:
    """SHA-256 of the UTF-8 text, in hex. Lone surrogates count as themselves."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def generation_to_json(generation: Generation) -> dict[str, Any]:
    """Plain JSON of a generation."""
    return asdict(generation)


def generation_from_json(data: Mapping[str, Any]) -> Generation:
    """The generation that `generation_to_json` made plain."""
    return Generation(**{**data, "usage": Usage(**data["usage"])})


def judgement_to_json(judgement: Judgement) -> dict[str, Any]:
    """Plain JSON of a judgement."""
    return asdict(judgement)


def judgement_from_json(data: Mapping[str, Any]) -> Judgement:
    """The judgement that `judgement_to_json` made plain."""
    return Judgement(
        **{
            **data,
            "ratings": tuple(Rating(**rating) for rating in data["ratings"]),
            "order": tuple(data["order"]),
            "usage": Usage(**data["usage"]),
        }
    )
