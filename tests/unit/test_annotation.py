"""What people are shown of a judged prompt, and under which names."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.annotation import (
    Record,
    field_names,
    metadata_types,
    questions,
    rating_question,
    rationale_question,
    record,
    slot_of,
)
from workers.records import Generation, Judgement, Prompt, Rating

PROMPT = Prompt("Why is the sky blue?", {"topic": "physics"})
SLOTS = [("a", 0), ("a", 1), ("b", 0)]
GENERATIONS = [
    Generation("a", "org/a", "Rayleigh."),
    Generation("a", "org/a", None, "timeout", sample=1),
    Generation("b", "org/b", "Paint."),
]


def judgement(*ratings: float | None, judge: str = "j", **changes: Any) -> Judgement:
    made = tuple(Rating(rating, f"why {rating}") for rating in ratings)
    return Judgement(judge, f"org/{judge}", "overall-rating", made, **changes)


def made(*judgements: Judgement, **changes: Any) -> Record:
    """The record of PROMPT; `changes` are other arguments."""
    values: dict[str, Any] = {
        "key": "k",
        "prompt": PROMPT,
        "state": "paired",
        "reason": None,
        "generations": GENERATIONS,
        "judgements": judgements or [judgement(4.5, 2.0)],
        "slots": SLOTS,
        **changes,
    }
    found = record(**values)
    assert found is not None
    return found


def test_names_are_those_of_the_seed() -> None:
    assert field_names(2) == ["id", "instruction", "generations-0", "generations-1"]
    assert questions(2) == [
        "generations-0-rating",
        "generations-0-rationale",
        "generations-1-rating",
        "generations-1-rationale",
    ]


def test_names_of_fields_questions_and_metadata_never_collide() -> None:
    names = [*field_names(70), *questions(70), *metadata_types(70)]
    assert len(set(names)) == len(names)


def test_a_rating_question_leads_back_to_its_generation() -> None:
    assert [slot_of(rating_question(slot)) for slot in range(200)] == list(range(200))


@pytest.mark.parametrize(
    "question",
    [
        rationale_question(0),
        "generations-00-rating",
        "generations--1-rating",
        "generations-٣-rating",
        "generations-0-rating\n",
        "xgenerations-0-rating",
        "rating",
        "",
    ],
)
def test_other_questions_lead_to_no_generation(question: str) -> None:
    assert slot_of(question) is None


def test_a_generation_that_failed_keeps_its_place_and_is_empty() -> None:
    found = made()
    assert found.fields == {
        "id": PROMPT.prompt_id,
        "instruction": "Why is the sky blue?",
        "generations-0": "Rayleigh.",
        "generations-1": "",
        "generations-2": "Paint.",
    }
    assert found.ratings == {0: 5, 2: 2}
    assert found.rationales == {0: "why 4.5", 2: "why 2.0"}
    assert found.metadata == {
        "generations-0-model": "org/a",
        "generations-0-score": 4.5,
        "generations-2-model": "org/b",
        "generations-2-score": 2.0,
        "margin": 2.5,
        "state": "paired",
        "judges": "j",
    }
    assert (found.id, found.agent) == ("k", "j")


def test_ratings_follow_the_generation_and_not_the_order_of_slots() -> None:
    found = made(slots=[("b", 0), ("a", 0)])
    assert found.fields["generations-0"] == "Paint."
    assert found.ratings == {0: 2, 1: 5}


def test_a_generation_whose_slot_is_gone_is_left_out() -> None:
    found = made(slots=[("a", 0), ("c", 0)])
    assert (found.fields["generations-0"], found.fields["generations-1"]) == ("Rayleigh.", "")
    assert found.ratings == {0: 5}


@pytest.mark.parametrize(
    ("exact", "whole"),
    [(1.0, 1), (1.49, 1), (1.5, 2), (2.5, 3), (3.4999999999999996, 3), (4.5, 5), (5.0, 5)],
)
def test_half_points_go_up_and_the_exact_rating_stays_in_metadata(exact: float, whole: int) -> None:
    found = made(judgement(exact, 3.0))
    assert found.ratings[0] == whole
    assert found.metadata["generations-0-score"] == exact


def test_scores_and_margin_are_floats_even_where_they_are_whole() -> None:
    found = made(judgement(4, 4))
    numbers = [value for name, value in found.metadata.items() if name.endswith("score")]
    assert {type(value) for value in (*numbers, found.metadata["margin"])} == {float}
    assert found.metadata["margin"] == 0.0


def test_a_text_that_no_rating_applies_to_has_a_reason_alone() -> None:
    found = made(judgement(None, 2.0))
    assert found.ratings == {2: 2}
    assert found.rationales[0] == "why None"
    assert "generations-0-score" not in found.metadata
    assert found.metadata["margin"] == 0.0
    assert "margin" not in made(judgement(None, None)).metadata


def test_a_blank_rationale_is_no_suggestion() -> None:
    blank = Judgement("j", "m", "overall-rating", (Rating(3.0, " \n"), Rating(2.0, "why")))
    assert made(blank).rationales == {2: "why"}


def test_a_tie_carries_its_reason() -> None:
    found = made(judgement(3, 3), state="rejected", reason="tie")
    assert (found.metadata["state"], found.metadata["reason"]) == ("rejected", "tie")


def test_a_prompt_that_nobody_judged_has_no_record() -> None:
    values = ("k", PROMPT, "failed", "judge_timeout", GENERATIONS)
    assert record(*values, [], SLOTS) is None
    failed = [Judgement("j", "m", "overall-rating", reason="timeout")]
    assert record(*values, failed, SLOTS) is None


def test_a_judge_that_failed_counts_neither_as_rating_nor_as_author() -> None:
    failed = Judgement("i", "m", "overall-rating", reason="timeout")
    found = made(failed, judgement(4, 2))
    assert (found.ratings, found.agent, found.metadata["judges"]) == ({0: 4, 2: 2}, "j", "j")


def test_a_jury_is_one_author_with_all_reasons() -> None:
    found = made(judgement(5, 2, judge="b"), judgement(4, 2, judge="a"))
    assert (found.agent, found.metadata["judges"]) == ("a / b", "a+b")
    assert found.metadata["generations-0-score"] == 4.5
    assert found.rationales[0] == "[a, overall-rating] why 4\n[b, overall-rating] why 5"


@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True), min_size=1))
def test_the_author_of_any_jury_is_one_that_argilla_takes(judges: list[str]) -> None:
    agent = made(*(judgement(3, 4, judge=judge) for judge in judges)).agent
    assert re.fullmatch(r"[a-zA-Z0-9-_:./\s]*[a-zA-Z0-9][a-zA-Z0-9-_:./\s]*", agent)
    assert len(agent) <= 200


def test_a_conversation_is_shown_whole() -> None:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Why?"},
    ]
    found = made(prompt=Prompt("Why?", {}, "Be kind.", turns))
    assert found.fields["instruction"] == (
        "System:\nBe kind.\n\nUser:\nHello.\n\nAssistant:\nHi!\n\nUser:\nWhy?"
    )


@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_any_text_is_fit_for_the_wire(asked: str, said: str) -> None:
    texts = [Generation("a", f"m{said}", said), Generation("b", "org/b", f"{said}\0\ud800")]
    rated = Judgement("j", "m", "overall-rating", (Rating(1.0, said), Rating(2.0, f"{said}\udc00")))
    found = made(rated, prompt=Prompt(asked), generations=texts)
    values = [*found.fields.values(), *found.rationales.values(), *found.metadata.values()]
    for text in map(str, values):
        assert "\0" not in text
        text.encode()
