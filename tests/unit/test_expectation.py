"""Expectations over the rating's token: each text its own, or none at all."""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.judging import expected_ratings, parse_reply
from workers.records import Rating

Token = tuple[str, Mapping[str, float]]
ASPECTS = ("helpfulness", "honesty")

TEXT = (
    "Of 2 texts:\n\n#### Output for Text 1\nRationale: It has 3 of 5 parts.\nRating: 4\n\n"
    "#### Output for Text 2\nRationale: 5 faults.\nRating: 2"
)
JSON = json.dumps(
    {
        "texts": [
            {"id": 1, "rationale": 'It has 3, "rating": 5.', "rating": 4},
            {"id": 2, "rationale": "2 faults", "rating": 2},
        ]
    }
)
TWO = (Rating(4.0, "a"), Rating(2.0, "b"))
SURE = {4: {"4": 0.0}, 2: {"2": 0.0}}


def pieces(reply: str) -> list[str]:
    """The reply as a tokenizer cuts it: words with their blank, digits and signs alone."""
    return re.findall(r"\d| ?[^\W\d]+|\s|[^\w\s]|_", reply)


def tokens(reply: str, at: Mapping[int, Mapping[str, float]]) -> list[Token]:
    """The reply's tokens; `at` gives alternatives by the place of the character they stand at."""
    cut, start = [], 0
    for piece in pieces(reply):
        cut.append((piece, at.get(start, {"5": -0.1, "1": -2.4, piece: -3.0})))
        start += len(piece)
    return cut


def rated(reply: str, first: Mapping[str, float], second: Mapping[str, float]) -> list[Token]:
    """Tokens of a reply that rates text 1 and then text 2, each rating with its alternatives."""
    one, two = (found.end() - 1 for found in re.finditer(r"[Rr]ating\W{1,4}[42]\b", reply))
    return tokens(reply, {one: first, two: second})


def expectations(reply: str, cut: Sequence[Token]) -> list[float | None] | None:
    found = expected_ratings(reply, cut, parse_reply(reply, 2, "honesty"))
    return found and [one.rating for one in found]


@pytest.mark.parametrize("reply", [TEXT, JSON])
def test_a_rating_is_the_mean_over_its_token(reply: str) -> None:
    cut = rated(
        reply,
        {"4": math.log(0.6), "5": math.log(0.4)},
        {"2": math.log(0.5), "1": math.log(0.25), "3": math.log(0.05)},
    )
    found = expected_ratings(reply, cut, TWO)
    assert found is not None
    assert [one.rating for one in found] == [
        pytest.approx(4.4, abs=1e-12),
        pytest.approx((0.5 * 2 + 0.25 + 0.05 * 3) / 0.8, abs=1e-12),
    ]
    assert [(one.stated, one.rationale) for one in found] == [(4.0, "a"), (2.0, "b")]


def test_only_alternatives_that_differ_in_the_digit_count() -> None:
    other = {"six": -0.1, "9": -0.1, "0": -0.1, "45": -0.1, " 5": -0.1, "5.": -0.1, "\u0665": -0.1}
    cut = rated(TEXT, {"4": -3.0, "3": -3.0, **other}, SURE[2])
    assert expectations(TEXT, cut) == [3.5, 2.0]


def test_a_token_may_bring_signs_along() -> None:
    first, second = TEXT.split("Rating: 4\n\n")
    around = {" 4\n\n": -1.0, " 5\n\n": -1.0, "5": -0.1, " 3": -0.1}
    cut = [
        *tokens(first + "Rating:", {}),
        (" 4\n\n", around),
        *tokens(second, {len(second) - 1: SURE[2]}),
    ]
    assert expectations(TEXT, cut) == [4.5, 2.0]


@pytest.mark.parametrize(
    "written", ["4", "**4**", "4/5", "4 out of 5", "[4]", "4.", "\n4", "4 (good)"]
)
def test_a_digit_is_found_however_it_is_dressed(written: str) -> None:
    reply = TEXT.replace("Rating: 4", f"Rating: {written}")
    place = reply.index("4", reply.index("Rating:"))
    cut = tokens(reply, {place: {"4": -1.0, "3": -1.0}, len(reply) - 1: SURE[2]})
    assert expectations(reply, cut) == [3.5, 2.0]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_move_nothing(line_end: str) -> None:
    reply = "\ufeff" + TEXT.replace("\n", line_end)
    cut = rated(reply, {"4": -1.0, "3": -1.0}, SURE[2])
    assert expectations(reply, cut) == [3.5, 2.0]


