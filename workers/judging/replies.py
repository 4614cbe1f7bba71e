"""What a judge's reply says: one rating a text, or why none of it can be used.

A reply is read as JSON or as headed text, and never repaired: a rating that two readers could read
differently spoils the whole reply, because a lost judgement costs one call and a wrong one costs
training data. Knows neither the judge nor the texts. Every pattern is linear: its repeats are
possessive, or bounded, or end at the line.
"""

import json
import re
from collections.abc import Container, Iterator

from workers.errors import InvalidJudgement
from workers.records import Rating

#: Aspects that are asked for a `type` (of informativeness, of hallucination) beside the rating.
TYPED_ASPECTS = frozenset({"helpfulness", "truthfulness"})

WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}

# Unterminated strings match too; otherwise each of their quotes would start a scan to the end.
_STRING = r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
_BRACE_OR_STRING = re.compile(rf"[{{}}]|{_STRING}", re.DOTALL)
_STRING_OR_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*+[\]}}])", re.DOTALL)
_TEXTS_KEY = re.compile(r'"texts"\s*+:')

_BLANK = r"[ \t\u00a0]"
_MARK = re.compile(
    r"^(?P<lead>[ \t\u00a0#*_•+-]*+)(?:[0-9]{1,2}[.)][ \t*_]++)?(?:"
    rf"output{_BLANK}++for{_BLANK}++text(?P<heading>\b[^\n]*+|[0-9][^\n]*+)"
    r"|(?P<label>rationale|type"
    rf"|(?:(?:final|overall|revised|updated|adjusted|corrected|my){_BLANK}++)?rating)"
    r"[ \t*_]*+(?:\([^()\n]{0,40}\))?[ \t*_]*+[:\uff1a][*_]{0,3}+)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING_END = re.compile(r"[\s*_#]*+([0-9]++)[\s*_#:.-]*+")

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


def parse_reply(reply: str, texts: int, aspect: str) -> list[Rating]:
    """The ratings of texts 1 to `texts`, in that order, as a judge's reply in either form gives.

    Headed text cut off inside its last half point (`4.5` to `4`) looks whole: a caller that knows
    from the endpoint that a reply was cut off must not have it read.

    Raises:
        InvalidJudgement: a text is missing, extra or doubled, or any of it is ambiguous.
    """
    typed = aspect in TYPED_ASPECTS
    reply = reply.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    claims = list(_claims(reply))
    if not claims:
        return _read_text(reply, texts, typed)
    if len(claims) > 1:
        raise InvalidJudgement("more than one JSON object with texts")
    start, end = claims[0]
    ratings = _read_json(reply[start:end], texts, typed)
    outside = f"{reply[:start]} {{}} {reply[end:]}"
    if any(mark["heading"] is not None for mark in _marks(outside, typed)):
        headed = _read_text(outside, texts, typed)
        if [one.rating for one in headed] != [one.rating for one in ratings]:
            raise InvalidJudgement("the JSON and the headed text give different ratings")
    return ratings


def _claims(reply: str) -> Iterator[tuple[int, int]]:
    """Start and end of each outermost braced span with a key `texts`; a cut-off one ends the reply.

    Prose may hold lone quotes, so strings are only read inside braces.
    """
    start = reply.find("{")
    while start >= 0:
        depth, end = 1, start + 1
        while depth:
            token = _BRACE_OR_STRING.search(reply, end)
            if token is None:
                end = len(reply)
                break
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            end = token.end()
        if _TEXTS_KEY.search(reply, start, end):
            yield start, end
        start = reply.find("{", end)


def _read_json(document: str, texts: int, typed: bool) -> list[Rating]:
    plain = _STRING_OR_TRAILING_COMMA.sub(lambda found: found[1] or "", document)
    try:
        data = json.loads(plain, strict=False, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as exc:
        raise InvalidJudgement("the JSON is cut off or malformed") from exc
    items = data.get("texts")
    if not isinstance(items, list):
        raise InvalidJudgement("the JSON's texts are not a list")
    found: dict[int, Rating] = {}
    for item in items:
        if not isinstance(item, dict):
            raise InvalidJudgement("an entry of the JSON's texts is not an object")
        number = _json_id(item.get("id"))
        _check_number(number, found, texts)
        rationale = item.get("rationale")
        if not isinstance(rationale, str):
            raise InvalidJudgement(f"text {number} has no rationale")
        kind = _json_type(item.get("type"), number) if typed else None
        found[number] = Rating(_json_rating(item.get("rating"), number), rationale.strip(), kind)
    return _in_order(found, texts)


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise InvalidJudgement("a JSON object repeats a key")
    return mapping


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
    marks = list(_marks(reply, typed))
    ends = [*(mark.start() for mark in marks[1:]), len(reply)]
    sections: dict[int, dict[str, list[str]]] = {}
    number = 0
    for mark, end in zip(marks, ends, strict=False):
        if mark["heading"] is not None:
            number = _heading_number(mark["heading"])
            _check_number(number, sections, texts)
            sections[number] = {"rationale": [], "rating": [], "type": []}
        elif number:
            label = mark["label"].lower().split()[-1]
            sections[number][label].append(reply[mark.end() : end].strip())
    if not sections:
        raise InvalidJudgement("neither a JSON object with texts nor a heading of a text")
    return _in_order({n: _section(section, n, typed) for n, section in sections.items()}, texts)


def _marks(text: str, typed: bool) -> Iterator[re.Match[str]]:
    """The headings and labels of `text`; prose that only starts like one is left out."""
    for mark in _MARK.finditer(text):
        if mark["heading"] is not None:
            # Few sentences start with a #, so there the rest of the line is an unknown heading.
            if "#" in mark["lead"] or _HEADING_END.fullmatch(mark["heading"]):
                yield mark
        elif typed or mark["label"].lower() != "type":
            yield mark


def _heading_number(rest: str) -> int:
    found = _HEADING_END.fullmatch(rest)
    if found is None:
        raise InvalidJudgement("a heading has no readable text number")
    return int(found[1][:9])


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
