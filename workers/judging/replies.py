"""What a judge's reply says: one rating a text, or why none of it can be used.

A reply is read as JSON or as headed text, and never repaired: a rating that two readers could read
differently spoils the whole reply, because a lost judgement costs one call and a wrong one costs
training data. Knows neither the judge nor the texts. Every pattern is linear: its repeats are
possessive, or bounded, or end at the line.
"""

import json
import re
from collections.abc import Container, Sequence

from workers.errors import InvalidJudgement
from workers.judging.forms import STRING, claims, heading_number, label_of, marks
from workers.records import Rating

#: Aspects that are asked for a `type` (of informativeness, of hallucination) beside the rating.
TYPED_ASPECTS = frozenset({"helpfulness", "truthfulness"})

WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}

_STRING_OR_TRAILING_COMMA = re.compile(rf"({STRING})|,(?=\s*+[\]}}])", re.DOTALL)
_OUR_KEY = re.compile(r"[\"'](?:id|rationale|rating|texts)[\"']\s*+:", re.IGNORECASE)

# "Text 1: 4", "text 1 gets a 4", "| Text 1 | 4/5 |": what prose around JSON may say in passing.
_TOLD = re.compile(
    r"\btext #?(?P<text>[0-9]{1,3})\b"
    r"(?:[ \t:=(|*_\u2013\u2014-]|\b(?:is|gets?|rat(?:ed|ing)|scores?|deserves|an?|of)\b){1,12}+"
    r"(?P<rating>[1-5](?:\.5)?)(?=[ \t]*+(?:[.,;)|*_/\n]|out of|and\b|text\b|\Z))",
    re.IGNORECASE,
)

# These read values whose white space was collapsed.
_END = r"[.,:!*_` ]*+"
_VALUE = re.compile(
    r"(?:(?P<number>[1-4](?:\.[05]0?)?|5(?:\.00?)?)(?: ?/ ?5(?:\.0)?| out of 5| \(out of 5\))?"
    r"|n ?/ ?a|na|n\.a|not applicable)"
    rf"(?P<rest>{_END}(?:\([^()]*+\){_END})?(?:(?:[;\u2013\u2014]|-(?= |$)).*+)?)",
    re.IGNORECASE,
)
_NUMBER_WORD = re.compile(
    r"\b(?:half|zero|one|two|three|four|five|six|seven|eight|nine|ten|hundred)\b", re.IGNORECASE
)

# What follows a rating may speak of texts by number, and of "one" and "two" as English does.
_TEXT_NUMBER = re.compile(r"\btext #?[0-9]++", re.IGNORECASE)
_SECOND_THOUGHT = re.compile(r"\d|\b(?:three|four|five)\b", re.IGNORECASE)


def parse_reply(reply: str, texts: int, aspect: str, *, half_points: bool = True) -> list[Rating]:
    """The ratings of texts 1 to `texts`, in that order, as a judge's reply in either form gives.

    Headed text cut off inside its last half point (`4.5` to `4`) looks whole: a caller that knows
    from the endpoint that a reply was cut off must not have it read.

    Raises:
        InvalidJudgement: a text is missing, extra or doubled, any of it is ambiguous, or a rating
            is a half point where whole numbers are asked for.
    """
    typed = aspect in TYPED_ASPECTS
    reply = reply.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = list(claims(reply))
    if len(found) > 1:
        raise InvalidJudgement("more than one JSON object with texts")
    if found:
        start, end = found[0]
        ratings = _read_json(reply[start:end], texts, typed)
        _check_around(reply[:start], reply[end:], ratings, typed)
    else:
        ratings = _read_text(reply, texts, typed)
    for number, one in enumerate(ratings, 1):
        if one.rating is not None and not half_points and not one.rating.is_integer():
            raise InvalidJudgement(f"text {number}: rating {one.rating}, not a whole number")
    return ratings


def _check_around(before: str, after: str, ratings: Sequence[Rating], typed: bool) -> None:
    """Refuses JSON that its reply may only quote: what stands around it gives no other rating."""
    around = f"{before} {{}} {after}"
    if _OUR_KEY.search(around) or after.lstrip()[:1] in {"]", "}"}:
        raise InvalidJudgement("there is more of a judgement around the JSON")
    given = [one.rating for one in ratings]
    if any(label_of(mark) in ("", "rating") for mark in marks(around, typed=typed)):
        if [one.rating for one in _read_text(around, len(ratings), typed)] != given:
            raise InvalidJudgement("the JSON and the headed text give different ratings")
    elif _SECOND_THOUGHT.search(_TEXT_NUMBER.sub("", after)):
        raise InvalidJudgement("more numbers follow the JSON")
    for told in _TOLD.finditer(around):
        number, rating = int(told["text"]), float(told["rating"])
        if number in range(1, len(given) + 1) and given[number - 1] != rating:
            raise InvalidJudgement(f"text {number} has another rating around the JSON")


def _read_json(document: str, texts: int, typed: bool) -> list[Rating]:
    found: dict[int, Rating] = {}
    for item in _entries(document):
        if not isinstance(item, dict):
            raise InvalidJudgement("an entry of the JSON's texts is not an object")
        number = _json_id(item.get("id"))
        _check_number(number, found, texts)
        rationale = item.get("rationale")
        if not isinstance(rationale, str):
            raise InvalidJudgement(f"text {number} has no rationale")
        if any(_rates(key) and item[key] != item.get("rating") for key in item):
            raise InvalidJudgement(f"text {number} has different ratings")
        kind = _json_type(item.get("type"), number) if typed else None
        found[number] = Rating(_json_rating(item.get("rating"), number), rationale.strip(), kind)
    return _in_order(found, texts)


