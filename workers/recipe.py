"""The Recipe: what to generate, with which models, judged how, from which source.

Every value is typed, frozen and checked. A recipe never holds a key, only the name of the variable
that does. It knows nothing of brokers, databases or tokens: those are Settings; nor of files: those
are `workers.recipe_file`. Long because it is the whole schema, and what a key may hold beside it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from workers.judging import template_hash
from workers.records import Slot, canonical_json, sha256

#: `base_url` of the small model that `prefmill run` and `prefmill try` serve on this machine.
LOCAL_MODEL_URL = "local:smollm2-135m-instruct"

#: Request fields that prefmill itself sets; a recipe's `parameters` may not.
OWN_PARAMETERS = frozenset({"model", "messages", "stream", "n", "response_format"})

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_REPOSITORY = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
# Upper case, as such names are by custom, so that a key that stands here by mistake is refused.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")


def _slug(value: str) -> str:
    if not _SLUG.fullmatch(value):
        raise ValueError("1 to 64 of a-z, 0-9 and -, not at either end -")
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("the name of a variable, in capitals, never the key itself")
    return value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        fits = parts.port != 0 and not re.search(r"\s", value)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("an http:// or https:// URL with a port from 1 to 65535, if any")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http:// or https:// URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL without credentials, query or fragment (keys: api_key_env)")
    return value.rstrip("/")


def _workspace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", value, re.ASCII):
        raise ValueError("1 to 200 letters, digits, _ and -")
    return value


def _title(value: str) -> str:
    if not value.isprintable() or value.strip() != value or not value:
        raise ValueError("1 to 200 printable characters without blanks at the ends")
    return value


def _repo_id(value: str) -> str:
    parts = value.split("/")
    fits = len(parts) == 2 and all(map(_REPOSITORY.fullmatch, parts))
    if not fits or "--" in value or ".." in value or value.endswith(".git"):
        raise ValueError("owner/name as the Hub has them, such as me/preference-dataset")
    return value


def _base_url(value: str) -> str:
    if value == LOCAL_MODEL_URL:
        return value
    try:
        return _http_url(value)
    except ValueError as exc:
        raise ValueError(f"{exc}, or {LOCAL_MODEL_URL}") from None


def _parameters(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    taken = sorted(OWN_PARAMETERS & value.keys())
    if taken:
        raise ValueError(f"request fields other than {', '.join(sorted(OWN_PARAMETERS))}")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("values that JSON can hold") from None
    return value


def _distinct(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("each aspect once")
    return value


def _file(value: Path) -> Path:
    if not value.name:
        raise ValueError("the path of a file")
    return value


def _whole(value: object) -> object:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return value


Slug = Annotated[str, AfterValidator(_slug)]
Seconds = Annotated[float, BeforeValidator(_whole), Field(gt=0)]
Slots = Annotated[int, Field(ge=1, le=10_000)]
Parameters = Annotated[dict[str, JsonValue], AfterValidator(_parameters)]


def shown(value: object) -> str:
    """A value for an error message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Section(BaseModel):
    """A mapping of the recipe: unknown keys refused, nothing coerced, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Aspect = Literal[
    "helpfulness", "honesty", "instruction-following", "truthfulness", "overall-rating"
]


class Columns(Section):
    """Ours: theirs. With `messages` the instruction is the last turn of the chat in there."""

    instruction: str = Field(default="instruction", min_length=1)
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[str, Field(min_length=1)] | None = None

    @property
    def read(self) -> dict[str, str]:
        """The columns that a source must have: ours -> theirs."""
        content = "instruction" if self.messages is None else "messages"
        names = (content, "system_prompt")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Source(Section):
    """Where prompts come from: exactly one of `hub`, `file` and `stdin`."""

    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    file: Annotated[Path, Field(strict=False), AfterValidator(_file)] | None = None
    stdin: bool = False
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    streaming: bool = True
    poll: Seconds = 300.0
    limit: Annotated[int, Field(ge=1)] | None = None
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _one_source(self) -> "Source":
        if [self.hub is not None, self.file is not None, self.stdin].count(True) != 1:
            raise ValueError("exactly one of hub, file and stdin")
        return self


class Endpoint(Section):
    """An OpenAI-compatible server. `timeout` is for one call, all of it, in seconds."""

    base_url: Annotated[str, AfterValidator(_base_url)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    max_concurrency: Slots = 64
    timeout: Annotated[Seconds, Field(le=900)] = 120.0
    proxy: Annotated[str, AfterValidator(_http_url)] | None = None


class Generator(Section):
    """A model that answers each prompt `samples` times.

    Its `system_prompt` is for prompts that bring none.
    """

    name: Slug
    endpoint: str
    model: str = Field(min_length=1)
    parameters: Parameters = {}
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    system_prompt: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    truncated: Literal["fail", "keep"] = "fail"
    max_concurrency: Slots | None = None


class Judge(Section):
    """A model that rates generations."""

    name: Slug
    endpoint: str
    model: str = Field(min_length=1)
    aspects: Annotated[list[Aspect], Field(min_length=1), AfterValidator(_distinct)] = [
        "overall-rating"
    ]
    structured: Literal["auto", "schema", "text"] = "auto"
    weight: Annotated[float, BeforeValidator(_whole), Field(gt=0, le=1000)] = 1.0
    parameters: Parameters = {}
    max_concurrency: Slots | None = None


class Judging(Section):
    """How judges are shown the generations, and what of their replies counts.

    `quorum` is how many judges of the jury a prompt needs; `score` is the rating as written, or the
    expectation over the probabilities of the rating's token where the endpoint tells them.
    """

    order: Literal["as-given", "shuffled", "both"] = "shuffled"
    quorum: Annotated[int, Field(ge=1)] = 1
    half_points: bool = False
    score: Literal["stated", "expectation"] = "stated"


class Pairs(Section):
    """How judged generations become pairs.

    `min_margin` is in points of the rating, `max_length_ratio` the longer text's characters over
    the shorter one's, `near_identical` a similarity from 0 to 1 from which texts count as one.
    """

    strategy: Literal["max-min", "max-random", "all-pairs", "mean-2sd"] = "max-min"
    min_margin: Annotated[float, BeforeValidator(_whole), Field(ge=0, le=4)] = 0.0
    ties: Literal["drop", "keep-labelled"] = "drop"
    max_length_ratio: Annotated[float, BeforeValidator(_whole), Field(ge=1)] | None = None
    near_identical: Annotated[float, BeforeValidator(_whole), Field(gt=0, le=1)] | None = None
    drop_refusals: bool = False


class Argilla(Section):
    """Where people rate: every judged prompt becomes a record. `api_url` or ARGILLA_API_URL."""

    api_url: Annotated[str, AfterValidator(_http_url)] | None = None
    workspace: Annotated[str, AfterValidator(_workspace)] = "argilla"
    dataset: Annotated[str, Field(max_length=200), AfterValidator(_title)] = "preference-dataset"


class Hub(Section):
    """The dataset repository that rows are appended to."""

    repo_id: Annotated[str, AfterValidator(_repo_id)]
    private: bool = True


#: Prompts of a batch, where a recipe names no number and the window is not smaller.
BATCH_SIZE = 32


class Fleet(Section):
    """How prompts travel. `window` counts prompts, `deadline` is in seconds.

    Batches of 32 keep nearly all slots of 64 busy, batches of 8 three in five.
    """

    window: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    batch_size: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda fleet: min(BATCH_SIZE, fleet.get("window", BATCH_SIZE))
    )
    deadline: Seconds = 1800.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3


class Recipe(Section):
    """A whole recipe. `name` is the run's name everywhere."""

    name: Slug
    seed: int = 0
    source: Source
    endpoints: dict[Slug, Endpoint] = Field(min_length=1)
    generators: list[Generator] = Field(min_length=1)
    judges: list[Judge] = Field(min_length=1)
    judging: Judging = Judging()
    pairs: Pairs = Pairs()
    argilla: Argilla | None = None
    hub: Hub | None = None
    fleet: Fleet = Fleet()

    @property
    def models(self) -> tuple[Generator | Judge, ...]:
        """Generators, then judges."""
        return (*self.generators, *self.judges)

    def models_of(self, queues: Iterable[str]) -> tuple[Generator | Judge, ...]:
        """The models that are called for work on these queues, given by their short names."""
        wanted = set(queues)
        generators = (model for model in self.generators if f"generate.{model.name}" in wanted)
        return (*generators, *(self.judges if "judge" in wanted else ()))

    def generator(self, name: str) -> Generator:
        """The generator of that name. Raises: KeyError."""
        return {generator.name: generator for generator in self.generators}[name]

    @property
    def slots(self) -> list[Slot]:
        """The generations that each prompt gets, as (generator, sample), in their order."""
        return [(model.name, n) for model in self.generators for n in range(model.samples)]

    @property
    def judgements(self) -> int:
        """The judgements that each prompt gets: by every judge, on every aspect, in each order."""
        directions = 2 if self.judging.order == "both" else 1
        return sum(len(judge.aspects) for judge in self.judges) * directions

    def warnings(self) -> Iterator[str]:
        """What is allowed and yet spoils data, one line each."""
        generators = {model.model: model.name for model in self.generators}
        for i, judge in enumerate(self.judges):
            if judge.model in generators:
                yield (
                    f"judges[{i}].model: {judge.name} shares {judge.model} with generator "
                    f"{generators[judge.model]}; judges favour texts of their own family"
                )

    @property
    def queues(self) -> list[str]:
        """Short names of the queues that this recipe's work passes through."""
        generate = [f"generate.{generator.name}" for generator in self.generators]
        return [*generate, "judge", "sink", "deliver"]

    @property
    def destinations(self) -> dict[str, str]:
        """The configured destinations: `argilla` and `hub`, with the names they have in a ledger.

        The place is part of the name, so that another one gets everything from the beginning; the
        server is not, it may move.
        """
        found = {}
        if self.argilla is not None:
            found["argilla"] = f"argilla:{self.argilla.workspace}/{self.argilla.dataset}"
        if self.hub is not None:
            found["hub"] = f"hub:{self.hub.repo_id}"
        return found

    def cap(self, model: Generator | Judge) -> int:
        """Calls in flight that a model may have: its own limit, else its endpoint's share."""
        endpoint = self.endpoints[model.endpoint]
        sharers = sum(other.endpoint == model.endpoint for other in self.models)
        share = max(1, endpoint.max_concurrency // sharers)
        return min(model.max_concurrency or share, endpoint.max_concurrency)

    def fingerprint(self) -> dict[str, Any]:
        """What makes rows comparable, in JSON: never limits, URLs, pairs, fleet, destinations.

        Values at their default are left out, so that a key added later changes no hash.
        """
        travelling = {"endpoint", "max_concurrency"}
        return {
            "seed": self.seed,
            "generators": [
                model.model_dump(mode="json", exclude=travelling, exclude_defaults=True)
                for model in self.generators
            ],
            "judges": [
                model.model_dump(mode="json", exclude=travelling, exclude_defaults=True)
                for model in self.judges
            ],
            "judging": self.judging.model_dump(mode="json", exclude_defaults=True),
            "templates": template_hash(),
            "columns": self.source.columns.model_dump(mode="json", exclude_none=True),
        }

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the fingerprint."""
        return sha256(canonical_json(self.fingerprint()))

    @model_validator(mode="after")
    def _names_fit(self) -> "Recipe":
        seen: set[str] = set()
        for key, model in self._keyed_models():
            if model.name in seen:
                raise ValueError(f"{key}.name: {model.name!r}; accepted: one that no other has")
            seen.add(model.name)
            if model.endpoint not in self.endpoints:
                known = ", ".join(self.endpoints)
                raise ValueError(f"{key}.endpoint: {shown(model.endpoint)}; accepted: {known}")
        for i, generator in enumerate(self.generators):
            if generator.samples > 1 and generator.parameters.get("seed") is not None:
                raise ValueError(
                    f"generators[{i}].parameters.seed: {shown(generator.parameters['seed'])}; "
                    "accepted with samples: none, as each sample is drawn with a seed of its own"
                )
        if len(self.slots) < 2:
            raise ValueError(
                "generators: 1 candidate; accepted: at least two, from generators or their samples"
            )
        if self.judging.quorum > len(self.judges):
            raise ValueError(
                f"judging.quorum: {self.judging.quorum}; accepted: 1 to the number of judges, "
                f"{len(self.judges)}"
            )
        if self.judging.half_points and self.judging.score == "expectation":
            raise ValueError(
                "judging.score: 'expectation'; accepted with half_points: 'stated', as a half "
                "point has more tokens than one"
            )
        if self.fleet.window < self.fleet.batch_size:
            size = self.fleet.batch_size
            raise ValueError(
                f"fleet.window: {self.fleet.window}; accepted: at least fleet.batch_size, {size}"
            )
        return self

    def _keyed_models(self) -> Iterator[tuple[str, Generator | Judge]]:
        yield from ((f"generators[{i}]", model) for i, model in enumerate(self.generators))
        yield from ((f"judges[{i}]", model) for i, model in enumerate(self.judges))
