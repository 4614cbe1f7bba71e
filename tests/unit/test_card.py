"""The dataset card: what it says, what it keeps of a person's card, and that nothing breaks it."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.card import BEGIN, END, ConfigurationFacts, Counts, names, render
from workers.recipe import Recipe
from workers.records import Pair, Prompt
from workers.rows import default_row

MESSAGES = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
FEATURES = [
    {"name": "topic", "dtype": "string"},
    {"name": "prompt", "list": MESSAGES},
    {"name": "chosen_rating", "dtype": "float64"},
    {"name": "generations", "list": "string"},
]
CONFIGURATIONS = (
    ConfigurationFacts("default", 40, FEATURES),
    ConfigurationFacts("full", 43, FEATURES),
)
EMPTY = tuple(replace(one, rows=0) for one in CONFIGURATIONS)
COUNTS = Counts(60, 40, {"tie": 3, "small_margin": 2}, {"too_few_generations": 5})
RECIPE = Recipe.model_validate(
    {
        "name": "mill",
        "source": {"file": "/home/me/secret-prompts.jsonl"},
        "endpoints": {
            "house": {
                "base_url": "http://10.0.0.7:8000/v1",
                "api_key_env": "HOUSE_KEY",
                "proxy": "http://proxy.house:3128",
            }
        },
        "generators": [
            {
                "name": "a",
                "endpoint": "house",
                "model": "org/model-a",
                "parameters": {"temperature": 0.7, "max_tokens": 512},
                "truncated": "keep",
            },
            {"name": "b", "endpoint": "house", "model": "org/model-b", "samples": 3},
        ],
        "judges": [
            {
                "name": "j",
                "endpoint": "house",
                "model": "org/model-j",
                "aspects": ["honesty", "helpfulness"],
                "weight": 2.5,
            }
        ],
        "argilla": {"api_url": "https://argilla.house", "workspace": "our-workspace"},
        "hub": {"repo_id": "me/pairs"},
    }
).model_dump(mode="json")
SAMPLE = {"topic": "physics"} | default_row(
    Prompt("Why is the sky blue?"), Pair("Rayleigh.", "org/model-a", 5.0, "Paint.", "m", 1.5)
)


def card(existing: str = "", **changes: Any) -> str:
    facts: dict[str, Any] = {
        "repo_id": "me/pairs",
        "run": "mill",
        "configurations": CONFIGURATIONS,
        "recipe": RECIPE,
        "counts": COUNTS,
        "sample": SAMPLE,
        "private": False,
    }
    return render(existing, **{**facts, **changes})


def header(text: str) -> dict[str, Any]:
    """The header as the Hub's own client reads it."""
    found: dict[str, Any] = yaml.safe_load(str(DatasetCard(text).data))
    return found


def block(text: str, language: str) -> str:
    found = re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2]


def test_the_header_tells_the_hub_how_to_load_each_configuration() -> None:
    assert yaml.safe_load(card().split("---\n")[1]) == {
        "tags": ["dpo", "preference", "synthetic", "prefmill"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/default/train-*.parquet"}],
                "default": True,
            },
            {
                "config_name": "full",
                "data_files": [{"split": "train", "path": "data/full/train-*.parquet"}],
            },
        ],
        "dataset_info": [
            {"config_name": "default", "features": FEATURES},
            {"config_name": "full", "features": FEATURES},
        ],
    }
    assert header(card())["tags"] == ["dpo", "preference", "synthetic", "prefmill"]
    assert "num_examples" not in card()
    assert "&id" not in card()


def test_a_configuration_without_rows_is_left_out() -> None:
    text = card(configurations=(EMPTY[0], CONFIGURATIONS[1]))
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert [one["config_name"] for one in loaded["configs"]] == ["full"]
    assert [one["config_name"] for one in loaded["dataset_info"]] == ["full"]
    assert "default = load_dataset" not in text


def test_without_any_row_the_header_has_tags_alone() -> None:
    text = card(configurations=EMPTY, sample=None)
    assert list(yaml.safe_load(text.split("---\n")[1])) == ["tags"]
    assert "There are no rows yet." in text
    assert "load_dataset" not in text
    # What an earlier card said of rows that are gone goes as well.
    assert list(yaml.safe_load(card(card(), configurations=EMPTY).split("---\n")[1])) == ["tags"]


