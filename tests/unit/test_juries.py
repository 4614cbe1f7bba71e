"""A jury's word on each text: weighted, exact, the same in whatever order judgements arrive."""

import itertools
import math
import operator
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.judging import Verdict, flips, rationales, verdict
from workers.records import Judgement, Rating


def judged(
    judge: str,
    *ratings: float | None,
    aspect: str = "overall-rating",
    weight: float = 1.0,
    backward: bool = False,
) -> Judgement:
    return Judgement(
        judge,
        f"model of {judge}",
        aspect,
        ratings=tuple(Rating(rating, f"{judge} on {n}") for n, rating in enumerate(ratings, 1)),
        weight=weight,
        backward=backward,
    )


def failed(judge: str, reason: str, **more: object) -> Judgement:
    return replace(judged(judge), reason=reason, **more)


def reached(judgements: Sequence[Judgement], texts: int = 2, quorum: int = 1) -> Verdict:
    found = verdict(judgements, texts, quorum)
    assert isinstance(found, Verdict)
    return found


def test_the_word_of_a_single_judge_is_the_verdict() -> None:
    assert reached([judged("a", 4.0, 2.5)]) == Verdict((4.0, 2.5), frozenset(), ("a",))


def test_judges_count_by_their_weights() -> None:
    jury = [judged("a", 5, 1, weight=0.3), judged("b", 2, 4, weight=1.7), judged("c", 3, 3)]
    ratings = reached(jury).ratings
    expected = [(5 * 0.3 + 2 * 1.7 + 3) / 3, (0.3 + 4 * 1.7 + 3) / 3]
    assert ratings == pytest.approx(expected, abs=1e-9, rel=0)


def test_of_three_judges_one_may_be_down() -> None:
    jury = [judged("a", 5, 1), failed("b", "judge_timeout"), judged("c", 4, 3)]
    assert reached(jury, quorum=2) == Verdict((4.5, 2.0), frozenset(), ("a", "c"))


def test_below_the_quorum_the_first_that_failed_says_why() -> None:
    timeout, unread = failed("b", "judge_timeout"), failed("c", "unparsable_judgement")
    assert verdict([judged("a", 5, 1), timeout, unread], 2, 2) is timeout
    assert verdict([unread, judged("a", 5, 1), timeout], 2, 2) is unread


def test_a_quorum_that_nobody_could_reach_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="1 judges for a quorum of 2"):
        verdict([judged("a", 5, 1)], 2, 2)


@pytest.mark.parametrize("other", [{"aspect": "honesty"}, {"backward": True}])
def test_a_judge_of_whom_any_judgement_failed_is_left_out(other: dict[str, object]) -> None:
    half_down = [judged("a", 1, 5), failed("a", "judge_timeout", **other)]
    assert reached([*half_down, judged("b", 4, 2)]) == Verdict((4.0, 2.0), frozenset(), ("b",))
    assert verdict(half_down, 2, 1) is half_down[1]


def test_aspects_weigh_the_same() -> None:
    jury = [judged("a", 5, 1, aspect="honesty"), judged("a", 2, 1, aspect="helpfulness")]
    assert reached(jury).ratings == (3.5, 1.0)


def test_both_orders_are_averaged_before_aspects() -> None:
    jury = [
        judged("a", 5, 1, aspect="honesty"),
        judged("a", None, 2, aspect="honesty", backward=True),
        judged("a", 2, 4, aspect="helpfulness"),
        judged("a", 1, 4, aspect="helpfulness", backward=True),
    ]
    assert reached(jury).ratings == ((5 + 1.5) / 2, (1.5 + 4) / 2)


def test_not_applicable_is_no_zero() -> None:
    jury = [
        judged("a", None, None, None, weight=3.0),
        judged("b", 4, None, 2, aspect="honesty"),
        judged("b", None, None, 4, aspect="helpfulness"),
        judged("c", 1, None, 5, weight=0.5),
    ]
    assert reached(jury, texts=3).ratings == ((4 + 0.5) / 1.5, None, (3 + 2.5) / 1.5)


