"""Which texts count as one: those that differ by few edits, whatever case and white space do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.similarity import COMPARED, folded, near_identical

TEXTS = st.text(alphabet="abC \nß", max_size=12)
THRESHOLDS = st.sampled_from([0.2, 0.5, 0.8, 0.9, 1.0])


def test_case_and_white_space_do_not_count() -> None:
    assert folded("  The STRASSE\n\n is\tlong ") == folded("the straße is long")


@pytest.mark.parametrize(
    ("one", "other", "threshold", "alike"),
    [
        ("abcdefghij", "abcdefghij", 1.0, True),
        ("abcdefghij", "abcdefghiX", 1.0, False),
        ("abcdefghij", "abcdefghiX", 0.9, True),
        ("abcdefghij", "abcdefghXX", 0.9, False),
        ("abcdefghij", "abcdefghi", 0.9, True),
        ("abcdefghij", "abcdefgh", 0.9, False),
        ("abcdefghij", "jihgfedcba", 0.5, False),
        ("ab", "ba", 0.5, False),
        ("", "", 1.0, True),
        ("", "a", 0.5, False),
    ],
)
def test_one_edit_in_ten_characters_is_a_likeness_of_nine_tenths(
    one: str, other: str, threshold: float, alike: bool
) -> None:
    assert near_identical(one, other, threshold) is alike
    assert near_identical(other, one, threshold) is alike


def test_of_long_texts_the_beginnings_are_compared() -> None:
    beginning, rest = "so it begins, " * 5_000, 40_000
    assert len(beginning) > COMPARED
    assert near_identical(beginning + "a" * rest, beginning + "b" * rest, 0.9)
    assert not near_identical("a" * rest + beginning, "b" * rest + beginning, 0.9)


def test_a_text_that_goes_on_for_long_is_not_like_its_beginning() -> None:
    beginning = "a" * COMPARED
    assert not near_identical(beginning, beginning + "b" * COMPARED, 0.9)


def test_texts_of_hundreds_of_kilobytes_can_be_compared() -> None:
    one = "".join(f"{number} and " for number in range(60_000))
    other = "".join(f"{number * 7} or " for number in range(60_000))
    assert not near_identical(one, other, 0.95)
    assert near_identical(one, one.replace("1000", "2000"), 0.95)


@given(TEXTS, TEXTS, THRESHOLDS)
def test_the_edits_are_levenshteins(one: str, other: str, threshold: float) -> None:
    longest = max(len(one), len(other))
    allowed = round(longest * (1 - threshold), 6)
    assert near_identical(one, other, threshold) == (edits(one, other) <= allowed)


def edits(one: str, other: str) -> int:
    """Insertions, deletions and replacements that lead from one text to the other."""
    row = list(range(len(other) + 1))
    for number, character in enumerate(one, 1):
        above, row = row, [number]
        for position, wanted in enumerate(other):
            replaced = above[position] + (character != wanted)
            row.append(min(replaced, above[position + 1] + 1, row[position] + 1))
    return row[-1]
