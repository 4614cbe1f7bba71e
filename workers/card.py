"""The dataset card of a repository: what made its rows, how to load them, and what to beware of.

Pure, and the same bytes for the same input. A card is for people, so what people wrote in it stays:
our part stands between two marks. What is told of a recipe is a list of what may be told; all else
(endpoints, variables, paths) stays untold, whatever a recipe may come to hold. Texts of models are
shown as JSON in a fence, and nothing that is shown can end the fence or make a mark. Long because a
card has many small parts.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.front_matter import ConfigurationFacts, dumped, merged
from workers.records import whole_characters
from workers.rows import DEFAULT, FULL

__all__ = ["ConfigurationFacts", "Counts", "names", "render"]

BEGIN, END = "<!-- prefmill:begin -->", "<!-- prefmill:end -->"

#: Characters of a text that a card shows, and bytes that a block or table of it has at most: our
#: part stays below 48 KB, and with the header of some hundred columns below 64 KB.
SHOWN = 400
BLOCK = 10_000
TABLE = 6_000
#: Entries that are shown of a list or mapping.
ENTRIES = 60

_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_TOLD = {
    "source": ("hub", "config", "split", "revision", "columns"),
    "generators": ("name", "model", "samples", "parameters", "system_prompt", "truncated"),
    "judges": ("name", "model", "aspects", "weight", "structured", "parameters"),
    "judging": ("order", "quorum", "half_points", "score"),
    "pairs": (
        *("strategy", "min_margin", "ties", "max_length_ratio", "near_identical"),
        "drop_refusals",
    ),
}
_UNTOLD = re.compile(r"key|secret|passw|auth|credential|header|url|endpoint|user|(?<!max_)token$")


@dataclass(frozen=True, slots=True)
class Counts:
    """How the run's prompts have ended so far, by reason; the others are in flight.

    `by_people` were rated by people as well, whose ratings stand in the rows.
    """

    accepted: int
    paired: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    by_people: int = 0


def render(
    existing: str,
    *,
    repo_id: str,
    run: str,
    configurations: Sequence[ConfigurationFacts],
    recipe: Mapping[str, Any],
    counts: Counts,
    sample: Mapping[str, Any] | None = None,
    private: bool = True,
    identity: str = "",
) -> str:
    """The card (README.md) of a repository that has `existing` as its card so far, or "".

    `recipe` is one in plain JSON, `sample` a row of `default`, `identity` what tells the run from
    its namesakes in other ledgers. Of an existing card, text and keys that are not ours stay; one
    whose header is no YAML mapping becomes the text below ours. Of configurations without rows
    nothing is said. Rendered again, a card does not change.
    """
    filled = [one for one in configurations if one.rows]
    ours = _part(repo_id, run, filled, recipe, counts, sample, private, identity)
    existing = existing.removeprefix("\ufeff")
    found = _HEADER.match(existing)
    header = merged(found[1] if found else "", configurations)
    if header is None:
        below = _replaced(ours, existing) or f"{ours}\n\n{existing}"
        return f"---\n{merged('', configurations)}---\n\n{below}"
    body = existing[found.end() :] if found else f"\n{existing}"
    return f"---\n{header}---\n{_replaced(ours, body) or _below(ours, body)}"


def names(text: str, run: str, identity: str) -> bool:
    """Whether a card says that its repository is this run's, and not that of a namesake."""
    lines = [line.rstrip() for line in text.splitlines()]
    ours = [BEGIN, "", f"# {_plain(run)}", "", _begun(identity)]
    return any(lines[at : at + 5] == ours for at, line in enumerate(lines) if line == BEGIN)


def _begun(identity: str) -> str:
    return f"<!-- run {identity} -->"


def _replaced(ours: str, text: str) -> str | None:
    """The text with our part in the place of an older one; None if it holds none."""
    end = text.find(END, max(text.find(BEGIN), 0))
    begin = text.rfind(BEGIN, 0, end) if end >= 0 else -1
    return text[:begin] + ours + text[end + len(END) :] if begin >= 0 else None


