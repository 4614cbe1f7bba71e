"""Recipes as files: YAML in, a Recipe or one clear line out.

YAML enters here and nowhere else. `${VAR}` is not expanded. What may be a secret in the wrong place
is never repeated in a message.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from workers.errors import RecipeError
from workers.recipe import (
    Argilla,
    Columns,
    Endpoint,
    Fleet,
    Generator,
    Hub,
    Judge,
    Judging,
    Pairs,
    Recipe,
    Section,
    Source,
    shown,
)

#: Recipes that come with prefmill, by name.
SHIPPED = Path(__file__).parent / "recipes"

#: Keys whose value may be a secret written in the wrong place: never echoed.
UNSPOKEN = frozenset({"api_key_env", "api_url", "base_url", "proxy"})

#: Bytes of the largest recipe that is read.
MAX_BYTES = 1_000_000

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML that refuses the same key twice instead of keeping the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
    for key, times in Counter(map(str, keys)).items():
        if times > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} twice", node.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def shipped() -> list[str]:
    """Names of the recipes that come with prefmill."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe, given its path or the name of a shipped one. Raises: RecipeError."""
    if name in shipped():
        return SHIPPED / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise RecipeError(f"recipe {name!r}: no such file; shipped recipes: {', '.join(shipped())}")
    return path


def load(name: str) -> Recipe:
    """Read a recipe, given its path or the name of a shipped one.

    A relative `source.file` counts from the recipe's own folder.
    Raises: RecipeError, in one line, naming the key, the value and what is accepted.
    """
    path = find(name)
    try:
        data = yaml.load(_text(path), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError) as exc:
        raise RecipeError(f"{path}: cannot be read: {exc}") from exc
    except yaml.MarkedYAMLError as exc:
        # Without the text around it, which may hold a secret in the wrong place.
        at = f"line {exc.problem_mark.line + 1}: " if exc.problem_mark else ""
        raise RecipeError(f"{path}: not YAML: {at}{exc.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError):
        raise RecipeError(f"{path}: not YAML: a value is not what its tag says") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a {type(data).__name__}; accepted: a mapping that has a name")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as exc:
        raise RecipeError(f"{path}: {explain(exc)}") from None
    return _at(recipe, path.resolve().parent)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            f"{path}: more than {MAX_BYTES:,} bytes; accepted: a recipe of at most as many"
        )
    return raw.decode()


def _at(recipe: Recipe, folder: Path) -> Recipe:
    if recipe.source.file is None:
        return recipe
    source = recipe.source.model_copy(update={"file": folder / recipe.source.file})
    return recipe.model_copy(update={"source": source})


def explain(error: ValidationError) -> str:
    """One line for the first of a recipe's errors: key, value, what is accepted; how many more."""
    first, *others = error.errors()
    key = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in _key(first["loc"])
    ).lstrip(".")
    line = f"{_one_line(key)}: {_problem(first)}" if key else _problem(first)
    return f"{line} (and {len(others)} more)" if others else line


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _key(loc: tuple[int | str, ...]) -> Iterator[int | str]:
    """The path of a key, without the steps that are pydantic's own, such as union members."""
    return (part for part in loc if part != "[key]")


def _problem(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "missing, and required"
    if kind == "extra_forbidden":
        return f"unknown key; accepted: {', '.join(_accepted_keys(error['loc']))}"
    if kind == "value_error":
        accepted = str(context["error"])
        if not error["loc"]:
            return accepted
    else:
        accepted = re.sub(r"^(Input should be|.* should have|.* should be) ", "", error["msg"])
    hidden = any(part in UNSPOKEN for part in error["loc"]) or (
        # A URL, with whatever stands in it, where an endpoint's settings belong.
        error["loc"][0] == "endpoints" and "://" in str(error["input"])
    )
    if hidden or (isinstance(error["input"], (dict, list, BaseModel)) and kind == "value_error"):
        return f"accepted: {accepted}"
    return f"{shown(error['input'])}; accepted: {accepted}"


def _accepted_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that holds an unknown key."""
    sections: Mapping[str, type[Section]] = {
        "source": Source,
        "columns": Columns,
        "endpoints": Endpoint,
        "generators": Generator,
        "judges": Judge,
        "judging": Judging,
        "pairs": Pairs,
        "argilla": Argilla,
        "hub": Hub,
        "fleet": Fleet,
    }
    holders = [sections[part] for part in loc[:-1] if isinstance(part, str) and part in sections]
    return list((holders[-1] if holders else Recipe).model_fields)