@pytest.mark.parametrize("tenths", [(1, 2, 7), (1, 2, 3), (3, 3, 3)])
def test_means_are_equal_if_and_only_if_they_are_so_on_paper(tenths: tuple[int, ...]) -> None:
    profiles = list(itertools.product(range(1, 6), repeat=3))
    columns = zip(*profiles, strict=True)
    jury = [
        judged(name, *column, weight=weight / 10)
        for name, column, weight in zip("abc", columns, tenths, strict=True)
    ]
    ratings = reached(jury, texts=len(profiles)).ratings
    on_paper = [sum(map(operator.mul, tenths, profile)) for profile in profiles]
    for i, j in itertools.combinations(range(len(profiles)), 2):
        assert (ratings[i] == ratings[j]) == (on_paper[i] == on_paper[j])


def test_a_jury_that_prefers_the_other_text_in_the_other_order_has_flipped() -> None:
    jury = [judged("a", 4, 3, 1), judged("a", 3, 4, 1, backward=True)]
    assert reached(jury, texts=3) == Verdict((3.5, 3.5, 1.0), frozenset({(0, 1)}), ("a",))


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ((4, 3), (4, 3)),
        ((4, 3), (3, 3)),
        ((3, 3), (3, 4)),
        ((4, 3), (None, 4)),
        ((4, None), (3, 4)),
    ],
)
def test_only_opposite_preferences_flip(
    forward: tuple[float | None, ...], backward: tuple[float | None, ...]
) -> None:
    jury = [judged("a", *forward), judged("a", *backward, backward=True)]
    assert reached(jury).flipped == frozenset()


def test_a_flip_is_the_jurys_and_not_a_single_judges() -> None:
    jury = [
        judged("a", 4, 3),
        judged("a", 3, 4, backward=True),
        judged("b", 5, 1, weight=2.0),
        judged("b", 5, 1, weight=2.0, backward=True),
    ]
    assert reached(jury).flipped == frozenset()
    heavier = [replace(one, weight=9.0) if one.judge == "a" else one for one in jury]
    assert reached(heavier).flipped == frozenset({(0, 1)})


def test_a_judge_who_is_left_out_flips_nothing() -> None:
    jury = [
        judged("a", 4, 3),
        judged("a", 3, 4, backward=True),
        failed("a", "judge_timeout", aspect="honesty"),
        judged("b", 4, 3),
        judged("b", 4, 3, backward=True),
    ]
    assert reached(jury) == Verdict((4.0, 3.0), frozenset(), ("b",))


def test_a_judge_who_was_asked_in_one_order_flips_nothing() -> None:
    jury = [judged("a", 1, 5, weight=9.0), judged("b", 4, 3), judged("b", 4, 3, backward=True)]
    assert reached(jury).flipped == frozenset()


def test_flips_are_counted_by_judge_over_aspects_and_pairs() -> None:
    jury = [
        judged("a", 4, 3, 1),
        judged("a", 3, 4, 1, backward=True),
        judged("a", 4, 3, None, aspect="honesty"),
        judged("a", 4, 3, 1, aspect="honesty", backward=True),
        judged("b", 2, 2, 2),
        judged("b", 3, 2, 1, backward=True),
    ]
    assert flips(jury) == {"a": (1, 4), "b": (0, 3)}


def test_what_was_not_judged_in_both_orders_is_not_compared() -> None:
    assert flips([judged("a", 4, 3), judged("b", 4, 3, backward=True)]) == {}
    assert flips([judged("a", 4, 3), failed("a", "judge_timeout", backward=True)]) == {}
    assert flips([]) == {}


def test_a_single_rationale_stands_alone() -> None:
    assert rationales([judged("a", 4, 3)], 2) == ["a on 1", "a on 2"]
    down = failed("b", "judge_timeout")
    assert rationales([down, judged("a", 4, 3)], 2) == ["a on 1", "a on 2"]


def test_several_rationales_say_whose_they_are() -> None:
    jury = [judged("b", 4, 3), judged("a", 4, 3), judged("a", 4, 3, aspect="honesty")]
    assert rationales(jury, 2) == [
        f"[a, honesty] a on {n}\n[a, overall-rating] a on {n}\n[b, overall-rating] b on {n}"
        for n in (1, 2)
    ]
    assert rationales(jury[::-1], 2) == rationales(jury, 2)


