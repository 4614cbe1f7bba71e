"""What people's answers amount to, and how judges compare with them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.curation import (
    Agreement,
    Answer,
    PeoplesRating,
    disagreement,
    latest,
    people_from_json,
    people_to_json,
    summarise,
    winning,
)
from workers.records import Generation

SLOTS = [("a", 0), ("a", 1), ("b", 0)]


def made(*texts: str | None) -> list[Generation]:
    return [
        Generation(name, f"model-{name}", text, None if text else "timeout", sample=sample)
        for (name, sample), text in zip(SLOTS, texts, strict=True)
    ]


def test_a_record_gets_the_mean_of_what_people_said_of_each_text() -> None:
    answers = [
        Answer("r", "ann", {0: 5, 2: 2}),
        Answer("r", "bob", {0: 4}),
        Answer("q", "bob", {1: 1}),
    ]
    people = summarise(answers)
    assert people == {
        "r": PeoplesRating({0: 4.5, 2: 2.0}, {0: 2, 2: 1}, annotators=2, disagreement=1.0),
        "q": PeoplesRating({1: 1.0}, {1: 1}, annotators=1, disagreement=None),
    }


def test_of_a_person_who_answered_twice_the_last_answer_counts() -> None:
    answers = [
        Answer("r", "ann", {0: 1, 1: 5}),
        Answer("r", "bob", {0: 3}),
        Answer("r", "ann", {0: 5}),
    ]
    assert summarise(answers)["r"] == PeoplesRating({0: 4.0}, {0: 2}, 2, 2.0)


@pytest.mark.parametrize("points", [0, 6, -1, 2.5, True, None, "4"])
def test_what_is_no_whole_number_from_1_to_5_is_no_rating(points: object) -> None:
    answer = Answer("r", "ann", {0: points, 1: 3})  # type: ignore[dict-item]
    assert summarise([answer])["r"] == PeoplesRating({1: 3.0}, {1: 1}, 1, None)
    assert summarise([Answer("r", "ann", {0: points})]) == {}  # type: ignore[dict-item]


def test_a_person_who_took_all_ratings_back_is_not_counted() -> None:
    answers = [Answer("r", "ann", {0: 1}), Answer("r", "bob", {0: 3}), Answer("r", "ann", {})]
    assert summarise(answers)["r"] == PeoplesRating({0: 3.0}, {0: 1}, 1, None)
    assert summarise([*answers, Answer("r", "bob", {})]) == {}
    assert summarise([]) == {}


@pytest.mark.parametrize(
    ("points", "apart"),
    [
        ([], None),
        ([[4]], None),
        ([[4], [1]], None),
        ([[4, 4]], 0.0),
        ([[1, 5]], 4.0),
        ([[1, 5], [3]], 4.0),
        ([[1, 5], [3, 3]], 2.0),
        ([[1, 1, 5]], 8 / 3),
    ],
)
def test_disagreement_is_how_far_two_people_are_apart(
    points: list[list[int]], apart: float | None
) -> None:
    assert disagreement(points) == apart


def test_disagreement_does_not_grow_with_the_number_of_people() -> None:
    two, four = disagreement([[2, 4]]), disagreement([[2, 4, 2, 4]])
    assert two is not None
    assert four is not None
    assert four < two == 2.0


def test_equal_means_are_equal_whoever_came_first() -> None:
    points = [1, 2, 2, 3, 5, 5, 4]
    one = [Answer("r", f"u{n}", {0: p}) for n, p in enumerate(points)]
    other = [Answer("r", f"u{n}", {0: p}) for n, p in enumerate(reversed(points))]
    assert summarise(one) == summarise(other)


def test_a_persons_mean_goes_before_the_judges_rating() -> None:
    people = PeoplesRating({0: 1.5, 2: 4.0}, {0: 2, 2: 1}, 2, 1.0)
    assert winning(made("x", "y", "z"), [5.0, 3.0, None], SLOTS, people) == (1.5, 3.0, 4.0)


def test_positions_are_those_of_slots_however_many_generations_failed() -> None:
    people = PeoplesRating({1: 2.0, 2: 5.0}, {1: 1, 2: 1}, 1, None)
    assert winning(made(None, "y", "z"), [4.0, 4.5], SLOTS, people) == (2.0, 5.0)
    assert winning(made("x", None, "z"), [4.0, None], SLOTS, people) == (4.0, 5.0)
    assert winning(made(None, "y", "z")[1:], [4.0, 4.5], SLOTS, people) == (2.0, 5.0)


def test_a_generation_without_a_slot_keeps_the_judges_rating() -> None:
    people = PeoplesRating({0: 1.0, 1: 1.0, 2: 1.0}, {}, 1, None)
    stranger = [Generation("c", "model-c", "w")]
    assert winning(stranger, [4.0], SLOTS, people) == (4.0,)


def test_ratings_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 usable generations, but 3 ratings"):
        winning(made("x", None, "z"), [1.0, 2.0, 3.0], SLOTS, PeoplesRating({}, {}, 0, None))


def test_agreement_counts_pairs_with_ties_and_without() -> None:
    agreement = Agreement()
    # Of the pairs: (0, 1) agree, (0, 2) tied by the judge alone, (1, 2) opposite.
    agreement.add([4.0, 2.0, 4.0], [5.0, 3.0, 2.0])
    agreement.add([3.0, 3.0], [2.0, 2.0])
    assert agreement.lines() == [
        "judges and people: 2 prompts, 5 texts, 4 pairs of texts rated by both",
        "  same preference: 50.0 % (2 of 4) with ties, 50.0 % (1 of 2) without",
        "  ratings apart by 1.20 points on average",
        "people among themselves: no two texts were rated by the same two",
    ]


def test_agreement_leaves_out_what_one_side_did_not_rate() -> None:
    agreement = Agreement()
    agreement.add([4.0, None, 1.0], [5.0, 3.0, None])
    agreement.add([None, 1.0], [1.0, None])
    agreement.add([], [])
    assert agreement.lines()[:3] == [
        "judges and people: 1 prompts, 1 texts, 0 pairs of texts rated by both",
        "  same preference: no pairs with ties, no pairs without",
        "  ratings apart by 1.00 points on average",
    ]


def test_agreement_of_nothing_says_so() -> None:
    nothing = [
        "judges and people: no text was rated by both",
        "people among themselves: no two texts were rated by the same two",
    ]
    agreement = Agreement()
    assert agreement.lines() == nothing
    agreement.add([1.0], [None], [{0: 1}, {1: 2}])
    assert agreement.lines() == nothing


def test_agreement_of_different_lengths_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        Agreement().add([1.0], [1.0, 2.0])


def test_people_are_compared_two_by_two_over_the_texts_that_both_rated() -> None:
    agreement = Agreement()
    # ann and bob agree on 1 of 1; ann and eve on 1 of 3, one of them tied; bob and eve on none.
    each = [{0: 5, 1: 3, 2: 3}, {0: 4, 1: 1}, {0: 2, 1: 3, 2: 3}]
    agreement.add([5.0, 3.0, 3.0], [4.0, 2.0, 3.0], each)
    agreement.add([5.0], [4.0], [{0: 4}])
    assert agreement.lines()[-2:] == [
        "people among themselves: 1 prompts answered by several, 5 pairs of texts and people",
        "  same preference: 40.0 % (2 of 5) with ties, 25.0 % (1 of 4) without",
    ]


RATINGS = st.lists(
    st.tuples(
        st.none() | st.sampled_from([1.0, 2.5, 4.0]), st.none() | st.sampled_from([1.0, 4.5])
    ),
    max_size=5,
)


@settings(max_examples=60)
@given(st.lists(RATINGS, max_size=4))
def test_agreement_depends_on_no_order(
    prompts: list[list[tuple[float | None, float | None]]],
) -> None:
    one, other = Agreement(), Agreement()
    for prompt in prompts:
        one.add([a for a, _ in prompt], [b for _, b in prompt])
    for prompt in reversed(prompts):
        other.add([a for a, _ in reversed(prompt)], [b for _, b in reversed(prompt)])
    assert one.lines() == other.lines()


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Answer,
            st.sampled_from(["q", "r"]),
            st.sampled_from(["ann", "bob", "eve"]),
            st.dictionaries(st.integers(0, 3), st.integers(0, 6), max_size=4),
        ),
        max_size=8,
    )
)
def test_a_peoples_rating_comes_back_from_json_as_it_was(answers: list[Answer]) -> None:
    for record, people in summarise(answers).items():
        stored = json.dumps(people_to_json(people), sort_keys=True)
        assert people_from_json(json.loads(stored)) == people
        assert people.annotators == len(latest(answers)[record]) >= max(people.counts.values())
        assert all(1 <= rating <= 5 for rating in people.ratings.values())
        assert people.disagreement is None or 0 <= people.disagreement <= 4
