"""How a prompt ends, by what its generations and judgements say. Nothing else decides."""

from typing import Any

import pytest

from workers.chat import REASONS
from workers.outcomes import TOO_FEW, conclude
from workers.pairing import IDENTICAL, NOT_RATED, SMALL_MARGIN, TIE
from workers.recipe import Recipe
from workers.records import (
    FAILED,
    PAIRED,
    REJECTED,
    UNPARSABLE,
    Generation,
    Judgement,
    Outcome,
    Pair,
    Rating,
)
from workers.steps import TRUNCATED


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "source": {"stdin": True},
            "endpoints": {"here": {"base_url": "http://127.0.0.1:8000/v1"}},
            "generators": [
                {"name": "a", "endpoint": "here", "model": "model-a"},
                {"name": "b", "endpoint": "here", "model": "model-b"},
            ],
            "judges": [{"name": "j", "endpoint": "here", "model": "model-j"}],
            **sections,
        }
    )


def text(slot: str, content: str) -> Generation:
    return Generation(slot, f"model-{slot}", text=content)


def failed(slot: str, reason: str, detail: str = "") -> Generation:
    return Generation(slot, f"model-{slot}", reason=reason, detail=detail)


def judged(*ratings: float | None, judge: str = "j", **more: Any) -> Judgement:
    order = tuple(range(len(ratings)))
    rated = tuple(Rating(one, "why") for one in ratings)
    return Judgement(judge, f"model-{judge}", "overall-rating", rated, order, **more)


def unjudged(reason: str, detail: str = "", judge: str = "j") -> Judgement:
    return Judgement(judge, f"model-{judge}", "overall-rating", (), (0, 1), reason, detail)


def ended(
    generations: list[Generation], *judgements: Judgement, made_with: Recipe | None = None
) -> Outcome:
    (outcome,) = conclude(made_with or recipe(), {"k": generations}, {"k": list(judgements)})
    assert outcome.key == "k"
    assert outcome.generations == tuple(generations)
    assert any(not pair.tie for pair in outcome.pairs) == (outcome.state == PAIRED)
    assert outcome.recipe_hash == (made_with or recipe()).hash
    return outcome


TWO = [text("a", "good"), text("b", "bad")]


def test_two_texts_with_different_ratings_are_paired() -> None:
    outcome = ended(TWO, judged(5, 2))
    assert (outcome.state, outcome.reason, outcome.detail) == (PAIRED, None, "")
    assert outcome.pairs == (Pair("good", "model-a", 5, "bad", "model-b", 2),)
    assert outcome.judgements == (judged(5, 2),)


@pytest.mark.parametrize("reason", [*REASONS, TRUNCATED])
def test_one_text_is_too_few_and_the_detail_says_why(reason: str) -> None:
    outcome = ended([text("a", "good"), failed("b", reason, "HTTP 500")])
    assert (outcome.state, outcome.reason) == (FAILED, TOO_FEW)
    assert outcome.detail == f"b: {reason} HTTP 500"


def test_no_text_is_too_few_and_both_reasons_are_told() -> None:
    outcome = ended([failed("a", "timeout"), failed("b", "not_found")])
    assert (outcome.state, outcome.reason) == (FAILED, TOO_FEW)
    assert outcome.detail == "a: timeout; b: not_found"


def test_a_third_models_failure_is_no_failure_of_the_prompt() -> None:
    three = [text("a", "good"), failed("c", "timeout"), text("b", "bad")]
    outcome = ended(three, judged(2, 5))
    assert outcome.pairs == (Pair("bad", "model-b", 5, "good", "model-a", 2),)


def test_a_failed_generation_never_reaches_a_pair() -> None:
    cut = Generation("c", "model-c", text="half", reason=TRUNCATED)
    outcome = ended([cut, *TWO], judged(5, 2))
    assert outcome.pairs == (Pair("good", "model-a", 5, "bad", "model-b", 2),)


@pytest.mark.parametrize("reason", [f"judge_{reason}" for reason in REASONS])
def test_a_judge_that_did_not_answer_fails_the_prompt(reason: str) -> None:
    outcome = ended(TWO, unjudged(reason, "HTTP 503"))
    assert (outcome.state, outcome.reason, outcome.detail) == (FAILED, reason, "HTTP 503")
    assert outcome.judgements == (unjudged(reason, "HTTP 503"),)