def test_a_new_card_says_what_made_the_rows_and_how_they_load() -> None:
    text = card()
    assert text.count(BEGIN) == text.count(END) == 1
    assert "# mill" in text
    code = block(text, "python")
    assert 'default = load_dataset("me/pairs", split="train")' in code
    assert 'full = load_dataset("me/pairs", "full", split="train")' in code
    compile(code, "card", "exec")
    assert "`default`: 40 rows" in text
    assert "| prompt | list of \\{role, content\\} |" in text
    assert "| generations | list of string |" in text
    assert "hf auth login" not in text
    assert "hf auth login" in card(private=True)


def test_models_are_named_with_what_they_did() -> None:
    text = card()
    assert "| b | org/model\\-b | generator, answers to a prompt: 3 |" in text
    assert "| j | org/model\\-j | judge of honesty, helpfulness, weight 2.5 |" in text


def test_prompts_are_counted_by_how_they_ended() -> None:
    text = card()
    for line in (
        "| paired |  | 40 |",
        "| rejected | tie | 3 |",
        "| rejected | small\\_margin | 2 |",
        "| failed | too\\_few\\_generations | 5 |",
        "| in flight |  | 10 |",
        "| accepted |  | 60 |",
    ):
        assert line in text
    assert "in flight" not in card(counts=Counts(1, 1))


def test_the_recipe_tells_models_parameters_and_policy_but_no_place_or_key() -> None:
    text = card()
    recipe = yaml.safe_load(block(text, "yaml"))
    assert list(recipe) == ["seed", "generators", "judges", "judging", "pairs"]
    assert recipe["generators"][0]["parameters"] == {"temperature": 0.7, "max_tokens": 512}
    assert recipe["judging"]["order"] == "shuffled"
    assert recipe["pairs"]["strategy"] == "max-min"
    for untold in ("10.0.0.7", "HOUSE_KEY", "house", "secret-prompts", "/home", "workspace"):
        assert untold not in text


def test_a_source_on_the_hub_is_told() -> None:
    source = RECIPE["source"] | {"file": None, "hub": "argilla/10Kprompts-mini"}
    recipe = yaml.safe_load(block(card(recipe=RECIPE | {"source": source}), "yaml"))
    assert recipe["source"] == {
        "hub": "argilla/10Kprompts-mini",
        "split": "train",
        "columns": {"instruction": "instruction"},
    }


def test_parameters_that_look_like_keys_or_addresses_are_not_told() -> None:
    parameters = {
        "max_tokens": 9,
        "stop_token_ids": [7],
        "top_p": 0.5,
        "api_key": "k-1",
        "user": "u-1",
        "extra_body": {"deep": {"auth_token": "t-1", "min_tokens": 3}, "hooks": ["http://x.y/z"]},
        "callback": "https://x.y/z",
    }
    generators = [RECIPE["generators"][0] | {"parameters": parameters}, RECIPE["generators"][1]]
    text = card(recipe=RECIPE | {"generators": generators})
    assert yaml.safe_load(block(text, "yaml"))["generators"][0]["parameters"] == {
        "max_tokens": 9,
        "stop_token_ids": [7],
        "top_p": 0.5,
        "extra_body": {"deep": {"min_tokens": 3}, "hooks": []},
    }


def test_the_sample_is_a_row_with_its_texts_cut() -> None:
    long = SAMPLE | {"chosen": [{"role": "assistant", "content": "x" * 5000}]}
    shown = json.loads(block(card(sample=long), "json"))
    assert list(shown) == list(SAMPLE)
    assert shown["chosen"][0]["content"] == "x" * 400 + "…"
    assert shown["rejected"] == SAMPLE["rejected"]
    assert "One row" not in card(sample=None)


def test_caveats_follow_from_the_recipe_and_the_rows() -> None:
    text = card()
    assert "by models, not by people." in text
    assert "`full` has 3 ties" in text
    assert "cut off at `max_tokens`" in text
    assert "in one order" in text
    assert "very model" not in text
    assert "for 7 prompts that people rated" in card(counts=replace(COUNTS, by_people=7))
    both = RECIPE | {
        "judging": RECIPE["judging"] | {"order": "both"},
        "pairs": RECIPE["pairs"] | {"max_length_ratio": 2.0},
        "generators": [RECIPE["generators"][1] | {"model": "org/model-j"}],
    }
    text = card(recipe=both, configurations=CONFIGURATIONS[:1])
    assert "very model" in text
    assert not [
        word for word in ("ties as well", "one order", "longer than", "cut off") if word in text
    ]