def _below(ours: str, text: str) -> str:
    above = text.rstrip()
    return f"{above}\n\n{ours}\n" if above else f"\n{ours}\n"


def _part(
    repo_id: str,
    run: str,
    filled: Sequence[ConfigurationFacts],
    recipe: Mapping[str, Any],
    counts: Counts,
    sample: Mapping[str, Any] | None,
    private: bool,
    identity: str,
) -> str:
    told = _told(recipe)
    shown = {name: _short(value, SHOWN) for name, value in told.items() if value != {}}
    sections = [
        f"# {_plain(run)}",
        *([_begun(identity)] if identity else []),
        "Preference pairs for DPO and ORPO, made by prefmill: each prompt was answered by several "
        "models, the answers were rated by judges, and a better one stands beside a worse one.",
        *_loading(repo_id, filled, private),
        *_models(told),
        *_outcomes(counts),
        *_sample(sample),
        "## Recipe",
        _fenced("yaml", _cut(dumped(shown), BLOCK)),
        *_caveats(told, filled, counts),
    ]
    return whole_characters(f"{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}")


def _loading(repo_id: str, filled: Sequence[ConfigurationFacts], private: bool) -> list[str]:
    if not filled:
        return ["There are no rows yet."]
    rows = {one.name: one.rows for one in filled}
    lines = ["from datasets import load_dataset", ""]
    for name in rows:
        which = "" if name == DEFAULT else f'"{name}", '
        lines.append(f'{name} = load_dataset("{repo_id}", {which}split="train")')
    made = ["## Configurations", _fenced("python", "\n".join(lines))]
    made += ["The repository is private: log in with `hf auth login` first."] if private else []
    for one in filled:
        columns = [(feature.get("name", ""), _kind(feature)) for feature in one.features]
        made += [f"`{one.name}`: {one.rows} rows", _table(("column", "type"), columns)]
    return made


def _kind(feature: Any) -> str:
    """A feature's type for people."""
    if isinstance(feature, str):
        return feature
    if isinstance(feature, list):
        return "{" + ", ".join(str(one.get("name")) for one in feature[:20]) + "}"
    for key in ("list", "large_list", "sequence"):
        if key in feature:
            return f"list of {_kind(feature[key])}"
    if "struct" in feature:
        return _kind(feature["struct"])
    kind = feature.get("dtype", "")
    return kind if isinstance(kind, str) else ", ".join(map(str, kind))


def _models(told: Mapping[str, Any]) -> list[str]:
    rows = [
        (one["name"], one["model"], f"generator, answers to a prompt: {one.get('samples', 1)}")
        for one in told["generators"]
    ]
    for one in told["judges"]:
        aspects = ", ".join(one.get("aspects", ()))
        rows.append(
            (one["name"], one["model"], f"judge of {aspects}, weight {one.get('weight', 1):g}")
        )
    return ["## Models", _table(("name", "model", "role"), rows)]


def _outcomes(counts: Counts) -> list[str]:
    ended = counts.paired + sum(counts.rejected.values()) + sum(counts.failed.values())
    rows: list[tuple[object, ...]] = [("paired", "", counts.paired)]
    for state, reasons in (("rejected", counts.rejected), ("failed", counts.failed)):
        rows += [(state, reason, number) for reason, number in sorted(reasons.items())]
    if counts.accepted > ended:
        rows.append(("in flight", "", counts.accepted - ended))
    rows.append(("accepted", "", counts.accepted))
    return ["## Prompts", _table(("outcome", "reason", "prompts"), rows)]