def test_a_rating_in_a_json_string_is_found() -> None:
    reply = JSON.replace('"rating": 4', '"rating": "4"').replace('"id": 1', '"id": "1"')
    cut = rated(reply, {"4": -1.0, "3": -1.0}, SURE[2])
    assert expectations(reply, cut) == [3.5, 2.0]


@pytest.mark.parametrize("reply", [TEXT, JSON])
def test_not_applicable_stays_as_it_is(reply: str) -> None:
    reply = reply.replace("ating: 4", "ating: N/A").replace('": 4', '": "N/A"')
    place = reply.rindex("2")
    cut = tokens(reply, {place: {"2": -1.0, "1": -1.0}})
    found = expected_ratings(reply, cut, (Rating(None, "a"), Rating(2.0, "b")))
    assert found == [Rating(None, "a"), Rating(1.5, "b", stated=2.0)]


@pytest.mark.parametrize(
    "written", ["four", "4.0", "4.5", "4/5\nRating: 4", "4\n\nFinal rating: 4"]
)
def test_a_rating_that_is_no_lone_digit_spoils_all(written: str) -> None:
    reply = TEXT.replace("Rating: 4", f"Rating: {written}")
    assert len(parse_reply(reply, 2, "honesty")) == 2
    cut = [(piece, {piece: -0.1}) for piece in pieces(reply)]
    assert expectations(reply, cut) is None


@pytest.mark.parametrize("number", ["4.0", "4e0", "4E+0", "40e-1", '"\\u0034"', '"four"'])
def test_a_json_number_of_more_tokens_spoils_all(number: str) -> None:
    reply = JSON.replace('"rating": 4', f'"rating": {number}')
    assert parse_reply(reply, 2, "honesty")[0].rating == 4
    cut = [(piece, {piece: -0.1}) for piece in pieces(reply)]
    assert expectations(reply, cut) is None


def test_a_reply_in_both_forms_has_more_than_one_place() -> None:
    reply = f"{TEXT}\n\n{JSON}"
    cut = [(piece, {piece: -0.1}) for piece in pieces(reply)]
    assert expectations(reply, cut) is None


@pytest.mark.parametrize("reply", [TEXT, JSON])
def test_tokens_must_make_up_the_reply(reply: str) -> None:
    cut = rated(reply, SURE[4], SURE[2])
    assert expectations(reply, cut) == [4.0, 2.0]
    for other in (cut[:-1], [*cut, ("", {}), (" ", {})], [("\ufffd", {}), *cut[1:]], []):
        assert expectations(reply, other) is None


def test_a_token_of_several_digits_or_with_letters_spoils_all() -> None:
    assert expectations(TEXT, [(TEXT, {TEXT: 0.0})]) is None
    start, end = TEXT.split("Rating: 4", 1)
    cut = tokens(end, {len(end) - 1: SURE[2]})
    assert expectations(TEXT, [(start, {}), ("Rating: 4", {"Rating: 4": 0.0}), *cut]) is None


@pytest.mark.parametrize(
    "alternatives",
    [{}, {"5": -0.1}, {"4": -math.inf, "5": -0.1}, {"4": math.nan}, {"4": math.inf}, {"x": -0.1}],
)
def test_without_the_written_digit_among_the_alternatives_there_is_no_mean(
    alternatives: Mapping[str, float],
) -> None:
    assert expectations(TEXT, rated(TEXT, alternatives, SURE[2])) is None


def test_ratings_of_another_reply_are_refused() -> None:
    cut = rated(TEXT, SURE[4], SURE[2])
    assert expected_ratings(TEXT, cut, (Rating(2.0, "a"), Rating(4.0, "b"))) is None
    assert expected_ratings(TEXT, cut, (*TWO, Rating(3.0, "c"))) is None


LOGPROBS = st.one_of(st.floats(-30, 0), st.sampled_from([-9999.0, -math.inf, -0.0]))
DISTRIBUTIONS = st.tuples(
    st.integers(1, 5), st.dictionaries(st.sampled_from("12345"), LOGPROBS), st.floats(-20, 0)
).map(lambda drawn: (drawn[0], {**drawn[1], str(drawn[0]): drawn[2], "x": -0.5}))


