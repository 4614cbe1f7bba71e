"""A card's YAML header: our keys merged into what stands there. Pure.

Keys that are not ours keep their very bytes, comments included, wherever the header lets itself be
cut at its keys: read and written again, `language: no` would become `false`. Of `configs` and
`dataset_info` the entries of other configurations stay as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from workers.rows import DEFAULT

TAGS = ("dpo", "preference", "synthetic", "prefmill")
_OURS = ("tags", "configs", "dataset_info")


@dataclass(frozen=True, slots=True)
class ConfigurationFacts:
    """A configuration with the number of its rows, and `features` as `dataset_info` has them.

    They are the list that `datasets.Features._to_yaml_list()` makes.
    """

    name: str
    rows: int
    features: Sequence[Mapping[str, Any]]


def merged(header: str, configurations: Sequence[ConfigurationFacts]) -> str | None:
    """The header with our keys in the place of older ones; None if it is no YAML mapping.

    Configurations without rows are left out, and without any the tags alone are ours. No sizes of
    splits are told: shards that are appended later would not match them.
    """
    try:
        loaded = yaml.safe_load(header)
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(header))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    theirs = {} if loaded is None else loaded
    if not isinstance(theirs, dict):
        return None
    ours = _our_keys(theirs, configurations)
    kept = {key: value for key, value in theirs.items() if key not in _OURS}
    spliced = None if aliased else _untouched(header) + dumped(ours)
    if spliced is not None and _reads_as(spliced, kept | ours):
        return spliced
    return (yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else "") + dumped(
        ours
    )


def dumped(data: Mapping[str, Any]) -> str:
    """YAML in the data's own order, without aliases, each text on a line of its own."""
    return yaml.dump(
        dict(data), Dumper=_Written, sort_keys=False, allow_unicode=True, width=1_000_000
    )


class _Written(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Written, text: str) -> yaml.ScalarNode:
    # Over several lines, a text could hold one that looks like the end of a header or a fence.
    style = '"' if len(text.splitlines()) > 1 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Written.add_representer(str, _text)


def _reads_as(header: str, data: Mapping[str, Any]) -> bool:
    try:
        found = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError):
        return False
    return isinstance(found, dict) and found == data


def _untouched(header: str) -> str:
    """Their keys as they are written, ours cut out."""
    node = yaml.compose(header, Loader=yaml.SafeLoader)
    if node is None:
        return header
    entries = [(key.start_mark.index, key.value) for key, _ in node.value]
    starts = [*(start for start, _ in entries), len(header)]
    return header[: starts[0]] + "".join(
        header[start:stop]
        for start, stop, (_, key) in zip(starts, starts[1:], entries, strict=False)
        if key not in _OURS
    )


def _our_keys(
    theirs: Mapping[str, Any], configurations: Sequence[ConfigurationFacts]
) -> dict[str, Any]:
    names = {one.name for one in configurations}
    filled = [one for one in configurations if one.rows]
    foreign = _foreign(theirs.get("configs"), names)
    if DEFAULT in {one.name for one in filled}:
        foreign = [{k: v for k, v in config.items() if k != "default"} for config in foreign]
    tags = theirs.get("tags")
    tags = [tags] if isinstance(tags, str) else tags if isinstance(tags, list) else []
    keys = {
        "tags": [*tags, *(tag for tag in TAGS if tag not in tags)],
        "configs": [_config(one.name) for one in filled] + foreign,
        "dataset_info": [_info(one) for one in filled]
        + _foreign(theirs.get("dataset_info"), names),
    }
    return {key: value for key, value in keys.items() if value}


def _config(name: str) -> dict[str, Any]:
    files = [{"split": "train", "path": f"data/{name}/train-*.parquet"}]
    default = {"default": True} if name == DEFAULT else {}
    return {"config_name": name, "data_files": files, **default}


def _info(one: ConfigurationFacts) -> dict[str, Any]:
    return {"config_name": one.name, "features": json.loads(json.dumps(list(one.features)))}


def _foreign(entries: Any, names: set[str]) -> list[dict[str, Any]]:
    """The entries of configurations that are not ours."""
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("config_name"), str)
        and entry["config_name"] not in names
    ]