def test_a_judgement_that_cannot_be_read_fails_the_prompt() -> None:
    outcome = ended(TWO, unjudged(UNPARSABLE, "text 2 has no rating"))
    assert (outcome.state, outcome.reason) == (FAILED, UNPARSABLE)
    assert outcome.detail == "text 2 has no rating"


def jury(**judging: Any) -> Recipe:
    judges = [{"name": name, "endpoint": "here", "model": f"model-{name}"} for name in "jkl"]
    return recipe(judges=judges, judging=judging)


def test_fewer_judges_than_the_quorum_fail_the_prompt_whatever_the_others_said() -> None:
    said = (judged(5, 1), unjudged("judge_timeout", judge="k"), judged(5, 1, judge="l"))
    outcome = ended(TWO, *said, made_with=jury(quorum=3))
    assert (outcome.state, outcome.reason) == (FAILED, "judge_timeout")
    assert outcome.judgements == said


def test_a_quorum_of_the_jury_decides_without_the_judge_that_failed() -> None:
    said = (
        judged(5, 2, weight=0.5),
        unjudged("judge_timeout", judge="k"),
        judged(2, 3, judge="l", weight=0.25),
    )
    outcome = ended(TWO, *said, made_with=jury(quorum=2))
    (pair,) = outcome.pairs
    assert pair.chosen_rating == pytest.approx((0.5 * 5 + 0.25 * 2) / 0.75, abs=1e-9)
    assert pair.rejected_rating == pytest.approx((0.5 * 2 + 0.25 * 3) / 0.75, abs=1e-9)


def test_a_preference_that_flips_with_the_order_is_a_tie_though_the_means_differ() -> None:
    said = (judged(5, 2), judged(3, 4, backward=True))
    outcome = ended(TWO, *said, made_with=recipe(judging={"order": "both"}))
    assert (outcome.state, outcome.reason, outcome.pairs) == (REJECTED, TIE, ())


def test_a_tie_that_is_kept_is_no_pair_and_still_rejected() -> None:
    outcome = ended(TWO, judged(4, 4), made_with=recipe(pairs={"ties": "keep-labelled"}))
    assert (outcome.state, outcome.reason) == (REJECTED, TIE)
    (kept,) = outcome.pairs
    assert (kept.tie, kept.flipped, kept.chosen_rating, kept.rejected_rating) == (True, False, 4, 4)


def test_a_tie_is_rejected_and_keeps_its_judgement() -> None:
    outcome = ended(TWO, judged(4, 4))
    assert (outcome.state, outcome.reason) == (REJECTED, TIE)
    assert outcome.judgements == (judged(4, 4),)


def test_identical_texts_are_rejected_without_a_judgement() -> None:
    outcome = ended([text("a", "same"), text("b", "same")])
    assert (outcome.state, outcome.reason) == (REJECTED, IDENTICAL)


def test_texts_that_a_judge_did_not_rate_are_rejected() -> None:
    outcome = ended(TWO, judged(5, None))
    assert (outcome.state, outcome.reason) == (REJECTED, NOT_RATED)


def test_a_margin_that_is_too_small_is_rejected() -> None:
    outcome = ended(TWO, judged(4, 3), made_with=recipe(pairs={"min_margin": 1.5}))
    assert (outcome.state, outcome.reason) == (REJECTED, SMALL_MARGIN)


def test_each_prompt_of_a_batch_ends_by_itself() -> None:
    generations = {
        "paired": TWO,
        "tied": TWO,
        "short": [failed("a", "timeout"), text("b", "bad")],
        "unread": TWO,
    }
    judgements = {
        "paired": [judged(1, 2)],
        "tied": [judged(3, 3)],
        "unread": [unjudged(UNPARSABLE)],
    }
    outcomes = conclude(recipe(), generations, judgements)
    assert [(outcome.key, outcome.state, outcome.reason) for outcome in outcomes] == [
        ("paired", PAIRED, None),
        ("tied", REJECTED, TIE),
        ("short", FAILED, TOO_FEW),
        ("unread", FAILED, UNPARSABLE),
    ]


def test_concluding_twice_gives_the_same() -> None:
    first, second = (conclude(recipe(), {"k": TWO}, {"k": [judged(1, 5)]}) for _ in range(2))
    assert first == second


def test_an_empty_batch_has_no_outcome() -> None:
    assert conclude(recipe(), {}, {}) == []
