"""A row of any source becomes a `Prompt`, or a `BadRow` with a reason and one line; never an error.

Where rows come from is unknown here. What all rows together must be (`Source.limit`, the types of
the other columns) is the feed's business, for only it knows what was accepted before.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from producer.columns import plain
from producer.lines import LONGEST
from workers.records import Prompt

#: Bytes of UTF-8 that an instruction may have.
MAX_INSTRUCTION_BYTES = 1_000_000
#: Bytes of a line of JSON, or of the JSON of a row that comes otherwise.
MAX_ROW_BYTES = LONGEST

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

Position = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt, its place for people, and the position to go on from after it."""

    prompt: Prompt
    where: str
    position: Position


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a prompt: a reason of a short fixed vocabulary, and one line.

    Reasons: not_json, not_an_object, no_instruction, wrong_type, empty, too_large, not_text,
    wrong_column_type.
    """

    reason: str
    detail: str
    where: str
    position: Position


Item = Row | BadRow | None


class RowError(Exception):
    """Why a row cannot be a prompt: a reason and one line, as in `BadRow`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


#: A row as it was found: its columns, or why it could not be read.
Found = Mapping[str, Any] | RowError


def item(row: Found, column: str, where: str, at: Position) -> Item:
    """What a row, found at a place, is: a prompt with `column` as its instruction, or why not."""
    try:
        if isinstance(row, RowError):
            raise row
        prompt = _prompt(row, column)
    except RowError as error:
        return BadRow(error.reason, error.detail, where, at)
    return Row(prompt, where, at)


def _prompt(row: Mapping[str, Any], column: str) -> Prompt:
    instruction = row.get(column)
    if instruction is None:
        names = ", ".join(map(repr, row))[:300] or "nothing"
        raise RowError("no_instruction", f"{column!r} is missing or null; the row has: {names}")
    if not isinstance(instruction, str):
        found = type(instruction).__name__
        raise RowError("wrong_type", f"{column!r} is of type {found}; accepted: a string")
    if not instruction or instruction.isspace():
        raise RowError("empty", f"{column!r} is empty; accepted: a string that says something")
    _check(instruction, MAX_INSTRUCTION_BYTES, repr(column))
    columns = {name: _plain(name, value) for name, value in row.items() if name != column}
    text = json.dumps(columns, ensure_ascii=False)
    _check(text, MAX_ROW_BYTES - len(instruction), "the row without its instruction")
    if "\0" in instruction or ("\\u0000" in text and _NUL.search(text)):
        raise RowError("not_text", "the row holds a NUL character; accepted: text")
    return Prompt(instruction, columns)


def _check(text: str, most: int, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        detail = f"{what} holds {text[exc.start]!a}, which is no character; accepted: UTF-8 text"
        raise RowError("not_text", detail) from exc
    if size > most:
        raise RowError("too_large", f"{what} has {size:,} bytes; accepted: at most {most:,}")


def _plain(name: str, value: Any) -> Any:
    try:
        return plain(value)
    except TypeError as exc:
        detail = f"column {name!r} holds {exc}; accepted: what JSON can hold"
        raise RowError("wrong_column_type", detail) from exc


def record(text: bytes | None) -> Found:
    """The row that a line of JSON holds; None is a line that was too long to be held."""
    if text is None:
        return RowError(
            "too_large", f"the line is longer than {LONGEST:,} bytes, which is the most"
        )
    try:
        row = json.loads(text.decode())
    except UnicodeDecodeError as exc:
        return RowError("not_text", f"byte {exc.start + 1} of the line; accepted: UTF-8 text")
    except (ValueError, RecursionError) as exc:
        return RowError("not_json", f"{brief(exc)}; accepted: one JSON object a line")
    if not isinstance(row, dict):
        found = type(row).__name__
        return RowError("not_an_object", f"the line is of type {found}; accepted: a JSON object")
    return row


def brief(exc: BaseException) -> str:
    """An exception's message as one line of at most 300 characters."""
    return " ".join(str(exc).split())[:300] or type(exc).__name__
