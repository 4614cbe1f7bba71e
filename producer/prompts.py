"""A row of any source becomes a `Prompt`, or a `BadRow` with a reason and one line; never an error.

Where rows come from is unknown here. What all rows together must be (`Source.limit`, the types of
the other columns) is the feed's business, for only it knows what was accepted before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from producer.chats import RowError, turns_of
from producer.columns import LeftOut, UnreadableValue, carried
from producer.lines import LONGEST
from workers.recipe import Columns
from workers.records import Message, Prompt

__all__ = ["BadRow", "Found", "Item", "Position", "Row", "RowError", "brief", "item", "record"]

#: Bytes of UTF-8 that an instruction may have.
MAX_INSTRUCTION_BYTES = 1_000_000
#: Bytes of a line of JSON, or of the JSON of a row that comes otherwise.
MAX_ROW_BYTES = LONGEST

Position = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt, its place for people, and the position to go on from after it.

    `left_out` are columns that nobody asked for and that cannot be kept, with the reason.
    """

    prompt: Prompt
    where: str
    position: Position
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a prompt: a reason of a short fixed vocabulary, and one line.

    Reasons: not_json, not_an_object, wrong_quotes, no_instruction, not_a_chat, wrong_type, empty,
    too_large, not_text.
    """

    reason: str
    detail: str
    where: str
    position: Position


Item = Row | BadRow | None


#: A row as it was found: its columns, or why it could not be read.
Found = Mapping[str, Any] | RowError


def item(row: Found, columns: Columns, where: str, at: Position) -> Item:
    """What a row, found at a place, is: a prompt that its `columns` hold, or why not."""
    try:
        if isinstance(row, RowError):
            raise row
        prompt, left_out = _prompt(row, columns)
    except RowError as error:
        return BadRow(error.reason, error.detail, where, at)
    return Row(prompt, where, at, left_out)


def _prompt(row: Mapping[str, Any], columns: Columns) -> tuple[Prompt, LeftOut]:
    system_prompt = _system_prompt(row, columns.system_prompt)
    turns: tuple[Message, ...] = ()
    if columns.messages is None:
        instruction = _instruction(row, columns.instruction)
    else:
        said, turns = turns_of(_cell(row, columns.messages), columns.messages)
        if said is not None and system_prompt not in (None, said):
            raise RowError(
                "wrong_type",
                f"{columns.system_prompt!r} and the system message of {columns.messages!r} differ; "
                "accepted: one of them, or both alike",
            )
        instruction, system_prompt = turns[-1]["content"], said or system_prompt
        turns = turns if len(turns) > 1 else ()
    read = columns.read.values()
    prompt = Prompt(instruction, {}, system_prompt, turns)
    room = MAX_ROW_BYTES - _check_texts(prompt, columns)
    others = {name: value for name, value in row.items() if name not in read}
    kept, left_out = carried(others, room)
    return replace(prompt, columns=kept), left_out


def _read(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    if isinstance(value, UnreadableValue):
        raise RowError("not_text", f"{column!r} {value}")
    return value


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = _read(row, column)
    if value is None:
        names = ", ".join(map(repr, row))[:300] or "nothing"
        raise RowError("no_instruction", f"{column!r} is missing or null; the row has: {names}")
    return value


def _instruction(row: Mapping[str, Any], column: str) -> str:
    instruction = _cell(row, column)
    if not isinstance(instruction, str):
        found = type(instruction).__name__
        raise RowError("wrong_type", f"{column!r} is of type {found}; accepted: a string")
    if not instruction or instruction.isspace():
        raise RowError("empty", f"{column!r} is empty; accepted: a string that says something")
    return instruction


def _system_prompt(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else _read(row, column)
    if value is not None and not isinstance(value, str):
        found = type(value).__name__
        raise RowError("wrong_type", f"{column!r} is of type {found}; accepted: a string or null")
    return value if value and not value.isspace() else None


def _check_texts(prompt: Prompt, columns: Columns) -> int:
    """That what is stored and sent is text, and not too much of it; returns its bytes."""
    column = repr(columns.messages or columns.instruction)
    size = _check(prompt.instruction, MAX_INSTRUCTION_BYTES, column)
    said = [prompt.system_prompt or "", *(turn["content"] for turn in prompt.messages[:-1])]
    size += _check("".join(said), MAX_ROW_BYTES - size, "the row without its instruction")
    if any("\0" in text for text in (prompt.instruction, *said)):
        raise RowError("not_text", "the row holds a NUL character; accepted: text")
    return size


def _check(text: str, most: int, what: str) -> int:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        detail = f"{what} holds {text[exc.start]!a}, which is no character; accepted: UTF-8 text"
        raise RowError("not_text", detail) from exc
    if size > most:
        raise RowError("too_large", f"{what} has {size:,} bytes; accepted: at most {most:,}")
    return size


def record(text: bytes | None) -> Found:
    """The row that a line of JSON holds; None is a line that was too long to be held."""
    if text is None:
        return RowError(
            "too_large", f"the line is longer than {LONGEST:,} bytes, which is the most"
        )
    try:
        # Bytes that are no UTF-8 become surrogates, which are told by their column later.
        row = json.loads(text.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as exc:
        return RowError("not_json", f"{brief(exc)}; accepted: one JSON object a line")
    if not isinstance(row, dict):
        found = type(row).__name__
        return RowError("not_an_object", f"the line is of type {found}; accepted: a JSON object")
    return row


def brief(exc: BaseException) -> str:
    """An exception's message as one line of at most 300 characters."""
    return " ".join(str(exc).split())[:300] or type(exc).__name__
