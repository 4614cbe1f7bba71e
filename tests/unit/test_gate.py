"""Which rows must not leave the house, and that those which are built leave it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.gate import Refusal, why_refused, why_unsafe
from workers.records import Pair, Prompt
from workers.rows import TRL_NAMES, default_row, ride_along_names

SECRET = "hf_made-up-token"
ANSWER = {"role": "assistant", "content": "Yes."}
ASKED = {"role": "user", "content": "Why is the sky blue?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def row(**changes: Any) -> dict[str, Any]:
    pair = Pair("Rayleigh.", "model-a", 5.0, "Paint.", "model-b", 1.5)
    return {"topic": "physics"} | default_row(Prompt(ASKED["content"]), pair) | changes


def reason(changed: dict[str, Any], **options: Any) -> str | None:
    refusal = why_refused(changed, **options)
    return refusal and refusal.reason


def test_a_row_as_it_is_built_is_let_through() -> None:
    assert why_refused(row()) is None
    assert why_refused(row(), secrets=[SECRET]) is None
    assert why_refused(row(prompt=[SYSTEM, ASKED, ANSWER, ASKED])) is None
    assert why_refused(row(prompt=(ASKED,), chosen=(ANSWER,))) is None
    assert why_refused(row(chosen_rating=5, rejected_rating=1)) is None


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "Why?",
        [],
        [None],
        ["Why?"],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["Why?"]}],
        [{"role": "user", "content": "Why?", "name": "me"}],
        [{"role": "tool", "content": "Why?"}],
        [{"role": "User", "content": "Why?"}],
        [{"role": None, "content": "Why?"}],
        [{"role": "user", "content": " \n"}],
        [SYSTEM],
        [ASKED, SYSTEM],
        [ASKED, SYSTEM, ASKED],
        [SYSTEM, SYSTEM, ASKED],
        [ASKED, ANSWER],
    ],
)
def test_a_prompt_that_is_no_conversation_with_a_users_turn_last_is_refused(prompt: Any) -> None:
    assert reason(row(prompt=prompt)) == "bad_prompt"


@pytest.mark.parametrize("column", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "not_one_answer"),
        ("Yes.", "not_one_answer"),
        ([], "not_one_answer"),
        ([ANSWER, ANSWER], "not_one_answer"),
        ([{"role": "user", "content": "Yes."}], "not_one_answer"),
        ([{"role": "assistant", "content": None}], "not_one_answer"),
        ([{"role": "assistant", "content": "Yes.", "tool_calls": []}], "not_one_answer"),
        (["Yes."], "not_one_answer"),
        ([{"role": "assistant", "content": ""}], "blank_answer"),
        ([{"role": "assistant", "content": " \t\r\n\u3000"}], "blank_answer"),
        ([ASKED, ANSWER], "prompt_repeated"),
        ([ASKED], "prompt_repeated"),
    ],
)
def test_an_answer_that_is_not_one_assistants_text_is_refused(
    column: str, answer: Any, why: str
) -> None:
    refusal = why_refused(row(**{column: answer}))
    assert refusal is not None
    assert refusal.reason == why
    assert refusal.detail.startswith(column)


def test_the_same_text_on_both_sides_is_refused() -> None:
    assert reason(row(rejected=row()["chosen"])) == "identical_texts"
    assert reason(row(rejected=row()["chosen"]), tie=True) == "identical_texts"


@pytest.mark.parametrize("rating", [None, "5", True, float("nan"), float("inf"), [5.0]])
@pytest.mark.parametrize("column", ["chosen_rating", "rejected_rating"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_rating_that_is_no_finite_number_is_refused(column: str, rating: Any, tie: bool) -> None:
    refusal = why_refused(row(**{column: rating}), tie=tie)
    assert refusal is not None
    assert refusal.reason == "no_rating"
    assert column in refusal.detail


@pytest.mark.parametrize("chosen", [1.5, 1.0])
def test_only_a_tie_may_have_a_chosen_rating_that_is_not_higher(chosen: float) -> None:
    assert reason(row(chosen_rating=chosen)) == "rating_order"
    assert why_refused(row(chosen_rating=chosen), tie=True) is None


@pytest.mark.parametrize("column", sorted(row()))
def test_a_column_of_ours_that_is_missing_is_refused(column: str) -> None:
    lacking = row()
    del lacking[column]
    assert (why_refused(lacking) is None) == (column == "topic")


@pytest.mark.parametrize("name", [None, "", "  ", 7])
@pytest.mark.parametrize("column", ["chosen_model", "rejected_model"])
def test_a_model_without_a_name_is_refused(column: str, name: Any) -> None:
    assert reason(row(**{column: name})) == "no_model"


@pytest.mark.parametrize("prompt_id", [None, "", 7])
def test_a_prompt_id_that_is_no_text_is_refused(prompt_id: Any) -> None:
    assert reason(row(prompt_id=prompt_id)) == "no_prompt_id"


@pytest.mark.parametrize(
    "name", [*sorted(TRL_NAMES), "input_ids", "a_ids", "ref_chosen_logps", "instruction", "rating"]
)
def test_a_source_column_that_should_have_been_renamed_is_refused(name: str) -> None:
    refusal = why_refused(row(**{name: "x"}))
    assert refusal is not None
    assert refusal.reason == "column_name"
    assert name in refusal.detail
    renamed = ride_along_names([name])[name]
    assert why_refused(row(**{renamed: "x"})) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "half \ud83d"},
        {"topic": ["fine", {"deep": "\udc00"}]},
        {"topic": {"\ud83d": 1}},
        {"\ud83d": 1},
        {"chosen": [ANSWER | {"content": "\ud83d"}]},
        {"chosen_model": "m\udcff"},
    ],
)
def test_half_a_character_anywhere_is_refused(changes: dict[str, Any]) -> None:
    refusal = why_refused(row(**changes))
    assert refusal is not None
    assert refusal.reason == "not_text"
    assert refusal.detail.encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": f"see {SECRET}."},
        {"topic": {"deep": [1, None, {SECRET: True}]}},
        {SECRET: "x"},
        {f"{SECRET}_ids": "x"},
        {"prompt": [{"role": "user", "content": f"My token is {SECRET}"}]},
        {"rejected": [ANSWER | {"content": SECRET}]},
        {"rejected_model": SECRET},
    ],
)
def test_a_secret_anywhere_is_refused_and_never_told(changes: dict[str, Any]) -> None:
    refusal = why_refused(row(**changes), secrets=["other-secret-of-ours", SECRET])
    assert refusal is not None
    assert refusal.reason == "secret"
    assert SECRET not in str(refusal)


def test_a_secret_is_found_as_json_writes_it() -> None:
    secret = 'quo"ted\\key-of-ours'
    metadata = json.dumps({"parameters": {"key": secret}})
    assert why_unsafe({"metadata": metadata}, secrets=[secret]) == Refusal(
        "secret", "'metadata' holds a key or token"
    )


def test_placeholders_and_short_keys_are_no_secrets() -> None:
    for key in ("", "sky", "Paint.", "Rayleigh", "none", "EMPTY", "lm-studio", "token-abc123"):
        texts = {"rejected": [ANSWER | {"content": f"It is {key}"}]}
        assert why_refused(row(**texts), secrets=[key]) is None
    assert reason(row(topic="sk-4f1c-made-up"), secrets=["sk-4f1c-made-up"]) == "secret"


def test_rows_of_other_shapes_are_looked_through_as_well() -> None:
    full = {"generations": ["fine", SECRET], "ratings": [1.0, None], "system_prompt": None}
    assert why_unsafe(full) is None
    refusal = why_unsafe(full, secrets=[SECRET])
    assert refusal is not None
    assert "generations" in refusal.detail


def test_no_detail_quotes_a_text_of_the_row() -> None:
    private = "a private matter"
    turns = [{"role": private, "content": private}]
    for changed in (
        row(prompt=turns),
        row(prompt=private),
        row(chosen=turns),
        row(chosen=[ANSWER | {"content": private}], rejected=[ANSWER | {"content": private}]),
        row(chosen_rating=private),
    ):
        refusal = why_refused(changed)
        assert refusal is not None
        assert private not in str(refusal)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.sampled_from(sorted(row())), JSON)
def test_nothing_that_stands_in_a_row_makes_the_gate_raise(column: str, value: Any) -> None:
    refusal = why_refused(row(**{column: value}), secrets=[SECRET])
    assert refusal is None or refusal.detail


@settings(max_examples=100)
@given(
    st.text(min_size=1).filter(str.strip),
    st.none() | st.text(min_size=1),
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=2, unique=True),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_whatever_texts_and_columns_there_are_a_built_row_is_let_through(
    instruction: str, system: str | None, texts: list[str], columns: dict[str, str]
) -> None:
    prompt = Prompt(instruction, columns, system)
    names = ride_along_names(columns)
    theirs = {names[name]: value for name, value in columns.items()}
    pair = Pair(texts[0], "model-a", 3.5, texts[1], "model-b", 3.0)
    assert why_refused(theirs | default_row(prompt, pair), secrets=[SECRET]) is None