def _sample(sample: Mapping[str, Any] | None) -> list[str]:
    if sample is None:
        return []
    for shown in (SHOWN, SHOWN // 8):
        text = json.dumps(_short(sample, shown), indent=2, ensure_ascii=False, default=str)
        if len(text.encode("utf-8", "replace")) <= BLOCK:
            return ["## One row of `default`", _fenced("json", text)]
    return []


def _caveats(
    told: Mapping[str, Any], filled: Sequence[ConfigurationFacts], counts: Counts
) -> list[str]:
    rows = {one.name: one.rows for one in filled}
    rated = "Ratings are by models, not by people"
    if counts.by_people:
        rated += f", but for {counts.by_people} prompts that people rated"
    made = [
        f"{rated}. Judges favour long texts and texts like their own.",
        "Nothing was checked for truth, harm or personal data; the models' licences may bind you.",
    ]
    generators, judges = told["generators"], told["judges"]
    if {one["model"] for one in generators} & {one["model"] for one in judges}:
        made.append("A judge rated texts of the very model that it is.")
    if told["judging"].get("order") != "both":
        made.append("Judges saw each set of texts in one order; the position of a text may count.")
    if told["pairs"].get("max_length_ratio") is None:
        made.append("Chosen texts may be much longer than rejected ones: DPO learns that too.")
    if any(one.get("truncated") == "keep" for one in generators):
        made.append("Some answers are cut off at `max_tokens`; `metadata` in `full` says which.")
    ties = rows.get(FULL, 0) - rows.get(DEFAULT, 0)
    if ties > 0:
        made.append(f"`full` has {ties} ties as well, labelled in `metadata`: leave them out.")
    return ["## Before you use it", "\n".join(f"- {line}" for line in made)]


def _told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe is anyone's business."""

    def _of(section: str, value: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: _clean(value.get(name)) for name in _TOLD[section]}
        return {name: inner for name, inner in found.items() if inner not in (None, {}, [])}

    source = _of("source", recipe.get("source", {}))
    return {
        "seed": recipe.get("seed", 0),
        "source": source if "hub" in source else {},
        "generators": [_of("generators", one) for one in recipe["generators"]],
        "judges": [_of("judges", one) for one in recipe["judges"]],
        "judging": _of("judging", recipe.get("judging", {})),
        "pairs": _of("pairs", recipe.get("pairs", {})),
    }


def _clean(value: Any) -> Any:
    """Without nulls, and without what looks like a key, an address or someone's name."""
    if isinstance(value, Mapping):
        return {
            name: _clean(inner)
            for name, inner in value.items()
            if not (inner is None or _UNTOLD.search(name.lower()) or _is_address(inner))
        }
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value if not _is_address(one)]
    return value


def _is_address(value: object) -> bool:
    return isinstance(value, str) and "://" in value


def _short(value: Any, shown: int, depth: int = 6) -> Any:
    """The value with texts, lists and mappings cut."""
    if isinstance(value, str):
        return value if len(value) <= shown else value[:shown] + "…"
    if isinstance(value, bool | int | float | None):
        return value
    if depth and isinstance(value, Mapping):
        pairs = list(value.items())[:ENTRIES]
        return {_short(str(key), 80): _short(inner, shown, depth - 1) for key, inner in pairs}
    if depth and isinstance(value, list | tuple):
        return [_short(inner, shown, depth - 1) for inner in value[:ENTRIES]]
    return _short(str(value), shown)


def _cut(text: str, most: int) -> str:
    """Whole lines of the text, in at most so many bytes."""
    if len(text.encode("utf-8", "replace")) <= most:
        return text
    kept = text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    return kept[: kept.rfind("\n") + 1] + "# and more\n"


def _fenced(language: str, text: str) -> str:
    """A code block that the text cannot end, without marks of HTML comments."""
    text = text.replace("<!--", "\\u003c!--").replace("-->", "--\\u003e").rstrip("\n")
    ticks = "`" * max([2, *map(len, re.findall("`+", text))]) + "`"
    return f"{ticks}{language}\n{text}\n{ticks}"


def _table(names: Sequence[str], rows: Sequence[Iterable[object]]) -> str:
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    size = 0
    for shown, row in enumerate(rows):
        line = " | ".join(_plain(cell) for cell in row)
        size += len(line.encode("utf-8", "replace")) + 5
        if size > TABLE:
            lines.append(" | ".join([f"and {len(rows) - shown} more", *("" for _ in names[1:])]))
            break
        lines.append(line)
    return "\n".join(f"| {line} |" for line in lines)


def _plain(value: object) -> str:
    """One line of text in which nothing is Markdown or HTML."""
    text = _short(" ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(value)).split()), 80)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", text)
