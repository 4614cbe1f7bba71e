"""The last look at a row before it leaves the house: would a trainer read it as it is meant?

Pure. Rows are right by construction; this holds it against them once more, because a pushed row is
trained on by others, and most wrong ones in silence. With the DPO, Reward and ORPO trainers of TRL
1.16 (`tests/trl`) these raise: a prompt that is null or a text, null answers; an empty prompt or
answer raises or trains by the process's hash seed. Unnoticed train: the prompt repeated in the
answers, two answers, a user's, blank or null contents, a prompt that the assistant ends, identical
texts, reversed ratings, and a column `margin`, which enters the reward loss.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workers.masking import is_secret
from workers.rows import HUMAN_COLUMNS, ride_along_names

BAD_PROMPT = "bad_prompt"
PROMPT_REPEATED = "prompt_repeated"
NOT_ONE_ANSWER = "not_one_answer"
BLANK_ANSWER = "blank_answer"
IDENTICAL = "identical_texts"
NO_RATING = "no_rating"
RATING_ORDER = "rating_order"
NO_MODEL = "no_model"
NO_PROMPT_ID = "no_prompt_id"
COLUMN_NAME = "column_name"
NOT_TEXT = "not_text"
SECRET = "secret"  # noqa: S105, a reason

_OURS = frozenset(name for name, _ in HUMAN_COLUMNS)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row must not leave: a reason of a fixed vocabulary, and one line without its texts."""

    reason: str
    detail: str


def why_refused(
    row: Mapping[str, Any], *, secrets: Collection[str] = (), tie: bool = False
) -> Refusal | None:
    """Why a row of `default`, with the source's columns, must not be delivered; None if it may be.

    For a kept `tie`, whose row is in `full` alone, give the pair's `default_row`: all but the order
    of its ratings is held against it. Other rows of `full`: `why_unsafe`.

    No detail holds a secret or a text of the row.
    """
    # Texts first: no later detail can then quote a name that holds a secret.
    return (
        why_unsafe(row, secrets=secrets)
        or _columns(tuple(row))
        or _prompt(row.get("prompt"))
        or _answer(row, "chosen")
        or _answer(row, "rejected")
        or _texts(row)
        or _ratings(row.get("chosen_rating"), row.get("rejected_rating"), tie)
        or _names(row)
    )


def why_unsafe(row: Mapping[str, Any], *, secrets: Collection[str] = ()) -> Refusal | None:
    """Why no row with these texts may leave, whatever its columns: halves of characters, secrets.

    Looks into lists and mappings, at names as well as at texts; a secret is found as JSON would
    write it, too.
    """
    looked_for = set(filter(is_secret, secrets))
    looked_for |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in looked_for}
    for column, value in row.items():
        for text in (column, *_strings(value)):
            if not text.isascii() and not _encodes(text):
                where = _shown(column, looked_for)
                return Refusal(NOT_TEXT, f"{where} holds half of a surrogate pair")
            for one in looked_for:
                if one in text:
                    return Refusal(SECRET, f"{_shown(column, looked_for)} holds a key or token")
    return None


@lru_cache(maxsize=64)
def _columns(names: tuple[str, ...]) -> Refusal | None:
    for name in names:
        if name not in _OURS and ride_along_names([name])[name] != name:
            return Refusal(COLUMN_NAME, f"{name!r:.80} is taken, or trainers act on it")
    return None


def _prompt(prompt: Any) -> Refusal | None:
    if not isinstance(prompt, list | tuple) or not prompt:
        return Refusal(BAD_PROMPT, f"prompt is {_kind(prompt)}; accepted: a list of messages")
    for number, turn in enumerate(prompt):
        if not _is_message(turn):
            accepted = "role and content, both strings"
            return Refusal(BAD_PROMPT, f"prompt[{number}] is no message; accepted: {accepted}")
        role = turn["role"]
        if role not in ("user", "assistant") and (role != "system" or number):
            accepted = "user, assistant, and system as the first"
            return Refusal(BAD_PROMPT, f"prompt[{number}].role; accepted: {accepted}")
    last = prompt[-1]
    if last["role"] != "user" or _blank(last["content"]):
        return Refusal(BAD_PROMPT, "the last message of prompt; accepted: one by user, not blank")
    return None


def _answer(row: Mapping[str, Any], column: str) -> Refusal | None:
    answer, prompt = row.get(column), list(row["prompt"])
    if isinstance(answer, list | tuple) and list(answer[: len(prompt)]) == prompt:
        accepted = "the answer alone"
        return Refusal(PROMPT_REPEATED, f"{column} repeats the prompt; accepted: {accepted}")
    if (
        not isinstance(answer, list | tuple)
        or len(answer) != 1
        or not _is_message(answer[0])
        or answer[0]["role"] != "assistant"
    ):
        return Refusal(NOT_ONE_ANSWER, f"{column}; accepted: one message by assistant")
    if _blank(answer[0]["content"]):
        return Refusal(BLANK_ANSWER, f"{column} says nothing")
    return None


def _texts(row: Mapping[str, Any]) -> Refusal | None:
    if row["chosen"][0]["content"] == row["rejected"][0]["content"]:
        return Refusal(IDENTICAL, "chosen and rejected are the same text")
    return None


def _ratings(chosen: Any, rejected: Any, tie: bool) -> Refusal | None:
    for column, rating in (("chosen_rating", chosen), ("rejected_rating", rejected)):
        if not isinstance(rating, int | float) or isinstance(rating, bool):
            return Refusal(NO_RATING, f"{column} is {_kind(rating)}; accepted: a number")
        if not math.isfinite(rating):
            return Refusal(NO_RATING, f"{column} is {rating}; accepted: a finite number")
    if not tie and not chosen > rejected:
        found = f"chosen is rated {chosen}, rejected {rejected}"
        return Refusal(RATING_ORDER, f"{found}; accepted: chosen higher")
    return None


def _names(row: Mapping[str, Any]) -> Refusal | None:
    for column in ("chosen_model", "rejected_model"):
        model = row.get(column)
        if not isinstance(model, str) or _blank(model):
            return Refusal(NO_MODEL, f"{column}; accepted: a model's name")
    prompt_id = row.get("prompt_id")
    if not isinstance(prompt_id, str) or not prompt_id:
        return Refusal(NO_PROMPT_ID, "prompt_id; accepted: a hash")
    return None


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) == 2
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(name)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _blank(text: str) -> bool:
    return not text or text.isspace()


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _shown(column: str, looked_for: Collection[str]) -> str:
    """A column's name for a detail, unless the name itself is what must not be told."""
    return "a column's name" if any(one in column for one in looked_for) else repr(column)[:80]