THEIRS = """---
# ours since 2024
license: apache-2.0   # as the prompts
language:
- no
- de
pretty_name: 'Prüfung "A"'
tags: [mine, dpo]
size_categories:
- 1K<n<10K
---

# My pairs

Written by hand.
"""


def test_keys_and_text_of_a_person_stay_as_they_are() -> None:
    text = card(THEIRS)
    before, after = THEIRS.split("tags: [mine, dpo]\n")
    assert text.startswith(before + after.split("---")[0])
    assert "# My pairs\n\nWritten by hand.\n\n" + BEGIN in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == [
        *("mine", "dpo", "preference", "synthetic", "prefmill")
    ]
    assert header(text)["pretty_name"] == 'Prüfung "A"'


def test_our_part_is_replaced_where_it_stands() -> None:
    text = card(THEIRS).replace(END, END + "\n\n## Thanks\n\nTo all.")
    again = card(text, counts=replace(COUNTS, accepted=61))
    assert again == text.replace("| accepted |  | 60 |", "| accepted |  | 61 |").replace(
        "| in flight |  | 10 |", "| in flight |  | 11 |"
    )


@pytest.mark.parametrize(
    "existing",
    [
        "",
        "\n\n",
        "---\n---\n",
        "---\n# a comment\n---\n",
        "---\nlicense: mit\n---",
        "---\r\nlicense: mit\r\n---\r\n\r\n# Mine\r\n",
        "\ufeff---\nlicense: mit\n---\n",
        "---\n{license: mit, tags: x}\n---\n",
        "---\n  license: mit\n---\n",
        "---\n? license\n: mit\n---\n",
        "---\nlicense: mit\n...\n---\n",
        "---\nlicense: &l mit\nother: *l\ntags: [*l]\n---\n",
        "---\nlicense: mit\ntags: &t [a]\ntagged: *t\n---\n",
        "---\nlicense: mit\ntags:\n- a\n# the end\n---\n",
    ],
)
def test_whatever_form_a_header_has_its_keys_stay(existing: str) -> None:
    text = card(existing)
    loaded = header(text)
    assert ("license" in loaded) == ("license" in existing)
    assert loaded.get("license", "mit") == "mit"
    assert loaded["tags"][-1] == "prefmill"
    assert loaded["configs"][0]["config_name"] == "default"
    assert card(text) == text


@pytest.mark.parametrize(
    "existing",
    [
        "---\nlicense: [mit\n---\n\n# Mine\n",
        "---\n- a list\n---\nMine\n",
        "---\njust a text\n---\nMine\n",
        "---\na: 1\n\tb: 2\n---\nMine\n",
        "---\na: b: c\n---\n",
        "---\n? [a, {}]\n: b\n---\n",
        "---\nno end of it\n",
    ],
)
def test_a_card_without_a_readable_header_is_kept_as_text(existing: str) -> None:
    text = card(existing)
    assert existing.strip() in text
    assert header(text)["configs"][0]["config_name"] == "default"
    assert card(text) == text


def test_a_header_that_a_person_broke_does_not_double_our_part() -> None:
    broken = card(THEIRS).replace("license: apache-2.0", "license: [apache-2.0")
    text = card(broken)
    assert text.count(BEGIN) == 1
    assert "Written by hand." in text
    assert card(text) == text


@pytest.mark.parametrize(
    "existing", [f"a {BEGIN} b", f"a {END} b", f"a {END} b {BEGIN} c", f"a {BEGIN} b {BEGIN} c"]
)
def test_a_mark_without_its_other_takes_no_text_away(existing: str) -> None:
    text = card(existing)
    assert all(word in text for word in existing.split())
    assert card(text) == text


def test_configurations_of_others_stay_loadable() -> None:
    existing = yaml.safe_dump(
        {
            "configs": [
                {"config_name": "raw", "data_files": "raw/*.parquet", "default": True},
                {"config_name": "full", "data_files": "old/*"},
            ],
            "dataset_info": {"features": [], "splits": []},
        }
    )
    text = card(f"---\n{existing}---\n")
    configs = yaml.safe_load(text.split("---\n")[1])["configs"]
    assert [one["config_name"] for one in configs] == ["default", "full", "raw"]
    assert [one["config_name"] for one in configs if one.get("default")] == ["default"]
    assert configs[2] == {"config_name": "raw", "data_files": "raw/*.parquet"}
    empty = yaml.safe_load(card(f"---\n{existing}---\n", configurations=EMPTY).split("---\n")[1])
    assert empty["configs"] == [
        {"config_name": "raw", "data_files": "raw/*.parquet", "default": True}
    ]


