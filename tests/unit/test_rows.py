"""The shapes that rows have, and the names under which a source's own columns ride along."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.records import Generation, Judgement, Pair, Prompt, Rating, Usage, sha256
from workers.rows import (
    COLUMNS,
    DEFAULT,
    DEFAULT_COLUMNS,
    FULL,
    FULL_COLUMNS,
    KTO,
    KTO_COLUMNS,
    REWARD,
    REWARD_COLUMNS,
    TRL_ENDINGS,
    TRL_NAMES,
    default_row,
    full_row,
    kto_rows,
    reward_row,
    ride_along_names,
)

PROMPT = Prompt("Why is the sky blue?", {"topic": "physics"})
PAIR = Pair("Rayleigh.", "model-a", 5.0, "Paint.", "model-b", 1.5)
GENERATIONS = (
    Generation(
        "a",
        "model-a",
        text="Rayleigh.",
        finish_reason="stop",
        reported_model="model-a-0613",
        usage=Usage(input_tokens=9, output_tokens=3),
    ),
    Generation("b", "model-b", text="Paint.", finish_reason="length"),
    Generation("c", "model-c", reason="timeout", detail="no whole reply in 3 s"),
)
JUDGEMENT = Judgement(
    "j", "model-j", "overall-rating", (Rating(5.0, "right"), Rating(1.5, "wrong")), (1, 0)
)


def full() -> dict[str, Any]:
    return full_row(PROMPT, PAIR, GENERATIONS, [JUDGEMENT])


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_default_has_the_seeds_eight_columns_in_order() -> None:
    names = (
        "prompt prompt_id chosen chosen_model chosen_rating rejected rejected_model rejected_rating"
    )
    assert [name for name, _ in DEFAULT_COLUMNS] == names.split()
    assert list(default_row(PROMPT, PAIR)) == names.split()


def test_a_default_row_holds_the_prompt_apart_from_the_answers() -> None:
    assert default_row(PROMPT, PAIR) == {
        "prompt": [message("user", PROMPT.instruction)],
        "prompt_id": sha256(PROMPT.instruction),
        "chosen": [message("assistant", "Rayleigh.")],
        "chosen_model": "model-a",
        "chosen_rating": 5.0,
        "rejected": [message("assistant", "Paint.")],
        "rejected_model": "model-b",
        "rejected_rating": 1.5,
    }


def test_a_full_row_has_just_the_columns_of_full() -> None:
    assert sorted(full()) == sorted(name for name, _ in FULL_COLUMNS)
    assert COLUMNS[DEFAULT] == DEFAULT_COLUMNS
    assert COLUMNS[FULL] == FULL_COLUMNS


def test_a_full_row_has_distilabels_shape() -> None:
    row = full()
    asked = message("user", PROMPT.instruction)
    assert (row["instruction"], row["prompt"]) == (PROMPT.instruction, PROMPT.instruction)
    assert row["system_prompt"] is None
    assert row["generations"] == ["Rayleigh.", "Paint."]
    assert row["generation_models"] == ["model-a", "model-b"]
    assert row["ratings"] == [5.0, 1.5]
    assert row["rationales"] == ["right", "wrong"]
    assert row["model_name"] == "model-j"
    assert row["chosen"] == [asked, message("assistant", "Rayleigh.")]
    assert row["rejected"] == [asked, message("assistant", "Paint.")]


def test_both_rows_tell_the_same_pair() -> None:
    shared = ("prompt_id", "chosen_model", "chosen_rating", "rejected_model", "rejected_rating")
    default = default_row(PROMPT, PAIR)
    assert [full()[name] for name in shared] == [default[name] for name in shared]


def test_metadata_says_how_each_generation_ended() -> None:
    facts = json.loads(full()["metadata"])["generations"]
    assert [fact["generator"] for fact in facts] == ["a", "b", "c"]
    assert [fact["finish_reason"] for fact in facts] == ["stop", "length", None]
    assert [fact["truncated"] for fact in facts] == [False, True, False]
    assert [fact["failed"] for fact in facts] == [None, None, "timeout"]
    assert (facts[0]["input_tokens"], facts[0]["output_tokens"]) == (9, 3)
    assert facts[0]["reported_model"] == "model-a-0613"


def test_metadata_says_in_which_order_the_judge_saw_the_texts() -> None:
    (fact,) = json.loads(full()["metadata"])["judgements"]
    assert (fact["judge"], fact["model"], fact["aspect"]) == ("j", "model-j", "overall-rating")
    assert fact["order"] == [1, 0]
    assert fact["ratings"] == [5.0, 1.5]


def test_metadata_says_with_which_parameters_models_were_asked() -> None:
    assert "parameters" in json.loads(full()["metadata"])["generations"][0]


def test_judges_of_one_model_are_named_once() -> None:
    other = Judgement("k", "model-k", "overall-rating", JUDGEMENT.ratings, (0, 1))
    row = full_row(PROMPT, PAIR, GENERATIONS, [JUDGEMENT, other, JUDGEMENT])
    assert row["model_name"] == "model-j+model-k"


def test_a_judge_that_failed_is_neither_averaged_nor_named() -> None:
    failed = Judgement("k", "model-k", "overall-rating", (), (0, 1), "judge_timeout")
    row = full_row(PROMPT, PAIR, GENERATIONS, [failed, JUDGEMENT])
    assert (row["ratings"], row["model_name"]) == ([5.0, 1.5], "model-j")
    facts = json.loads(row["metadata"])["judgements"]
    assert [fact["failed"] for fact in facts] == ["judge_timeout", None]


def test_metadata_holds_all_that_a_row_was_made_from() -> None:
    made = replace(GENERATIONS[0], sample=2, seed=7, system_prompt="Be brief.")
    ratings = (Rating(4.2, "right", "1, 3", stated=5.0), Rating(None, "none"))
    judged = replace(
        JUDGEMENT, ratings=ratings, weight=0.5, backward=True, unparsable=1, template="t", seed=9
    )
    row = full_row(
        PROMPT, PAIR, [made, GENERATIONS[1]], [judged], key="prompt key", recipe_hash="recipe hash"
    )
    facts = json.loads(row["metadata"])
    assert (facts["prompt_key"], facts["recipe_hash"]) == ("prompt key", "recipe hash")
    assert facts["pair"] == {"margin": 3.5, "tie": False, "flipped": False}
    generation, judgement = facts["generations"][0], facts["judgements"][0]
    assert (generation["sample"], generation["seed"]) == (2, 7)
    assert generation["system_prompt"] == "Be brief."
    assert (judgement["ratings"], judgement["stated"]) == ([4.2, None], [5.0, None])
    assert (judgement["types"], judgement["rationales"]) == (["1, 3", None], ["right", "none"])
    assert (judgement["weight"], judgement["backward"]) == (0.5, True)
    assert (judgement["unparsable"], judgement["template"], judgement["seed"]) == (1, "t", 9)


def test_metadata_does_not_tell_what_had_to_be_tried_twice() -> None:
    again = Usage(retries=3, cached=1, input_tokens=9, output_tokens=3)
    first, *others = GENERATIONS
    retried = [replace(first, usage=again), *others]
    assert full_row(PROMPT, PAIR, retried, [JUDGEMENT]) == full()


CHAT = Prompt(
    "And why red?",
    system_prompt="Be brief.",
    messages=(
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Rayleigh."},
        {"role": "user", "content": "And why red?"},
    ),
)
CONVERSATION = [message("system", "Be brief."), *CHAT.messages]


def test_a_chat_is_the_prompt_with_its_own_system_prompt() -> None:
    default, whole = default_row(CHAT, PAIR), full_row(CHAT, PAIR, GENERATIONS, [JUDGEMENT])
    assert default["prompt"] == CONVERSATION
    assert default["prompt_id"] == sha256("And why red?")
    assert (whole["instruction"], whole["prompt"]) == ("And why red?", "And why red?")
    assert whole["system_prompt"] == "Be brief."
    assert whole["chosen"] == [*CONVERSATION, message("assistant", "Rayleigh.")]


def test_reward_repeats_the_prompt_in_both_texts() -> None:
    row = reward_row(CHAT, PAIR)
    assert sorted(row) == sorted(name for name, _ in REWARD_COLUMNS)
    assert COLUMNS[REWARD] == REWARD_COLUMNS
    assert row["chosen"] == [*CONVERSATION, message("assistant", "Rayleigh.")]
    assert row["rejected"] == [*CONVERSATION, message("assistant", "Paint.")]


def test_kto_labels_each_text_of_a_prompt_once() -> None:
    middle = Pair("Dust.", "model-c", 3.0, "Paint.", "model-b", 1.5)
    rows = kto_rows(CHAT, [PAIR, middle])
    assert COLUMNS[KTO] == KTO_COLUMNS
    assert all(list(row) == [name for name, _ in KTO_COLUMNS] for row in rows)
    assert [(row["completion"][0]["content"], row["label"], row["rating"]) for row in rows] == [
        ("Rayleigh.", True, 5.0),
        ("Paint.", False, 1.5),
        ("Dust.", True, 3.0),
    ]
    assert {tuple(map(str, row["prompt"])) for row in rows} == {tuple(map(str, CONVERSATION))}


def test_kto_leaves_out_a_text_whose_label_would_contradict_itself() -> None:
    better = Pair("Rayleigh.", "model-a", 5.0, "Dust.", "model-c", 3.0)
    worse = Pair("Dust.", "model-c", 3.0, "Paint.", "model-b", 1.5)
    rows = kto_rows(CHAT, [better, worse])
    labels = {row["completion"][0]["content"]: row["label"] for row in rows}
    assert labels == {"Rayleigh.": True, "Paint.": False}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ([], []),
        (["topic", "Prompt"], ["topic", "Prompt"]),
        (["completion", "model"], ["source_completion", "source_model"]),
        (["prompt"], ["source_prompt"]),
        (["prompt", "source_prompt"], ["source_source_prompt", "source_prompt"]),
        (["source_prompt", "prompt"], ["source_prompt", "source_source_prompt"]),
        (
            ["prompt", "source_prompt", "source_source_prompt"],
            ["source_source_source_prompt", "source_prompt", "source_source_prompt"],
        ),
        (["generations", "instruction"], ["source_generations", "source_instruction"]),
        (["margin", "images"], ["source_margin", "source_images"]),
        (["ref_chosen_logps", "ref_x"], ["source_ref_chosen_logps_column", "ref_x"]),
        (["labels", "topic_labels"], ["source_labels_column", "source_topic_labels_column"]),
        (
            ["input_ids", "x_attention_mask"],
            ["source_input_ids_column", "source_x_attention_mask_column"],
        ),
        (["ids", "idsx"], ["ids", "idsx"]),
    ],
)
def test_a_name_that_is_taken_gets_a_prefix_until_it_is_free(
    theirs: list[str], ours: list[str]
) -> None:
    assert ride_along_names(theirs) == dict(zip(theirs, ours, strict=True))


@pytest.mark.timeout(5)  # a name that stays taken under any number of prefixes has no end
@pytest.mark.parametrize("name", ["category_ids", "_ids"])
def test_a_name_that_trl_acts_on_by_its_ending_gets_one_prefix(name: str) -> None:
    assert ride_along_names([name]) == {name: f"source_{name}"}
    both = ride_along_names([name, f"source_{name}"])
    assert both == {name: f"source_source_{name}", f"source_{name}": f"source_{name}"}


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            lambda times, name: "source_" * times + name,
            st.integers(0, 3),
            st.sampled_from(["prompt", "chosen", "label", "topic", "ref_a_logps", "a_ids", ""]),
        ),
        unique=True,
    )
)
def test_no_two_columns_share_a_name_and_none_is_ours(theirs: list[str]) -> None:
    names = ride_along_names(theirs)
    taken = {name for columns in COLUMNS.values() for name, _ in columns} | TRL_NAMES
    assert list(names) == theirs
    assert len(set(names.values())) == len(theirs)
    assert not taken & set(names.values())
    assert all(ours.removesuffix("_column").endswith(name) for name, ours in names.items())
    assert not any(f"_{ours}".endswith(TRL_ENDINGS) for ours in names.values())
    assert all(names[name] == name for name in theirs if name in ("topic", ""))