def test_without_judgements_rationales_are_empty() -> None:
    assert rationales([failed("a", "judge_timeout")], 2) == ["", ""]


RATINGS = st.one_of(
    st.none(), st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.5, 5.0]), st.floats(1, 5, allow_nan=False)
)


@st.composite
def juries(draw: st.DrawFn) -> tuple[list[Judgement], int]:
    """The judgements of up to three judges in both orders, some failed, and the number of texts."""
    texts = draw(st.integers(2, 4))
    jury = []
    for judge in draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True)):
        weight = draw(st.sampled_from([0.1, 0.2, 0.7, 1.0, 3.0, 1000.0]))
        for aspect in draw(
            st.lists(st.sampled_from(["honesty", "helpfulness"]), min_size=1, unique=True)
        ):
            for backward in (False, True):
                if draw(st.integers(0, 9)) == 0:
                    jury.append(failed(judge, "judge_timeout", aspect=aspect, backward=backward))
                    continue
                drawn = draw(st.lists(RATINGS, min_size=texts, max_size=texts))
                jury.append(judged(judge, *drawn, aspect=aspect, weight=weight, backward=backward))
    return jury, texts


@given(juries(), st.randoms(use_true_random=False))
def test_the_order_of_judgements_changes_nothing(
    drawn: tuple[list[Judgement], int], rng: random.Random
) -> None:
    jury, texts = drawn
    shuffled = rng.sample(jury, len(jury))
    assert flips(shuffled) == flips(jury)
    assert rationales(shuffled, texts) == rationales(jury, texts)
    first, second = verdict(jury, texts, 1), verdict(shuffled, texts, 1)
    if isinstance(first, Judgement):
        assert isinstance(second, Judgement)
        assert second.reason is not None
    else:
        assert first == second


@given(juries(), st.randoms(use_true_random=False))
def test_the_order_of_texts_changes_nothing_but_their_places(
    drawn: tuple[list[Judgement], int], rng: random.Random
) -> None:
    jury, texts = drawn
    places = rng.sample(range(texts), texts)
    moved = [
        replace(one, ratings=tuple(one.ratings[place] for place in places[: len(one.ratings)]))
        for one in jury
    ]
    first, second = verdict(jury, texts, 1), verdict(moved, texts, 1)
    if isinstance(first, Judgement):
        assert isinstance(second, Judgement)
        return
    assert isinstance(second, Verdict)
    assert second.ratings == tuple(first.ratings[place] for place in places)
    back = {frozenset((places[i], places[j])) for i, j in second.flipped}
    assert back == {frozenset(pair) for pair in first.flipped}
    assert all(i < j for i, j in second.flipped)


@given(juries())
def test_a_verdict_lies_within_the_ratings_and_agrees_with_floats(
    drawn: tuple[list[Judgement], int],
) -> None:
    jury, texts = drawn
    found = verdict(jury, texts, 1)
    if isinstance(found, Judgement):
        return
    for text, rating in enumerate(found.ratings):
        by_judge = {name: in_floats(jury, name, text) for name in found.judges}
        left = {name: value for name, value in by_judge.items() if value is not None}
        assert (rating is None) == (not left)
        if rating is not None:
            weights = {one.judge: one.weight for one in jury if one.reason is None}
            total = math.fsum(weights[name] * value for name, value in left.items())
            assert abs(rating - total / math.fsum(weights[name] for name in left)) <= 1e-9
            assert 1 <= rating <= 5


def in_floats(jury: Sequence[Judgement], judge: str, text: int) -> float | None:
    """A judge's rating of a text, reckoned again in floats."""
    means = []
    for aspect in ("honesty", "helpfulness"):
        rated = [
            one.ratings[text].rating for one in jury if (one.judge, one.aspect) == (judge, aspect)
        ]
        left = [rating for rating in rated if rating is not None]
        if left:
            means.append(math.fsum(left) / len(left))
    return math.fsum(means) / len(means) if means else None