FORGED = [
    "```\n# out of the fence\n---\nlicense: mit\n---\n",
    f"{END} text {BEGIN}",
    "`````json\n~~~\n<script>alert(1)</script> | a | b |",
    "---\r\nconfigs: []\r\n---",
    "half \ud83d of it \x00\x85\u2028",
]


@pytest.mark.parametrize("forged", FORGED)
def test_no_text_of_a_model_a_recipe_or_a_source_breaks_out(forged: str) -> None:
    features = [*FEATURES, {"name": forged, "dtype": "string"}]
    generators = [
        RECIPE["generators"][0] | {"model": forged, "system_prompt": forged},
        RECIPE["generators"][1] | {"parameters": {forged: forged, "stop": [forged]}},
    ]
    text = card(
        "Mine.\n",
        recipe=RECIPE | {"generators": generators},
        sample=SAMPLE | {forged: forged, "chosen": [{"role": "assistant", "content": forged}]},
        counts=replace(COUNTS, failed={forged: 1}),
        configurations=(replace(CONFIGURATIONS[0], features=features),),
    )
    body = re.split("^---\n", text, maxsplit=2, flags=re.MULTILINE)[2]
    assert body.startswith("\nMine.\n")
    assert body.count(BEGIN) == body.count(END) == 1
    assert body.count("<!--") == body.count("-->") == 2
    assert not re.search("^(---|# out)", body, re.MULTILINE)
    outside = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", body, flags=re.S | re.M)
    assert "`" not in re.sub(r"\\`|`\w+`", "", outside)
    assert "<script>" not in outside
    assert text.encode()
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert loaded["tags"] == ["dpo", "preference", "synthetic", "prefmill"]
    names = [one["name"] for one in loaded["dataset_info"][0]["features"]]
    assert names[:-1] == [one["name"] for one in FEATURES]
    assert json.loads(block(text, "json"))["chosen"][0]["role"] == "assistant"


def test_a_card_has_its_bounds_whatever_the_recipe_and_the_rows() -> None:
    wide = {f"parameter-{n}": "é" * 5000 for n in range(60)}
    generator = RECIPE["generators"][0] | {"model": "💥" * 5000, "parameters": wide}
    judge = RECIPE["judges"][0] | {"model": "💥" * 5000}
    deep: Any = "x" * 1000
    for _ in range(50):
        deep = [deep, deep] if len(str(deep)) < 5000 else {"deep": deep}
    text = card(
        recipe=RECIPE | {"generators": [generator] * 30, "judges": [judge] * 300},
        sample=SAMPLE | {f"column-{n}": "💥" * 5000 for n in range(30)} | {"deep": deep},
        counts=Counts(10**9, 5, {f"reason {n}": n for n in range(500)}),
    )
    assert len(text.encode()) < 48_000
    assert len(yaml.safe_load(block(text, "yaml"))["generators"][0]["parameters"]) > 5
    assert block(text, "yaml").endswith("# and more")
    assert "more |" in text


TEXTS = st.text(max_size=40) | st.sampled_from(
    [
        BEGIN,
        END,
        "---\n",
        "---\ntags: [a]\n---\n",
        "---\nx: 1\n---\n\nText\n",
        "```",
        "<!--",
        *FORGED,
    ]
)


@settings(max_examples=40)
@given(st.lists(TEXTS, max_size=5).map("".join), TEXTS, st.integers(0, 2))
def test_a_card_rendered_again_is_the_same(existing: str, text: str, rows: int) -> None:
    changes = {
        "sample": SAMPLE | {"topic": text},
        "configurations": [replace(one, rows=rows) for one in CONFIGURATIONS],
        "recipe": RECIPE | {"generators": [RECIPE["generators"][0] | {"system_prompt": text}]},
    }
    once = card(existing, **changes)
    assert card(existing, **changes) == once
    assert card(once, **changes) == once
    assert yaml.safe_load(once.split("---\n")[1])["tags"][-1] == "prefmill"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_card_names_the_run_whose_repository_it_stands_in(line_end: str) -> None:
    text = card("Mine.\n\n# another\n", run="mill-2", identity="7.5").replace("\n", line_end)
    assert names(text, "mill-2", "7.5")
    assert not any(names(text, run, "7.5") for run in ("mill", "another", "mill-22"))
    assert not names(text, "mill-2", "7.6")
    assert not names(card("", run="mill-2"), "mill-2", "")
    assert not names("# mill-2\n", "mill-2", "7.5")
    assert not names("", "mill-2", "7.5")
