"""Ratings as expectations: the mean over what the rating's token might have been.

The mean of the token's distribution tells apart what the mode does not (arXiv 2503.03064, and
G-Eval, 2303.16634). All or nothing: a distribution that may belong elsewhere is worse than the
stated rating. Knows how a reply is written, never whether it may count: that is `replies`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from workers.judging.forms import STRING, claims, heading_number, label_of, marks
from workers.records import Rating
from workers.tokens import Token

_JSON_TOKEN = re.compile(rf'{STRING}|[{{}}\[\]:,]|[^\s{{}}\[\]:,"]++', re.DOTALL)
_DIGIT = re.compile(r"[\s*_`\"'\[<]*+([1-5])(?![0-9]|[.,eE][+-]?[0-9])")


def expected_ratings(
    reply: str, tokens: Sequence[Token], ratings: Sequence[Rating]
) -> list[Rating] | None:
    """`ratings`, as they were read of `reply`, by their expectations; `stated` keeps the written.

    Of a token's alternatives those count that differ from it in the digit alone; their
    probabilities are normalised. A rating of None stays. None if the token of any rating cannot be
    told without doubt, or its own probability is not among the alternatives.
    """
    if "".join(text for text, _ in tokens) != reply:
        return None
    places = _places(reply)
    if places is None:
        return None
    expected = []
    for number, one in enumerate(ratings, 1):
        if one.rating is None:
            expected.append(one)
            continue
        place = places.get(number)
        if place is None or float(reply[place]) != one.rating:
            return None
        mean = _mean_at(place, tokens)
        if mean is None:
            return None
        expected.append(replace(one, rating=mean, stated=one.rating))
    return expected


def _places(reply: str) -> dict[int, int] | None:
    """Where in `reply` the digit of each text's rating stands, by the text's number.

    A text whose rating is no lone digit has no place; None if two ratings claim the same text.
    """
    # As `replies` reads line ends and a byte order mark, but every character keeps its place.
    reply = re.sub("^\ufeff", " ", reply).replace("\r\n", " \n").replace("\r", "\n")
    found = list(claims(reply))
    if len(found) > 1:
        return None
    rated = [*_rated_in_text(reply, *found)]
    if found:
        rated += _rated_in_json(reply, *found[0])
    numbers = [number for number, _ in rated]
    if len(set(numbers)) < len(numbers):
        return None
    places = {}
    for number, start in rated:
        if digit := _DIGIT.match(reply, start):
            places[number] = digit.start(1)
    return places


def _rated_in_text(reply: str, *claimed: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The text's number and the start of the value, of each rating under a heading."""
    number = None
    for mark in marks(reply, typed=True):
        if any(start <= mark.start() < end for start, end in claimed):
            continue
        label = label_of(mark)
        if not label:
            number = heading_number(mark["heading"])
        elif label == "rating" and number is not None:
            yield number, mark.end()


def _rated_in_json(reply: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The text's number and the start of the value, of each rating in a list of objects."""
    depth, entry = 0, list[re.Match[str]]()
    for token in _JSON_TOKEN.finditer(reply, start, end):
        if token[0] in ("{", "["):
            depth += 1
        elif token[0] in ("}", "]"):
            depth -= 1
            if depth == 2:
                yield from _rated_in_entry(entry)
                entry = []
        elif depth == 3:
            entry.append(token)


def _rated_in_entry(entry: Sequence[re.Match[str]]) -> Iterator[tuple[int, int]]:
    values = {
        key[0]: value
        for key, colon, value in zip(entry, entry[1:], entry[2:], strict=False)
        if colon[0] == ":"
    }
    number = re.fullmatch(r'"?([0-9]{1,9})"?', values['"id"'][0]) if '"id"' in values else None
    if number and '"rating"' in values:
        yield int(number[1]), values['"rating"'].start()


def _mean_at(place: int, tokens: Sequence[Token]) -> float | None:
    """The mean digit of the token that holds the character at `place`."""
    start = 0
    for text, alternatives in tokens:
        if place < start + len(text):
            return _mean(text, place - start, alternatives)
        start += len(text)
    return None


def _mean(token: str, at: int, alternatives: Mapping[str, float]) -> float | None:
    before, after = token[:at], token[at + 1 :]
    if any(letter.isalnum() for letter in before + after):
        return None
    digits = {
        digit: alternatives.get(f"{before}{digit}{after}", -math.inf) for digit in range(1, 6)
    }
    most = max(digits.values())
    stated = digits[int(token[at])]
    if any(map(math.isnan, digits.values())) or -math.inf in (most, stated) or most == math.inf:
        return None
    weights = {digit: math.exp(logprob - most) for digit, logprob in digits.items()}
    mean = math.fsum(d * weight for d, weight in weights.items()) / math.fsum(weights.values())
    return min(max(mean, 1.0), 5.0)