def _entries(document: str) -> list[object]:
    """The entries of a JSON object's `texts`, which may hold no other objects.

    A quote whose own quotes are not escaped could end the list early, and put away the judge's
    entries under a key of its own.
    """
    objects = 0

    def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal objects
        objects += 1
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise InvalidJudgement("a JSON object repeats a key")
        return mapping

    plain = _STRING_OR_TRAILING_COMMA.sub(lambda found: found[1] or "", document)
    try:
        data = json.loads(plain, strict=False, object_pairs_hook=_once)
    except (ValueError, RecursionError) as exc:
        raise InvalidJudgement("the JSON is cut off or malformed") from exc
    items = data.get("texts")
    if not isinstance(items, list):
        raise InvalidJudgement("the JSON's texts are not a list")
    if objects > 1 + len(items) or any(key in ("id", "rationale") or _rates(key) for key in data):
        raise InvalidJudgement("the JSON holds more than the judgement of its texts")
    return items


def _rates(key: str) -> bool:
    """Whether a key is `rating` or one like `final_rating`."""
    return key.lower().endswith("rating") and "rationale" not in key.lower()


def _json_id(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidJudgement("an entry of the JSON's texts has no usable id")
    return value


def _json_rating(value: object, number: int) -> float | None:
    if isinstance(value, str):
        return _rating(value, number)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidJudgement(f"text {number} has no rating")
    if not (1 <= value <= 5 and float(value * 2).is_integer()):
        raise InvalidJudgement(f"text {number}: rating outside 1 to 5, or not a half point")
    return float(value)


def _json_type(value: object, number: int) -> str | None:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values):
        raise InvalidJudgement(f"text {number} has an unreadable type")
    return ", ".join(str(one).strip() for one in values) or None


def _read_text(reply: str, texts: int, typed: bool) -> list[Rating]:
    found = list(marks(reply, typed=typed))
    ends = [*(mark.start() for mark in found[1:]), len(reply)]
    sections: dict[int, dict[str, list[str]]] = {}
    number = 0
    for mark, end in zip(found, ends, strict=False):
        label = label_of(mark)
        if not label:
            number = _heading_number(mark["heading"])
            _check_number(number, sections, texts)
            sections[number] = {"rationale": [], "rating": [], "type": []}
        elif number:
            sections[number][label].append(reply[mark.end() : end].strip())
        elif label == "rating":
            raise InvalidJudgement("a rating stands under no heading of a text")
    if not sections:
        raise InvalidJudgement("neither a JSON object with texts nor a heading of a text")
    return _in_order({n: _section(section, n, typed) for n, section in sections.items()}, texts)


def _heading_number(rest: str) -> int:
    number = heading_number(rest)
    if number is None:
        raise InvalidJudgement("a heading has no readable text number")
    return number


def _section(section: dict[str, list[str]], number: int, typed: bool) -> Rating:
    rationales = section["rationale"]
    if not rationales:
        raise InvalidJudgement(f"text {number} has no rationale")
    if len(rationales) > 1 + typed:
        raise InvalidJudgement(f"text {number} has too many rationales")
    if not section["rating"]:
        raise InvalidJudgement(f"text {number} has no rating")
    ratings = {_text_rating(content, number) for content in section["rating"]}
    if len(ratings) > 1:
        raise InvalidJudgement(f"text {number} has different ratings")
    kinds = {" ".join(content.split()) for content in section["type"]}
    if len(kinds) > 1:
        raise InvalidJudgement(f"text {number} has different types")
    rationale = rationales[-1].removesuffix("\n---").rstrip()
    return Rating(ratings.pop(), rationale, kinds.pop().strip("*_ ") or None if kinds else None)


def _text_rating(content: str, number: int) -> float | None:
    """The rating on the first line; what follows may speak of texts by number, and of no other."""
    value, _, tail = content.partition("\n")
    if _SECOND_THOUGHT.search(_TEXT_NUMBER.sub("", tail)):
        raise InvalidJudgement(f"text {number}: more numbers follow the rating")
    return _rating(value, number)


def _rating(value: str, number: int) -> float | None:
    plain = " ".join(value.split()).strip(" *_`\"'")
    if plain[:1] + plain[-1:] in ("[]", "<>"):  # as the prompt writes what is to be filled in
        plain = plain[1:-1].strip()
    word = WORDS.get(plain.rstrip(".!*_ ").lower())
    if word is not None:
        return word
    found = _VALUE.fullmatch(plain)
    if found is None:
        raise InvalidJudgement(f"text {number}: unreadable rating {plain[:40]!r}")
    rest = found["rest"]
    if any(letter.isnumeric() for letter in rest) or _NUMBER_WORD.search(rest):
        raise InvalidJudgement(f"text {number}: more numbers follow the rating {plain[:40]!r}")
    return float(found["number"]) if found["number"] else None


def _check_number(number: int, found: Container[int], texts: int) -> None:
    if not 1 <= number <= texts:
        raise InvalidJudgement(f"a text outside 1 to {texts}")
    if number in found:
        raise InvalidJudgement(f"text {number} is judged twice")


def _in_order(found: dict[int, Rating], texts: int) -> list[Rating]:
    missing = [number for number in range(1, texts + 1) if number not in found]
    if missing:
        raise InvalidJudgement(f"text {missing[0]} is missing")
    return [found[number] for number in range(1, texts + 1)]
