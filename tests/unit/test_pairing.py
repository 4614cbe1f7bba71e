"""Which text is chosen and which rejected: never by position, never the same, never a tie."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.test_similarity import edits
from workers.pairing import (
    IDENTICAL,
    LENGTH_RATIO,
    NEAR_IDENTICAL,
    NOT_RATED,
    REFUSAL,
    SMALL_MARGIN,
    TIE,
    make_pairs,
    worth_judging,
)
from workers.records import Generation, Pair, Rejected, sha256
from workers.refusals import refuses
from workers.similarity import folded

STRATEGIES = ("max-min", "max-random", "all-pairs", "mean-2sd")
REASONS = (IDENTICAL, LENGTH_RATIO, NEAR_IDENTICAL, NOT_RATED, REFUSAL, SMALL_MARGIN, TIE)
#: What float noise may take from a margin, in points.
NOISE = 1e-9
SORRY = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class Policy:
    strategy: str = "max-min"
    min_margin: float = 0.0
    ties: str = "drop"
    max_length_ratio: float | None = None
    near_identical: float | None = None
    drop_refusals: bool = False


ALL = Policy("all-pairs")

#: Few texts, so that equal ones, alike ones and equal ratings are common.
TEXTS = ("one", "two", "three of them", "Three  of them\n", "three or them", SORRY, "no " * 30)
GENERATIONS = st.builds(
    lambda text, model: Generation(f"slot-{model}", model, text=text),
    st.sampled_from(TEXTS),
    st.sampled_from(["m1", "m2"]),
)
RATINGS = st.one_of(
    st.none(), st.integers(2, 10).map(lambda half: half / 2), st.floats(1, 5), st.just(4.3)
)
RATED = st.lists(st.tuples(GENERATIONS, RATINGS), min_size=2, max_size=7)
POLICIES = st.builds(
    Policy,
    strategy=st.sampled_from(STRATEGIES),
    min_margin=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    ties=st.sampled_from(["drop", "keep-labelled"]),
    max_length_ratio=st.sampled_from([None, 1.0, 4.0]),
    near_identical=st.sampled_from([None, 0.5, 0.9, 1.0]),
    drop_refusals=st.booleans(),
)

Rated = list[tuple[Generation, float | None]]
Flipped = Collection[tuple[int, int]]


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Rated, frozenset[tuple[int, int]]]:
    """Rated texts, and the positions of which the preference flipped."""
    entries = draw(RATED)
    positions = list(combinations(range(len(entries)), 2))
    return entries, frozenset(draw(st.lists(st.sampled_from(positions), max_size=3)))


def rated(*entries: tuple[str, float | None]) -> Rated:
    """Texts with ratings; the i-th is by model `m<i>`."""
    return [
        (Generation(f"g{number}", f"m{number}", text=text), rating)
        for number, (text, rating) in enumerate(entries)
    ]


def made(
    entries: Rated, policy: Policy | None = None, flipped: Flipped = frozenset(), draw: str = ""
) -> list[Pair] | Rejected:
    generations, ratings = zip(*entries, strict=True)
    return make_pairs(generations, ratings, policy or Policy(), flipped=flipped, draw=draw)


def pairs_of(result: list[Pair] | Rejected) -> list[Pair]:
    return [] if isinstance(result, Rejected) else result


def texts_of(result: list[Pair] | Rejected) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs_of(result)]


def turned(entries: Rated, flipped: Flipped) -> set[frozenset[str | None]]:
    """The texts of which the preference flipped, two and two."""
    return {frozenset(entries[position][0].text for position in two) for two in flipped}


def eligible(
    entries: Rated, policy: Policy, flipped: Flipped
) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """Positions and texts of each two that make a pair when there are no others."""
    texts = turned(entries, flipped)
    for (i, one), (j, other) in permutations(enumerate(entries), 2):
        both = frozenset({one[0].text, other[0].text})
        alone = made([one, other], replace(policy, strategy="max-min"), [(0, 1)] * (both in texts))
        yield from ((i, j, two) for two in texts_of(alone) if two[0] == one[0].text)


# The strategies


def test_the_best_text_is_chosen_and_the_worst_rejected() -> None:
    assert made(rated(("so", 3), ("good", 5), ("bad", 1.5))) == [
        Pair("good", "m1", 5, "bad", "m2", 1.5)
    ]


def test_max_random_sets_the_best_against_any_that_is_eligible() -> None:
    entries = rated(("best", 5), ("tied", 5), ("near", 4.5), ("low", 3), ("lower", 2), ("low", 1))
    policy = Policy("max-random", min_margin=1)
    drawn = {pair for key in range(99) for pair in pairs_of(made(entries, policy, draw=f"0:{key}"))}
    chosen, model = max(("best", "m0"), ("tied", "m1"), key=lambda text: sha256(text[0]))
    assert drawn == {
        Pair(chosen, model, 5, "low", "m3", 3),
        Pair(chosen, model, 5, "lower", "m4", 2),
        Pair(chosen, model, 5, "low", "m5", 1),
    }


def test_all_pairs_come_with_the_widest_margin_first() -> None:
    assert made(rated(("c", 1), ("a", 5), ("b", 2)), Policy("all-pairs")) == [
        Pair("a", "m1", 5, "c", "m0", 1),
        Pair("a", "m1", 5, "b", "m2", 2),
        Pair("b", "m2", 2, "c", "m0", 1),
    ]


def test_all_pairs_of_equal_margins_come_in_the_order_of_their_hashes() -> None:
    best, *others = sorted("abcde", key=sha256)
    result = made(rated((best, 5), *((text, 2.0) for text in "edcba" if text != best)), ALL)
    assert texts_of(result) == [(best, text) for text in others]


def test_mean_2sd_rejects_the_text_nearest_to_two_deviations_below_the_mean() -> None:
    ratings = [1, 1.5, 2.5, 3.5, 3.5, 3.5, 4, 4.5, 4.5, 4.5, 4.5, 5, 5, 5]  # 3.75 - 2 x 1.24
    entries = rated(*((str(number), rating) for number, rating in enumerate(ratings)))
    (pair,) = pairs_of(made(entries, Policy("mean-2sd")))
    assert (pair.chosen_rating, pair.rejected_rating) == (5, 1.5)


def test_mean_2sd_rejects_the_lower_of_two_that_are_equally_near() -> None:
    ratings = [1, 2, 2.5, 3.5, 3.5, 3.5, 3.5, 4, 4, 4, 4, 4, 4.5, 5]  # 3.5 - 2 x 1
    entries = rated(*((str(number), rating) for number, rating in enumerate(ratings)))
    assert made(entries, Policy("mean-2sd")) == [Pair("13", "m13", 5, "0", "m0", 1)]


def test_mean_2sd_never_rejects_a_text_as_good_as_the_best() -> None:
    (pair,) = pairs_of(made(rated(("a", 5), ("b", 5), ("c", 4.5)), Policy("mean-2sd")))
    assert pair.rejected == "c"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_texts_make_the_same_pair_by_every_strategy(strategy: str) -> None:
    assert made(rated(("a", 2), ("b", 4)), Policy(strategy)) == [Pair("b", "m1", 4, "a", "m0", 2)]


def test_another_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy 'min-max', only max-min, max-random"):
        made(rated(("a", 2), ("b", 4)), Policy("min-max"))


# The checks


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tied_judgements_make_no_pair(strategy: str) -> None:
    assert made(rated(("a", 4), ("b", 4)), Policy(strategy)) == Rejected(TIE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_preference_that_flips_with_the_order_makes_no_pair(strategy: str) -> None:
    assert made(rated(("a", 5), ("b", 1)), Policy(strategy), {(0, 1)}) == Rejected(TIE)


def test_a_flip_counts_for_the_same_two_texts_elsewhere() -> None:
    entries = rated(("a", 5), ("b", 3), ("a", 4), ("b", 1))
    assert made(entries, ALL, {(1, 2)}) == Rejected(TIE)


def test_a_flip_leaves_other_pairs_alone() -> None:
    entries = rated(("a", 5), ("b", 3), ("c", 1))
    assert set(texts_of(made(entries, ALL, {(0, 2)}))) == {("a", "b"), ("b", "c")}
    assert texts_of(made(entries, Policy("max-random"), {(0, 2)})) == [("a", "b")]
    assert made(entries, Policy(), {(0, 2)}) == Rejected(TIE)


def test_identical_texts_make_no_pair() -> None:
    assert made(rated(("same", 5), ("same", 1))) == Rejected(IDENTICAL)


@pytest.mark.parametrize("ratings", [(None, None), (5, None), (None, 1)])
def test_fewer_than_two_ratings_make_no_pair(ratings: tuple[float | None, ...]) -> None:
    assert made(rated(("a", ratings[0]), ("b", ratings[1]))) == Rejected(NOT_RATED)


def test_a_text_that_was_not_rated_is_left_out() -> None:
    assert made(rated(("best", 5), ("unrated", None), ("worst", 2))) == [
        Pair("best", "m0", 5, "worst", "m2", 2)
    ]


def test_a_margin_below_the_least_makes_no_pair() -> None:
    assert made(rated(("a", 4), ("b", 3)), Policy(min_margin=1.5)) == Rejected(SMALL_MARGIN)


@pytest.mark.parametrize(
    ("high", "low", "least"),
    [(4, 3, 1), (4.3, 4.0, 0.3), (4.1, 3.8, 0.3), (11 / 3, 10 / 3, 1 / 3), (3.3, 3.0, 0.3)],
)
def test_a_margin_of_just_the_least_makes_a_pair(high: float, low: float, least: float) -> None:
    assert made(rated(("a", high), ("b", low)), Policy(min_margin=least)) == [
        Pair("a", "m0", high, "b", "m1", low)
    ]


def test_a_margin_truly_below_the_least_makes_no_pair() -> None:
    entries = rated(("a", 4.2999), ("b", 4.0))
    assert made(entries, Policy(min_margin=0.3)) == Rejected(SMALL_MARGIN)


def test_ratings_that_differ_by_float_noise_tie() -> None:
    assert made(rated(("a", 0.1 + 0.2 + 4), ("b", 0.3 + 4))) == Rejected(TIE)


def test_texts_that_differ_by_few_edits_make_no_pair_where_those_are_counted() -> None:
    entries = rated(("The answer is 42.", 5), (" the  answer is 43.\n", 1))
    assert len(pairs_of(made(entries))) == 1
    assert len(pairs_of(made(entries, Policy(near_identical=1.0)))) == 1
    assert made(entries, Policy(near_identical=0.9)) == Rejected(NEAR_IDENTICAL)


def test_texts_that_differ_by_white_space_alone_are_near_identical() -> None:
    entries = rated(("the answer", 5), (" The\nanswer ", 1))
    assert made(entries, Policy(near_identical=1.0)) == Rejected(NEAR_IDENTICAL)


def test_a_text_much_longer_than_the_other_makes_no_pair() -> None:
    entries = rated(("  four  ", 5), ("twelve chars", 1))
    assert made(entries, Policy(max_length_ratio=2.9)) == Rejected(LENGTH_RATIO)
    assert len(pairs_of(made(entries, Policy(max_length_ratio=3.0)))) == 1


def test_a_refusal_is_no_candidate_where_refusals_are_dropped() -> None:
    entries = rated(("a", 5), (SORRY, 1), ("b", 3))
    assert texts_of(made(entries)) == [("a", SORRY)]
    assert texts_of(made(entries, Policy(drop_refusals=True))) == [("a", "b")]


def test_a_refusal_leaves_one_candidate_and_no_pair() -> None:
    assert made(rated(("a", 5), (SORRY, 1)), Policy(drop_refusals=True)) == Rejected(REFUSAL)


def test_a_refusal_does_not_pull_down_the_mean() -> None:
    ratings = [1.5, 2.5, 3.5, 3.5, 4, 4, 4.5, 4.5, 4.5, 4.5, 5, 5, 5]  # 4 - 2 x 1
    answers = [(str(number), rating) for number, rating in enumerate(ratings)]
    policy = Policy("mean-2sd", drop_refusals=True)
    alone = made(rated(*answers), policy)
    assert made(rated(*answers, *[(SORRY + "!" * n, 1.0) for n in range(9)]), policy) == alone


@pytest.mark.parametrize(
    ("entries", "policy", "reason"),
    [
        (rated(("a bee", 4), ("A bee", 4)), Policy(near_identical=0.9), NEAR_IDENTICAL),
        (rated(("a", 4), ("bbbb", 4)), Policy(min_margin=1, max_length_ratio=2), TIE),
        (rated(("a", 4), ("bbbb", 3)), Policy(min_margin=2, max_length_ratio=2), SMALL_MARGIN),
        (rated((SORRY, None), ("b", 3)), Policy(drop_refusals=True), NOT_RATED),
        (rated((SORRY, 1), (SORRY, 2)), Policy(drop_refusals=True), IDENTICAL),
        (rated(("a", 1), (SORRY, 3), ("a", 2)), Policy(drop_refusals=True), IDENTICAL),
    ],
)
def test_the_first_check_that_fails_is_the_reason(
    entries: Rated, policy: Policy, reason: str
) -> None:
    for strategy in STRATEGIES:
        assert made(entries, replace(policy, strategy=strategy)) == Rejected(reason)


def test_the_reason_is_that_of_the_best_against_the_worst() -> None:
    entries = rated(("long " * 9, 5), ("long " * 8, 4.5), ("a", 1))
    policy = Policy(min_margin=1, max_length_ratio=2)
    for strategy in STRATEGIES:
        assert made(entries, replace(policy, strategy=strategy)) == Rejected(LENGTH_RATIO)


def test_the_reason_of_mean_2sd_is_that_of_the_text_it_picks() -> None:
    ratings = [1, 1.5, 2.5, 3.5, 3.5, 3.5, 4, 4.5, 4.5, 4.5, 4.5, 5, 5, 5]
    texts = ["long enough" if rating == 1.5 else str(n) for n, rating in enumerate(ratings)]
    entries = rated(*zip(texts, ratings, strict=True))
    assert made(entries, Policy("mean-2sd", max_length_ratio=5)) == Rejected(LENGTH_RATIO)
    assert len(pairs_of(made(entries, Policy("max-min", max_length_ratio=5)))) == 1


# One text, rated twice


def test_the_same_text_rated_both_best_and_worst_makes_no_pair() -> None:
    entries = rated(("same", 5), ("other", 3), ("same", 1))
    for strategy in STRATEGIES:
        assert made(entries, Policy(strategy)) == Rejected(IDENTICAL)


@pytest.mark.parametrize("strategy", ["max-random", "all-pairs"])
def test_two_texts_chosen_over_each_other_make_no_pair(strategy: str) -> None:
    entries = rated(("a", 5), ("b", 3), ("a", 2), ("c", 1))
    results = [made(entries, Policy(strategy), draw=str(number)) for number in range(50)]
    seen = {texts for result in results for texts in texts_of(result)}
    assert ("a", "c") in seen
    assert seen.isdisjoint({("a", "b"), ("b", "a")})


def test_texts_that_only_contradict_each_other_are_rejected_as_identical() -> None:
    entries = rated(("a", 5), ("b", 1), ("a", 2), ("b", 4))
    assert made(entries, ALL) == Rejected(IDENTICAL)
    assert made(entries, Policy("max-random")) == Rejected(IDENTICAL)
    assert made(entries, Policy("mean-2sd")) == Rejected(IDENTICAL)


def test_max_min_is_the_two_ends_whatever_lies_between() -> None:
    entries = rated(("a", 5), ("b", 1), ("a", 2), ("b", 4))
    assert made(entries) == [Pair("a", "m0", 5, "b", "m1", 1)]


def test_a_reverse_that_is_no_pair_itself_contradicts_nothing() -> None:
    entries = rated(("a", 5), ("b", 3), ("a", 2.5))
    assert texts_of(made(entries, Policy("all-pairs", min_margin=1))) == [("a", "b")]


def test_all_pairs_hold_the_same_two_texts_once_with_their_widest_margin() -> None:
    entries = rated(("b", 2), ("a", 4), ("a", 5), ("b", 1))
    assert made(entries, ALL) == [Pair("a", "m2", 5, "b", "m3", 1)]


# Ties that are kept


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_kept_tie_is_labelled_and_ordered_by_hash(strategy: str) -> None:
    (low, low_model), (high, high_model) = sorted(
        [("a", "m0"), ("b", "m1")], key=lambda text: sha256(text[0])
    )
    assert made(rated(("a", 4), ("b", 4)), Policy(strategy, ties="keep-labelled")) == Rejected(
        TIE, (Pair(high, high_model, 4, low, low_model, 4, tie=True),)
    )


def test_a_kept_tie_says_that_the_preference_flipped() -> None:
    result = made(rated(("a", 3), ("b", 4)), Policy(ties="keep-labelled"), {(0, 1)})
    assert result == Rejected(TIE, (Pair("b", "m1", 4, "a", "m0", 3, tie=True, flipped=True),))


def test_all_pairs_keep_no_ties_beside_pairs() -> None:
    entries = rated(("a", 4), ("b", 4), ("c", 1))
    result = pairs_of(made(entries, Policy("all-pairs", ties="keep-labelled")))
    assert {(pair.chosen, pair.rejected, pair.tie) for pair in result} == {
        ("a", "c", False),
        ("b", "c", False),
    }


def test_nothing_but_a_tie_is_kept() -> None:
    policy = Policy(min_margin=2, ties="keep-labelled")
    assert made(rated(("a", 4), ("b", 3)), policy) == Rejected(SMALL_MARGIN)


# What holds for all


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


@given(prompts(), POLICIES, st.data())
def test_the_order_of_generations_does_not_matter(
    prompt: tuple[Rated, Flipped], policy: Policy, data: st.DataObject
) -> None:
    entries, flipped = prompt
    order = data.draw(st.permutations(range(len(entries))))
    moved = {tuple(sorted((order.index(i), order.index(j)))) for i, j in flipped}
    assert made([entries[old] for old in order], policy, moved) == made(entries, policy, flipped)


@given(st.lists(GENERATIONS, min_size=3, max_size=6), POLICIES, st.data())
def test_among_equal_ratings_position_is_no_advantage(
    generations: list[Generation], policy: Policy, data: st.DataObject
) -> None:
    ratings = data.draw(
        st.lists(st.sampled_from([1.0, 5.0]), min_size=len(generations), max_size=len(generations))
    )
    entries: Rated = list(zip(generations, ratings, strict=True))
    assert made(list(reversed(entries)), policy) == made(entries, policy)


@given(prompts(), POLICIES)
def test_a_pair_keeps_every_rule_of_its_policy(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    for pair in pairs_of(made(entries, policy, flipped)):
        assert pair.chosen != pair.rejected
        assert pair.chosen_rating > pair.rejected_rating
        assert pair.chosen_rating - pair.rejected_rating >= policy.min_margin - NOISE
        assert frozenset({pair.chosen, pair.rejected}) not in turned(entries, flipped)
        shorter, longer = sorted((len(pair.chosen.strip()), len(pair.rejected.strip())))
        assert policy.max_length_ratio is None or longer <= policy.max_length_ratio * shorter
        one, other = folded(pair.chosen), folded(pair.rejected)
        likeness = 1 - edits(one, other) / max(len(one), len(other))
        assert policy.near_identical is None or likeness < policy.near_identical
        assert not policy.drop_refusals or not (refuses(pair.chosen) or refuses(pair.rejected))
        assert not pair.tie


@given(prompts(), POLICIES)
def test_models_and_ratings_follow_their_texts(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    result = made(entries, policy, flipped)
    known = {(generation.text, generation.model, rating) for generation, rating in entries}
    for pair in result.kept if isinstance(result, Rejected) else result:
        assert (pair.chosen, pair.chosen_model, pair.chosen_rating) in known
        assert (pair.rejected, pair.rejected_model, pair.rejected_rating) in known


@given(prompts(), POLICIES)
def test_there_are_pairs_or_one_reason_why_not(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    result = made(entries, policy, flipped)
    if isinstance(result, Rejected):
        assert result.reason in REASONS
        assert len(result.kept) == (result.reason == TIE and policy.ties == "keep-labelled")
        assert all(pair.tie and pair.chosen != pair.rejected for pair in result.kept)
        assert all(pair.chosen_rating >= pair.rejected_rating for pair in result.kept)
    else:
        assert result
        assert len(result) == 1 or policy.strategy == "all-pairs"


@given(prompts(), POLICIES)
def test_only_the_best_is_chosen_where_a_prompt_makes_one_pair(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    assume(policy.strategy != "all-pairs")
    ratings = [
        rating
        for generation, rating in entries
        if rating is not None and not (policy.drop_refusals and refuses(generation.text or ""))
    ]
    for pair in pairs_of(made(entries, policy, flipped)):
        assert pair.chosen_rating == max(ratings)
        assert policy.strategy != "max-min" or pair.rejected_rating == min(ratings)


@given(prompts(), POLICIES)
def test_all_pairs_are_those_that_two_texts_make_alone_and_not_both_ways(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    alone = {texts for _, _, texts in eligible(entries, policy, flipped)}
    expected = {texts for texts in alone if texts[::-1] not in alone}
    result = texts_of(made(entries, replace(policy, strategy="all-pairs"), flipped))
    assert set(result) == expected
    assert len(result) == len(expected)


@given(prompts(), POLICIES, st.sampled_from(["max-random", "mean-2sd"]), st.text(max_size=2))
def test_what_other_strategies_pick_is_among_all_pairs(
    prompt: tuple[Rated, Flipped], policy: Policy, strategy: str, draw: str
) -> None:
    entries, flipped = prompt
    every = texts_of(made(entries, replace(policy, strategy="all-pairs"), flipped))
    picked = texts_of(made(entries, replace(policy, strategy=strategy), flipped, draw))
    assert set(picked) <= set(every)


@given(prompts(), POLICIES, st.text(max_size=3))
def test_max_random_draws_the_same_again_in_whatever_order(
    prompt: tuple[Rated, Flipped], policy: Policy, draw: str
) -> None:
    entries, flipped = prompt
    policy, last = replace(policy, strategy="max-random"), len(entries) - 1
    backwards = {(last - j, last - i) for i, j in flipped}
    drawn = made(entries, policy, flipped, draw)
    assert made(entries, policy, flipped, draw) == drawn
    assert made(entries[::-1], policy, backwards, draw) == drawn


@given(prompts(), POLICIES)
def test_max_random_reaches_every_text_that_is_eligible(
    prompt: tuple[Rated, Flipped], policy: Policy
) -> None:
    entries, flipped = prompt
    able = list(eligible(entries, policy, flipped))
    assume(able)
    texts = {two for _, _, two in able}
    best = max(range(len(entries)), key=lambda i: rank(entries[i], policy))
    reachable = {
        (entries[j][0].text, entries[j][0].model, entries[j][1])
        for i, j, two in able
        if i == best and two[::-1] not in texts
    }
    results = [made(entries, replace(policy, strategy="max-random"), flipped, f"0:{n}")
               for n in range(150)]  # fmt: skip
    drawn = {
        (pair.rejected, pair.rejected_model, pair.rejected_rating)
        for result in results
        for pair in pairs_of(result)
    }
    assert drawn == reachable


def rank(entry: tuple[Generation, float | None], policy: Policy) -> tuple[float, str, str]:
    """The order of candidates; what is none comes first."""
    (generation, rating), text = entry, entry[0].text or ""
    none = rating is None or (policy.drop_refusals and refuses(text))
    return (0 if none or rating is None else rating), sha256(text), generation.model
