"""Secrets that this process knows, and texts without them: the last line of defence.

Whoever holds a secret keeps it out of messages at the source; this is for what nobody thought of,
such as an exception of a library that quotes a URL, or a bug inside a task.
"""

import json
from collections.abc import Iterable

MASK = "***"

_known: frozenset[str] = frozenset()


def hide(secrets: Iterable[str]) -> None:
    """From now on mask these values as well, as they are and as JSON and `repr` would write them.

    Nothing is ever taken back.
    """
    global _known
    given = {one for one in secrets if one}
    written = {form(one)[1:-1] for one in given for form in (json.dumps, repr)}
    _known |= given | written


def masked(text: str) -> str:
    """The text with each hidden value replaced."""
    # The longest first: one may be part of another.
    for one in sorted(_known, key=len, reverse=True):
        if one in text:
            text = text.replace(one, MASK)
    return text
