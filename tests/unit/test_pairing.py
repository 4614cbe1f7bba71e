"""Which text is chosen and which rejected: never by position, never the same, never a tie."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pairing import (
    IDENTICAL,
    NOT_RATED,
    SMALL_MARGIN,
    TIE,
    make_pairs,
    worth_judging,
)
from workers.records import Generation, Pair, Rejected


@dataclass(frozen=True)
class Policy:
    strategy: str = "max-min"
    min_margin: float = 0.0


#: Few texts, so that equal ones and equal ratings are common.
GENERATIONS = st.builds(
    lambda text, model: Generation(f"slot-{model}", model, text=text),
    st.sampled_from(["one", "two", "three", "four"]),
    st.sampled_from(["m1", "m2", "m3"]),
)
RATINGS = st.one_of(st.none(), st.integers(2, 10).map(lambda half: half / 2))
RATED = st.lists(st.tuples(GENERATIONS, RATINGS), min_size=2, max_size=6)
POLICIES = st.sampled_from([Policy(), Policy(min_margin=1.0), Policy(min_margin=2.5)])

Rated = list[tuple[Generation, float | None]]


def rated(*entries: tuple[str, float | None]) -> Rated:
    """Texts with ratings; the i-th is by model `m<i>`."""
    return [
        (Generation(f"g{number}", f"m{number}", text=text), rating)
        for number, (text, rating) in enumerate(entries)
    ]


def made(entries: Rated, policy: Policy | None = None) -> list[Pair] | Rejected:
    generations, ratings = zip(*entries, strict=True)
    return make_pairs(generations, ratings, policy or Policy())


def test_the_best_text_is_chosen_and_the_worst_rejected() -> None:
    assert made(rated(("so", 3), ("good", 5), ("bad", 1.5))) == [
        Pair("good", "m1", 5, "bad", "m2", 1.5)
    ]


def test_tied_judgements_make_no_pair() -> None:
    assert made(rated(("a", 4), ("b", 4))) == Rejected(TIE)


def test_identical_texts_make_no_pair() -> None:
    assert made(rated(("same", 5), ("same", 1))) == Rejected(IDENTICAL)


def test_the_same_text_rated_both_best_and_worst_makes_no_pair() -> None:
    assert made(rated(("same", 5), ("other", 3), ("same", 1))) == Rejected(IDENTICAL)


@pytest.mark.parametrize("ratings", [(None, None), (5, None), (None, 1)])
def test_fewer_than_two_ratings_make_no_pair(ratings: tuple[float | None, ...]) -> None:
    assert made(rated(("a", ratings[0]), ("b", ratings[1]))) == Rejected(NOT_RATED)


def test_a_text_that_was_not_rated_is_left_out() -> None:
    assert made(rated(("best", 5), ("unrated", None), ("worst", 2))) == [
        Pair("best", "m0", 5, "worst", "m2", 2)
    ]


def test_a_margin_below_the_least_makes_no_pair() -> None:
    assert made(rated(("a", 4), ("b", 3)), Policy(min_margin=1.5)) == Rejected(SMALL_MARGIN)


def test_a_margin_of_just_the_least_makes_a_pair() -> None:
    assert made(rated(("a", 4), ("b", 3)), Policy(min_margin=1)) == [
        Pair("a", "m0", 4, "b", "m1", 3)
    ]


def test_ratings_that_do_not_fit_the_generations_are_refused() -> None:
    generations = [generation for generation, _ in rated(("a", 1), ("b", 2))]
    with pytest.raises(ValueError, match="2 generations, but 3 ratings"):
        make_pairs(generations, [1, 2, 3], Policy())


def test_only_different_texts_are_worth_judging() -> None:
    a, b, again = (entry[0] for entry in rated(("a", 1), ("b", 1), ("a", 1)))
    assert worth_judging([a, b, again])
    assert not worth_judging([a, again])
    assert not worth_judging([a])
    assert not worth_judging([])


@given(RATED, POLICIES, st.data())
def test_the_order_of_generations_does_not_matter(
    entries: Rated, policy: Policy, data: st.DataObject
) -> None:
    assert made(data.draw(st.permutations(entries)), policy) == made(entries, policy)


@given(st.lists(GENERATIONS, min_size=3, max_size=6), st.data())
def test_among_equal_ratings_position_is_no_advantage(
    generations: list[Generation], data: st.DataObject
) -> None:
    ratings = data.draw(
        st.lists(st.sampled_from([1.0, 5.0]), min_size=len(generations), max_size=len(generations))
    )
    entries: Rated = list(zip(generations, ratings, strict=True))
    assert made(list(reversed(entries))) == made(entries)


@given(RATED, POLICIES)
def test_a_pair_holds_two_texts_the_higher_rated_one_chosen(entries: Rated, policy: Policy) -> None:
    pairs = made(entries, policy)
    if isinstance(pairs, Rejected):
        return
    (pair,) = pairs
    assert pair.chosen != pair.rejected
    assert pair.chosen_rating > pair.rejected_rating
    assert pair.chosen_rating - pair.rejected_rating >= policy.min_margin


@given(RATED, POLICIES)
def test_models_and_ratings_follow_their_texts(entries: Rated, policy: Policy) -> None:
    pairs = made(entries, policy)
    if isinstance(pairs, Rejected):
        return
    (pair,) = pairs
    known = {(generation.text, generation.model, rating) for generation, rating in entries}
    assert (pair.chosen, pair.chosen_model, pair.chosen_rating) in known
    assert (pair.rejected, pair.rejected_model, pair.rejected_rating) in known


@given(RATED)
def test_no_rating_is_higher_than_the_chosen_or_lower_than_the_rejected(entries: Rated) -> None:
    pairs = made(entries)
    if isinstance(pairs, Rejected):
        return
    ratings = [rating for _, rating in entries if rating is not None]
    assert (pairs[0].chosen_rating, pairs[0].rejected_rating) == (max(ratings), min(ratings))


@given(RATED, POLICIES)
def test_there_is_one_pair_or_a_reason_why_not(entries: Rated, policy: Policy) -> None:
    pairs = made(entries, policy)
    reasons = [Rejected(why) for why in (TIE, SMALL_MARGIN, IDENTICAL, NOT_RATED)]
    assert len(pairs) == 1 if isinstance(pairs, list) else pairs in reasons
