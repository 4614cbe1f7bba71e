"""Which values a field of a message may hold, and how one is told that it holds another; pure.

What is said is short and ASCII, whatever was found. The value of a field that nobody knows is never
said: it may be a key.
"""

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

#: What kombu takes for a value of a type that JSON does not have.
_TYPED = {"__type__", "__value__"}

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80

#: The longest that is said of one value, in characters.
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Form:
    """What a field may hold, and the same in words."""

    fits: Callable[[Any], bool]
    accepted: str


def shown(value: object) -> str:
    """A value for people."""
    text = _SHORT.repr(value).encode("ascii", "backslashreplace").decode()
    return text[:_SHOWN_CHARACTERS]


def only(*values: object) -> Form:
    """One of these values; 0, 0.0 and false are three."""
    words = " or ".join(shown(value) for value in values)
    return Form(lambda found: any(type(found) is type(v) and found == v for v in values), words)


def like(pattern: str, accepted: str) -> Form:
    """Text that matches as a whole."""
    whole = re.compile(pattern, re.ASCII)
    return Form(lambda found: isinstance(found, str) and bool(whole.fullmatch(found)), accepted)


def or_null(form: Form) -> Form:
    """Null as well."""
    return Form(lambda found: found is None or form.fits(found), f"{form.accepted} or None")


NULL = only(None)
TEXT = Form(lambda found: isinstance(found, str), "text")
LIST = Form(lambda found: isinstance(found, list), "a list")
OBJECT = Form(lambda found: isinstance(found, dict), "an object")


def check(
    found: object, forms: Mapping[str, Form], what: str, required: Collection[str] = ()
) -> dict[str, Any]:
    """The object, if each of its fields is known and has its form. Raises: ValueError."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} {shown(found)} is no object")
    for name, value in found.items():
        if name not in forms:
            raise ValueError(f"{what} {shown(name)}; accepted: {', '.join(forms)}")
        hold(value, forms[name], f"{what} {name!r}")
    for name in required:
        if name not in found:
            raise ValueError(f"{what} {name!r} is missing; accepted: {forms[name].accepted}")
    return found


def hold(value: object, form: Form, what: str) -> None:
    """Hold one value to its form. Raises: ValueError."""
    if not form.fits(value):
        raise ValueError(f"{what} is {shown(value)}; accepted: {form.accepted}")


def check_nesting(value: object, levels: int) -> None:
    """Whether whoever reads it after us can read it as well. Raises: ValueError."""
    if not levels:
        raise ValueError("objects and lists that are nested too deep")
    if isinstance(value, dict) and value.keys() == _TYPED:
        raise ValueError(f"a value of type {shown(value['__type__'])}; accepted: plain JSON")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        if isinstance(one, dict | list):
            check_nesting(one, levels - 1)