def mean(distribution: Mapping[str, float]) -> float:
    weights = {int(d): math.exp(p) for d, p in distribution.items() if d.isdigit()}
    return sum(d * weight for d, weight in weights.items()) / sum(weights.values())


def render(ratings: Sequence[int], aspect: str, form: str, rng: random.Random) -> str:
    """A reply in either form, its texts in any order, its prose full of digits."""
    numbers = list(range(1, len(ratings) + 1))
    rng.shuffle(numbers)
    typed = aspect == "helpfulness"
    if form == "json":
        entries = [
            {"id": n, "rationale": "4 of 5: Rating: 3", "rating": ratings[n - 1]}
            | ({"type": [1, 3]} if typed else {})
            for n in numbers
        ]
        shuffled = [dict(rng.sample(list(entry.items()), len(entry))) for entry in entries]
        return json.dumps({"texts": shuffled}, indent=rng.choice([None, 1]))
    parts = []
    for n in numbers:
        lines = [f"**Rating:** {ratings[n - 1]}", "Rationale: 4 of 5, said 3 times"]
        rng.shuffle(lines)
        typing = ["Type: 1, 3", "Rationale: 2 of them"] if typed else []
        parts.append("\n".join([f"#### Output for Text {n}", *typing, *lines]))
    return "\n\n".join(parts)


def rating_places(reply: str, form: str) -> dict[int, int]:
    """Where each text's digit stands, found by splitting a rendered reply at its texts."""
    pattern = r"Output for Text (\d)" if form == "text" else r"\{(?=[^{]*\"id\": (\d))"
    starts = [(int(found[1]), found.start()) for found in re.finditer(pattern, reply)]
    label = re.compile(r"\*\*Rating:\*\* (\d)" if form == "text" else r'"rating": (\d)')
    places = {}
    for number, start in starts:
        found = label.search(reply, start)
        assert found is not None
        places[number] = found.start(1)
    return places


@given(
    st.lists(DISTRIBUTIONS, min_size=2, max_size=5),
    st.sampled_from(ASPECTS),
    st.sampled_from(["json", "text"]),
    st.randoms(use_true_random=False),
)
def test_each_text_gets_the_mean_of_its_own_token(
    drawn: list[tuple[int, dict[str, float]]], aspect: str, form: str, rng: random.Random
) -> None:
    reply = render([rating for rating, _ in drawn], aspect, form, rng)
    read = parse_reply(reply, len(drawn), aspect, half_points=False)
    places = rating_places(reply, form)
    cut = tokens(reply, {places[n]: given_ for n, (_, given_) in enumerate(drawn, 1)})
    found = expected_ratings(reply, cut, read)
    assert found is not None
    for one, (rating, distribution) in zip(found, drawn, strict=True):
        assert one.rating is not None
        assert 1 <= one.rating <= 5
        assert one.rating == pytest.approx(mean(distribution), abs=1e-9)
        assert one.stated == rating


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(-30, 0)), min_size=2, max_size=5),
    st.sampled_from(["json", "text"]),
    st.randoms(use_true_random=False),
)
def test_all_mass_on_the_stated_rating_is_the_stated_rating(
    drawn: list[tuple[int, float]], form: str, rng: random.Random
) -> None:
    reply = render([rating for rating, _ in drawn], "honesty", form, rng)
    places = rating_places(reply, form)
    cut = tokens(reply, {places[n]: {str(r): p} for n, (r, p) in enumerate(drawn, 1)})
    found = expected_ratings(reply, cut, parse_reply(reply, len(drawn), "honesty"))
    assert found is not None
    assert [one.rating for one in found] == [rating for rating, _ in drawn]


FRAGMENTS = [
    "4",
    "Rating: 4",
    "\n",
    '"rating": 4',
    "{",
    "}",
    '"',
    "Output for Text 1",
    " ",
    "[",
    ",",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join))
def test_noise_has_no_place_or_the_right_digit(reply: str) -> None:
    cut = [(piece, {piece: 0.0}) for piece in pieces(reply)]
    found = expected_ratings(reply, cut, [Rating(4.0, "")])
    assert found in (None, [Rating(4.0, "", stated=4.0)])
