"""What a recipe may say, how a mistake is told, and which changes make it another recipe."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.errors import RecipeError
from workers.recipe import LOCAL_MODEL_URL, Recipe
from workers.recipe_file import MAX_BYTES, load, shipped

SECRET = "hf-NeverPrintMe"

BASE: dict[str, Any] = {
    "name": "fine",
    "source": {"file": "prompts.jsonl"},
    "endpoints": {
        "here": {"base_url": "http://127.0.0.1:8000/v1", "max_concurrency": 64},
        "there": {"base_url": "https://there.example/v1", "api_key_env": "THERE_KEY"},
    },
    "generators": [
        {"name": "a", "endpoint": "here", "model": "model-a", "parameters": {"max_tokens": 64}},
        {"name": "b", "endpoint": "here", "model": "model-b"},
    ],
    "judges": [{"name": "j", "endpoint": "there", "model": "model-j"}],
}
GONE = object()


def with_value(path: str, value: object) -> dict[str, Any]:
    """BASE with the value at a dotted path put in, or taken out if it is GONE."""
    data = copy.deepcopy(BASE)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    holder: Any = data
    for part in parents:
        holder = holder[part] if isinstance(part, int) else holder.setdefault(part, {})
    if value is GONE:
        del holder[last]
    elif isinstance(last, int):
        holder[last : last + 1] = [value]
    else:
        holder[last] = value
    return data


def as_yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False)


def load_text(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(str(path))


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(RecipeError) as caught:
        load_text(folder, text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("name", ["tutorial", "local", "compose"])
def test_a_shipped_recipe_loads_by_its_name(name: str) -> None:
    recipe = load(name)
    assert name in shipped()
    assert len(recipe.generators) == 2
    assert recipe.queues[-3:] == ["judge", "sink", "deliver"]
    assert recipe.destinations == {}


def test_the_tutorial_is_distilabels() -> None:
    recipe = load("tutorial")
    assert recipe.source.hub == "argilla/10Kprompts-mini"
    assert [model.model for model in recipe.models] == [
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "meta-llama/Meta-Llama-3-70B-Instruct",
    ]


def test_the_local_recipe_needs_no_key_and_its_prompts_are_there() -> None:
    recipe = load("local")
    assert {endpoint.base_url for endpoint in recipe.endpoints.values()} == {LOCAL_MODEL_URL}
    assert {endpoint.api_key_env for endpoint in recipe.endpoints.values()} == {None}
    assert recipe.source.file is not None
    assert recipe.source.file.is_file()


def test_a_recipe_that_is_nowhere_is_refused_with_the_shipped_names(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no such file; shipped recipes: compose, local, tutorial"
    ):
        load(str(tmp_path / "absent.yaml"))


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, as_yaml(BASE))
    assert (recipe.seed, recipe.judging.order, recipe.pairs.min_margin) == (0, "shuffled", 0.0)
    assert (recipe.fleet.batch_size, recipe.fleet.window) == (32, 2048)
    assert (recipe.fleet.deadline, recipe.fleet.max_attempts) == (1800, 3)
    assert recipe.endpoints["there"].timeout == 120
    assert recipe.generators[0].truncated == "fail"


@pytest.mark.parametrize(("window", "size"), [(7, 7), (32, 32), (33, 32), (4096, 32)])
def test_batches_are_of_32_or_of_a_smaller_window(tmp_path: Path, window: int, size: int) -> None:
    recipe = load_text(tmp_path, as_yaml(with_value("fleet", {"window": window})))
    assert recipe.fleet.batch_size == size
    assert recipe.hash == load_text(tmp_path, as_yaml(BASE)).hash


def test_a_variable_in_a_value_is_not_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", "expanded")
    recipe = load_text(tmp_path, as_yaml(with_value("generators.0.model", "${MODEL}")))
    assert recipe.generators[0].model == "${MODEL}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [", ["not YAML"]),
        ("\tname: x", ["not YAML"]),
        ("name: x\0", ["not YAML"]),
        (b"name: \xff\xfe", ["cannot be read"]),
        ("a: " + "[" * 1200, ["cannot be read"]),
        ("a: &a {b: *a}", ["not YAML"]),
        ("- a\n- b", ["a list", "accepted: a mapping"]),
        ("", ["accepted: a mapping"]),
        ("just words", ["a str", "accepted: a mapping"]),
        ("name: a\nname: b\n", ["key 'name' twice"]),
        ("source: {file: a, file: b}\n", ["key 'file' twice"]),
        ("? [a]\n: b\n", ["not YAML"]),
        ("name: r\n\n\nseed: [", ["not YAML: line 4"]),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(
    tmp_path: Path, text: str | bytes, parts: list[str]
) -> None:
    message = refusal(tmp_path, text)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("colour", "red", ["colour: unknown key", "accepted: name, seed, source"]),
        ("argilla", {"url": "x"}, ["argilla.url: unknown key", "api_url, workspace, dataset"]),
        ("argilla", {"api_url": "ftp://x"}, ["argilla.api_url: accepted", "http://"]),
        ("hub", {}, ["hub.repo_id: missing, and required"]),
        ("hub", {"repo_id": "it"}, ["hub.repo_id: 'it'", "owner/name"]),
        ("hub", {"repo_id": "me/../it"}, ["hub.repo_id: 'me/../it'", "owner/name"]),
        ("hub", {"repo_id": "me/it", "token": "x"}, ["hub.token: unknown key", "repo_id, private"]),
        ("source.splt", "x", ["source.splt: unknown key", "hub, file, stdin, split"]),
        ("source.columns.chat", "x", ["source.columns.chat: unknown", ": instruction, system"]),
        ("source.columns.messages", "", ["source.columns.messages: ''", "at least 1"]),
        ("endpoints.here.api_key", SECRET, ["endpoints.here.api_key: unknown", "api_key_env"]),
        ("generators.0.samples", 0, ["generators[0].samples: 0", "greater than or equal to 1"]),
        ("generators.0.system_prompt", "", ["generators[0].system_prompt: ''", "at least 1"]),
        ("judges.0.weight", 0, ["judges[0].weight: 0", "greater than 0"]),
        ("judging.quorum", 2, ["judging.quorum: 2", "number of judges, 1"]),
        ("judging.order", "all", ["judging.order: 'all'", "'as-given', 'shuffled' or 'both'"]),
        ("judging.score", "mode", ["judging.score: 'mode'", "'stated' or 'expectation'"]),
        ("judging", {"half_points": True, "score": "expectation"}, ["judging.score", "'stated'"]),
        ("pairs.ties", "keep", ["pairs.ties: 'keep'", "'drop' or 'keep-labelled'"]),
        ("pairs.strategy", "all", ["pairs.strategy: 'all'", "'max-min'", "'all-pairs'"]),
        ("pairs.max_length_ratio", 0.5, ["pairs.max_length_ratio: 0.5", "greater than or equal"]),
        ("pairs.near_identical", 1.5, ["pairs.near_identical: 1.5", "less than or equal to 1"]),
        ("judges.0.aspects", ["style"], ["judges[0].aspects[0]: 'style'", "'overall-rating'"]),
        ("judges.0.aspects", ["honesty"] * 2, ["judges[0].aspects", "each aspect once"]),
        (
            "generators.0",
            {**BASE["generators"][0], "samples": 2, "parameters": {"seed": 7}},
            ["generators[0].parameters.seed: 7", "a seed of its own"],
        ),
        ("judges.0.aspects", [], ["judges[0].aspects: []", "at least 1"]),
        ("name", "Not A Slug", ["name: 'Not A Slug'", "a-z, 0-9 and -"]),
        ("name", "-x", ["name: '-x'", "not at either end"]),
        ("name", "x" * 65, ["name: 'xxx", "1 to 64"]),
        ("name", GONE, ["name: missing, and required"]),
        ("source", GONE, ["source: missing"]),
        ("endpoints", GONE, ["endpoints: missing"]),
        ("generators", GONE, ["generators: missing"]),
        ("judges", GONE, ["judges: missing"]),
        ("generators.1.model", GONE, ["generators[1].model: missing"]),
        ("endpoints.here.base_url", GONE, ["endpoints.here.base_url: missing"]),
        ("source", {}, ["source", "exactly one of hub, file and stdin"]),
        ("source.stdin", True, ["source", "exactly one of hub, file and stdin"]),
        ("source.hub", "a/b/c", ["source.hub: 'a/b/c'"]),
        ("source.limit", 0, ["source.limit: 0", "greater than or equal to 1"]),
        ("source.columns.instruction", "", ["source.columns.instruction: ''", "at least 1"]),
        ("generators.1", GONE, ["generators: 1 candidate", "at least two"]),
        ("generators", [], ["generators: []", "at least 1"]),
        ("judges", [], ["judges: []", "at least 1"]),
        ("judges.1", BASE["judges"][0], ["judges[1].name: 'j'", "that no other has"]),
        ("generators.1.name", "a", ["generators[1].name: 'a'", "that no other has"]),
        ("judges.0.name", "a", ["judges[0].name: 'a'", "that no other has"]),
        (
            "generators.1.endpoint",
            "nowhere",
            ["generators[1].endpoint: 'nowhere'", "here, there"],
        ),
        ("endpoints.A B", {"base_url": "http://h"}, ["endpoints", "'A B'", "a-z, 0-9 and -"]),
        ("seed", "7", ["seed: '7'", "valid integer"]),
        ("seed", True, ["seed: True", "valid integer"]),
        ("seed", 1.5, ["seed: 1.5", "valid integer"]),
        ("fleet.batch_size", "8", ["fleet.batch_size: '8'", "valid integer"]),
        ("fleet.batch_size", 0, ["fleet.batch_size: 0", "greater than or equal to 1"]),
        ("fleet.batch_size", 257, ["fleet.batch_size: 257", "less than or equal to 256"]),
        ("fleet", {"batch_size": 8, "window": 7}, ["fleet.window: 7", "fleet.batch_size, 8"]),
        ("fleet.batch_size", "auto", ["fleet.batch_size: 'auto'", "valid integer"]),
        ("fleet.deadline", 0, ["fleet.deadline: 0", "greater than 0"]),
        ("fleet.max_attempts", 101, ["fleet.max_attempts: 101", "less than or equal to 100"]),
        ("endpoints.here.max_concurrency", 0, ["endpoints.here.max_concurrency: 0", "equal to 1"]),
        ("endpoints.here.timeout", -1, ["endpoints.here.timeout: -1", "greater than 0"]),
        ("endpoints.here.timeout", 901, ["endpoints.here.timeout: 901", "less than or equal to"]),
        ("endpoints.here.timeout", "1m", ["endpoints.here.timeout: '1m'", "valid number"]),
        ("pairs.min_margin", 5, ["pairs.min_margin: 5", "less than or equal to 4"]),
        ("pairs.min_margin", float("nan"), ["pairs.min_margin: nan"]),
        ("generators.0.truncated", "drop", ["generators[0].truncated: 'drop'", "'fail' or 'keep'"]),
        ("generators.0.model", "", ["generators[0].model: ''", "at least 1"]),
        ("generators.0.parameters", {"model": "x"}, ["generators[0].parameters", "model"]),
        ("judges.0.parameters", {"stream": True}, ["judges[0].parameters", "stream"]),
        ("generators.0.parameters", [], ["generators[0].parameters: []", "dictionary"]),
        ("endpoints.here.base_url", "127.0.0.1:8000", ["endpoints.here.base_url", "http://"]),
        ("endpoints.here.base_url", "ftp://h/v1", ["endpoints.here.base_url", "https://"]),
        ("endpoints.here.base_url", "http://", ["endpoints.here.base_url", "URL"]),
        ("endpoints.here.base_url", "local:other", ["endpoints.here.base_url", LOCAL_MODEL_URL]),
        ("endpoints.here.proxy", "socks", ["endpoints.here.proxy", "http://"]),
    ],
)
def test_a_mistake_is_told_by_its_key_its_value_and_what_is_accepted(
    tmp_path: Path, path: str, value: object, parts: list[str]
) -> None:
    message = refusal(tmp_path, as_yaml(with_value(path, value)))
    assert message.startswith(str(tmp_path))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("endpoints.here.base_url", f"https://me:{SECRET}@there.example/v1"),
        ("endpoints.here.base_url", f"https://there.example/v1?key={SECRET}"),
        ("endpoints.here.base_url", SECRET),
        ("endpoints.here.api_key_env", SECRET),
        ("endpoints.here.api_key_env", [SECRET]),
        ("endpoints.here.api_key", SECRET),
        ("endpoints.here.proxy", f"http://me:{SECRET}@proxy.example"),
        ("argilla", {"api_url": f"https://me:{SECRET}@argilla.example"}),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(
    tmp_path: Path, path: str, value: object
) -> None:
    message = refusal(tmp_path, as_yaml(with_value(path, value)))
    assert path in message
    assert SECRET not in message


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    message = refusal(tmp_path, as_yaml(with_value("name", "X" * 5000)))
    assert len(message) < len(str(tmp_path)) + 300


def test_of_many_mistakes_the_first_is_told_and_the_others_counted(tmp_path: Path) -> None:
    data = with_value("seed", "x") | {"one": 1, "two": 2}
    message = refusal(tmp_path, as_yaml(data))
    assert "seed: 'x'" in message
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize(("path", "value"), [("fleet.batch size", 8), ("pairs.mÿ/x", 1)])
def test_an_unknown_key_of_any_shape_is_named(tmp_path: Path, path: str, value: object) -> None:
    assert path in refusal(tmp_path, as_yaml(with_value(path, value)))


@pytest.mark.parametrize(
    "text",
    [
        "name: 2024-13-45",
        "seed: " + "9" * 5000,
        "seed: !!int x",
        "seed: !!float x",
        "seed: !!timestamp x",
    ],
)
def test_a_value_that_yaml_cannot_build_is_refused(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_a_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, as_yaml(with_value("endpoints.here.timeout", 10**400)))


@pytest.mark.parametrize("url", ["http://h:port/v1", "http://h:99999/v1", "http://two words/v1"])
def test_a_url_that_no_client_can_open_is_refused(tmp_path: Path, url: str) -> None:
    refusal(tmp_path, as_yaml(with_value("endpoints.here.base_url", url)))


@pytest.mark.parametrize(
    "text",
    [
        as_yaml(with_value("endpoints.here", f"https://me:{SECRET}@there.example/v1")),
        f"endpoints: {{here: {{api_key_env: {SECRET}: x}}}}",
        f"here:\n  proxy: http://me:{SECRET}@p\n  proxy: x\n",
    ],
)
def test_a_secret_is_not_repeated_from_broken_yaml_either(tmp_path: Path, text: str) -> None:
    assert SECRET not in refusal(tmp_path, text)


def test_a_token_without_a_dash_is_no_name_of_a_variable(tmp_path: Path) -> None:
    token = "hf_" + "aB3" * 11
    message = refusal(tmp_path, as_yaml(with_value("endpoints.here.api_key_env", token)))
    assert token not in message


def test_an_empty_file_name_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, as_yaml(with_value("source.file", "")))


def test_a_parameter_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    nan = {"temperature": float("nan")}
    refusal(tmp_path, as_yaml(with_value("generators.0.parameters", nan)))


def test_a_relative_file_counts_from_the_recipes_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    recipe = load_text(tmp_path, as_yaml(with_value("source.file", "data/p.jsonl")))
    assert recipe.source.file == tmp_path / "data" / "p.jsonl"


def test_an_absolute_file_stays_where_it_is(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, as_yaml(with_value("source.file", "/elsewhere/p.jsonl")))
    assert recipe.source.file == Path("/elsewhere/p.jsonl")


def test_neither_a_tilde_nor_a_variable_in_a_path_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    for name in ("~/p.jsonl", "$HOME/p.jsonl", "~no-such-user/p.jsonl"):
        recipe = load_text(tmp_path, as_yaml(with_value("source.file", name)))
        assert recipe.source.file == tmp_path / name


@pytest.mark.parametrize("key", [7, 1.5, True, None, ""])
def test_a_key_that_is_no_word_is_refused_on_one_line(tmp_path: Path, key: object) -> None:
    refusal(tmp_path, as_yaml({**BASE, key: 1}))  # type: ignore[dict-item]
    refusal(tmp_path, as_yaml({**BASE, "fleet": {key: 1}}))
    refusal(tmp_path, as_yaml({**BASE, "endpoints": {key: BASE["endpoints"]["here"]}}))


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m"])
def test_a_key_with_control_characters_is_told_on_one_line(tmp_path: Path, key: str) -> None:
    assert refusal(tmp_path, as_yaml({**BASE, key: 1})).isprintable()


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(dict(data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("generators.0.model", "other"),
        ("generators.0.name", "other"),
        ("generators.0.parameters", {"max_tokens": 65}),
        ("generators.0.parameters", {}),
        ("generators.0.truncated", "keep"),
        ("generators.2", {"name": "c", "endpoint": "here", "model": "model-c"}),
        ("judges.0.model", "other"),
        ("judges.0.name", "other"),
        ("judges.0.parameters", {"temperature": 0.1}),
        ("judges.0.structured", "text"),
        ("judges.0.aspects", ["honesty", "helpfulness"]),
        ("judges.0.weight", 0.5),
        ("generators.0.samples", 2),
        ("generators.0.system_prompt", "Be brief."),
        ("judging.order", "as-given"),
        ("judging.order", "both"),
        ("judging.half_points", True),
        ("judging.score", "expectation"),
        ("source.columns.instruction", "question"),
        ("source.columns.system_prompt", "system"),
        ("source.columns.messages", "chat"),
    ],
)
def test_the_hash_changes_with_what_shapes_rows(path: str, value: object) -> None:
    assert recipe_of(with_value(path, value)).hash != recipe_of(BASE).hash


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "another-run"),
        ("endpoints.here.max_concurrency", 1),
        ("endpoints.here.base_url", "https://elsewhere.example/v1"),
        ("endpoints.here.timeout", 5),
        ("endpoints.here.proxy", "http://proxy.example:3128"),
        ("endpoints.here.api_key_env", "OTHER"),
        ("generators.0.max_concurrency", 3),
        ("generators.0.endpoint", "there"),
        ("judges.0.max_concurrency", 3),
        ("pairs.min_margin", 1.0),
        ("pairs.strategy", "all-pairs"),
        ("pairs.ties", "keep-labelled"),
        ("fleet.batch_size", 1),
        ("fleet.window", 64),
        ("fleet.deadline", 5),
        ("source.limit", 3),
        ("source", {"stdin": True}),
        ("seed", 0),
        ("judging.order", "shuffled"),
        ("generators.0.truncated", "fail"),
    ],
)
def test_the_hash_stays_with_what_only_carries_rows(path: str, value: object) -> None:
    assert recipe_of(with_value(path, value)).hash == recipe_of(BASE).hash


def test_the_hash_does_not_depend_on_the_order_of_parameters() -> None:
    there = {"temperature": 0.7, "max_tokens": 64}
    back = dict(reversed(there.items()))
    first, second = (with_value("generators.0.parameters", one) for one in (there, back))
    assert recipe_of(first).hash == recipe_of(second).hash


def test_models_share_their_endpoint() -> None:
    recipe = recipe_of(BASE)
    a, b, j = recipe.models
    assert (recipe.cap(a), recipe.cap(b), recipe.cap(j)) == (32, 32, 64)


def test_a_model_with_a_limit_of_its_own_gets_it_up_to_its_endpoints() -> None:
    recipe = recipe_of(with_value("generators.0.max_concurrency", 50))
    assert [recipe.cap(model) for model in recipe.models] == [50, 32, 64]
    recipe = recipe_of(with_value("generators.0.max_concurrency", 500))
    assert recipe.cap(recipe.generator("a")) == 64


def test_a_share_is_never_less_than_one_call() -> None:
    recipe = recipe_of(with_value("endpoints.here.max_concurrency", 1))
    assert [recipe.cap(model) for model in recipe.generators] == [1, 1]


def test_a_generator_is_found_by_its_name() -> None:
    recipe = recipe_of(BASE)
    assert recipe.generator("b").model == "model-b"
    with pytest.raises(KeyError):
        recipe.generator("c")


def test_one_generator_with_samples_makes_its_own_candidates() -> None:
    data = with_value("generators.0.samples", 3)
    recipe = recipe_of({**data, "generators": data["generators"][:1]})
    assert recipe.slots == [("a", 0), ("a", 1), ("a", 2)]


def test_every_judge_judges_every_aspect_in_every_order() -> None:
    assert recipe_of(BASE).judgements == 1
    data = with_value("judges.0.aspects", ["honesty", "helpfulness", "truthfulness"])
    data = {**data, "judging": {"order": "both"}}
    data["judges"].append({**BASE["judges"][0], "name": "second"})
    assert recipe_of(data).judgements == (3 + 1) * 2


def test_a_judge_that_is_a_generator_as_well_is_warned_of() -> None:
    assert list(recipe_of(BASE).warnings()) == []
    (told,) = recipe_of(with_value("judges.0.model", "model-b")).warnings()
    assert told.startswith("judges[0].model: j shares model-b with generator b")


def test_a_recipe_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, as_yaml(with_value("name", "x")) + "#" * MAX_BYTES)
    assert "more than 1,000,000 bytes; accepted" in message
