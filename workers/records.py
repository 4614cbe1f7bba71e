"""The values that flow through the mill: small, frozen, and free of any service.

A prompt gets one `Generation` a slot (a generator's name and the number of the sample), one
`Judgement` for each judge, aspect and direction, and ends in exactly one `Outcome`. Generations and
judgements travel in messages and lie in the ledger as plain JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PAIRED = "paired"
REJECTED = "rejected"
FAILED = "failed"
IN_FLIGHT = "in_flight"
STATES = (IN_FLIGHT, PAIRED, REJECTED, FAILED)

#: Why a judgement failed whose replies, asked for again and again, never kept the contract.
UNPARSABLE = "unparsable_judgement"


Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as accepted, and the source's own columns that ride along.

    `messages` are the turns of a chat, from `user` and `assistant` in the order they were said, the
    last one from `user`; that one is the `instruction` as well. A prompt of a single turn has none.
    """

    instruction: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    messages: Sequence[Message] = ()

    @property
    def turns(self) -> list[Message]:
        """What was said so far: at least the instruction, without a system prompt."""
        return list(self.messages) or [{"role": "user", "content": self.instruction}]

    def conversation(self, system_prompt: str | None = None) -> list[Message]:
        """The message list for a chat model; the prompt's own system prompt goes first."""
        system = self.system_prompt or system_prompt
        return [*([{"role": "system", "content": system}] if system else []), *self.turns]

    def key(self, run: str) -> str:
        """SHA-256 (hex) of the canonical JSON of what makes this prompt one prompt in `run`."""
        identity = {
            "run": run,
            "instruction": self.instruction,
            "system_prompt": self.system_prompt,
            "messages": list(self.messages) or None,
        }
        return sha256(canonical_json(identity))

    @property
    def prompt_id(self) -> str:
        """SHA-256 (hex) of the instruction, as in the UltraFeedback-style datasets."""
        return sha256(self.instruction)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the calls behind one result cost; `cached` is how many were paid for earlier."""

    retries: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.retries + other.retries,
            self.cached + other.cached,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """A generator's answer to one prompt: a text, or the reason why there is none.

    `sample` counts a generator's answers to the prompt from 0; `seed` is the one that was sent.
    `system_prompt` is the generator's own, where it was used.
    """

    generator: str
    model: str
    text: str | None = None
    reason: str | None = None
    detail: str = ""
    finish_reason: str | None = None
    reported_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    sample: int = 0
    seed: int | None = None
    system_prompt: str | None = None

    @property
    def slot(self) -> "Slot":
        """The place among a prompt's generations that this one fills."""
        return self.generator, self.sample

    @property
    def usable(self) -> bool:
        """Whether there is a text that a judge may see."""
        return self.text is not None and self.reason is None


Slot = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Rating:
    """A judge's word on one text: a rating from 1 to 5 (None: not applicable) and why.

    `stated` is the rating that was written, where `rating` is an expectation over probabilities.
    """

    rating: float | None
    rationale: str
    type: str | None = None
    stated: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's ratings of a prompt's usable generations, in the generations' own order.

    `order[i]` is the position (from 0) at which the judge was shown generation `i`; `backward` says
    that it is the second of two judgements, in the opposite order. `unparsable` counts the replies
    that did not keep the contract, `weight` is the judge's, `template` the SHA-256 of what it was
    asked with, `texts` that of the texts it was shown. `score` is how ratings were read: `stated`
    or `expectation`.
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
    weight: float = 1.0
    backward: bool = False
    unparsable: int = 0
    seed: int | None = None
    template: str = ""
    texts: str = ""
    score: str = "stated"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts to the same prompt, of which the chosen one was rated higher.

    In a `tie`, kept under its label, it was not: the ratings are equal, or the judges' preference
    `flipped` with the order in which they were shown the texts.
    """

    chosen: str
    chosen_model: str
    chosen_rating: float
    rejected: str
    rejected_model: str
    rejected_rating: float
    tie: bool = False
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why judged generations make no pair. `kept` are ties that the policy keeps labelled."""

    reason: str
    kept: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one prompt ended: a state other than in flight, with a reason unless it was paired.

    `pairs` of a rejected prompt are ties that are kept. `recipe_hash` is that of the recipe by
    which it was generated and judged.
    """

    key: str
    state: str
    reason: str | None = None
    detail: str = ""
    generations: tuple[Generation, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    pairs: tuple[Pair, ...] = ()
    recipe_hash: str = ""


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


def derived_seed(*parts: object) -> int:
    """A seed from 0 to 2**31 - 1 that these parts alone decide, for a call's request."""
    return int(sha256(canonical_json(parts))[:8], 16) >> 1


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
