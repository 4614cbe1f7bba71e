"""The two forms of a judge's reply, and where their parts stand: JSON, or text under headings.

Knows where something is written, never whether it may count: that is `replies`. Every pattern is
linear: its repeats are possessive, or bounded, or end at the line.
"""

import re
from collections.abc import Iterator

# Unterminated strings match too; otherwise each of their quotes would start a scan to the end.
STRING = r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'
_BRACE_OR_STRING = re.compile(rf"[{{}}]|{STRING}", re.DOTALL)
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


def claims(reply: str) -> Iterator[tuple[int, int]]:
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


def marks(text: str, *, typed: bool) -> Iterator[re.Match[str]]:
    """The headings and labels of `text`; prose that only starts like one is left out.

    Each has a group `heading`, what follows "Text" in a heading, or else a group `label`.
    """
    for mark in _MARK.finditer(text):
        if mark["heading"] is not None:
            # Few sentences start with a #, so there the rest of the line is an unknown heading.
            if "#" in mark["lead"] or _HEADING_END.fullmatch(mark["heading"]):
                yield mark
        elif typed or mark["label"].lower() != "type":
            yield mark


def label_of(mark: re.Match[str]) -> str:
    """Which label a mark is: `rationale`, `rating` or `type`; empty for a heading."""
    return mark["label"].lower().split()[-1] if mark["label"] else ""


def heading_number(rest: str) -> int | None:
    """The number of the text that a heading is for, if it can be read."""
    found = _HEADING_END.fullmatch(rest)
    return int(found[1][:9]) if found else None
