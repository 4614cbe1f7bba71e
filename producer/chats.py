"""A source's chats: lists of turns in OpenAI's form, taken as they are or refused with a reason.

Only text goes through the mill. A turn that holds more than a role and a text (tool calls, images,
a name) is refused, because a model that did not see it would answer something else.
"""

import json
from typing import Any

from workers.records import Message

ROLES = ("system", "user", "assistant")


class RowError(Exception):
    """Why a row cannot be a prompt: a reason and one line, as in `producer.prompts.BadRow`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def turns_of(value: Any, column: str) -> tuple[str | None, tuple[Message, ...]]:
    """The system message of a chat, if it begins with one, and its turns; the last is a user's.

    A chat that is a text is read as JSON: CSV knows no lists.

    Raises:
        RowError: `not_a_chat`, `wrong_type` or `empty`; the line says which turn and what is
            accepted.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise RowError(
                "not_a_chat", f"{column!r} is a text that is no JSON; accepted: a list of turns"
            ) from exc
    if not isinstance(value, list | tuple):
        found = type(value).__name__
        raise RowError("not_a_chat", f"{column!r} is of type {found}; accepted: a list of turns")
    turns = [_turn(turn, f"{column}[{number}]") for number, turn in enumerate(value)]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
    late = [turn for turn in turns if turn["role"] == "system"]
    if late or not turns or turns[-1]["role"] != "user":
        said = ", ".join(turn["role"] for turn in turns)[:200] or "nothing"
        found = f"{column!r} goes {'system, ' if system is not None else ''}{said}"
        accepted = "an optional system turn, then user and assistant turns, a user's last"
        raise RowError("not_a_chat", f"{found}; accepted: {accepted}")
    return system, tuple(turns)


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        found = type(turn).__name__
        raise RowError("not_a_chat", f"{where} is of type {found}; accepted: role and content")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise RowError("not_a_chat", f"{where}.role is {role!r:.40}; accepted: {', '.join(ROLES)}")
    more = [name for name, value in turn.items() if name not in ("role", "content") and value]
    if more:
        held = ", ".join(map(repr, more))[:200]
        raise RowError("wrong_type", f"{where} has {held} as well; accepted: role and content")
    if not isinstance(content, str):
        found = type(content).__name__
        raise RowError("wrong_type", f"{where}.content is of type {found}; accepted: a string")
    if not content or content.isspace():
        raise RowError("empty", f"{where}.content is empty; accepted: a text that says something")
    return {"role": role, "content": content}
