"""The source's own columns: plain values, and the Arrow types that the first batch gave the run.

Rows are appended to one dataset for as long as a run lives, so its columns cannot change under it.
A prompt is never lost over a column that nobody asked for: a value that does not fit is left out of
its row, and said why. Numbers, texts and truth values are judged by their Python type alone and
remembered by shape; only nested values cost an inference by Arrow.
"""

import base64
import datetime
import decimal
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

#: Levels of lists and objects within one column; more cannot be carried into Parquet safely.
DEEPEST = 32

_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    type(None): pa.null(),
}
_AS_TEXT: tuple[tuple[type | tuple[type, ...], Callable[[Any], str]], ...] = (
    ((datetime.date, datetime.time), lambda value: str(value.isoformat())),
    ((datetime.timedelta, decimal.Decimal, uuid.UUID), str),
)
_EXACT_IN_DOUBLE = 2**53
_ARROW = (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError)

Shape = tuple[tuple[str, type], ...]


#: Columns of one row that are left out: by name, what was found and what is accepted.
LeftOut = dict[str, str]

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

#: In a schema's metadata: the columns with a whole number that a double cannot hold.
_LARGE_KEY = b"prefmill.large"


class UnreadableValue(Exception):
    """Stands in a row for a value that could not be read; says why."""


def carried(columns: Mapping[str, Any], most: int) -> tuple[dict[str, Any], LeftOut]:
    """What of a row's other columns can be kept, as JSON holds it, and what is left out.

    `most` is what the JSON of all of them may have, in bytes of UTF-8.
    """
    kept: dict[str, Any] = {}
    left_out: LeftOut = {}
    for name, value in columns.items():
        try:
            kept[name], size = _carried(name, value, most)
            most -= size
        except (TypeError, ValueError, UnreadableValue) as exc:
            left_out[shown(name)] = str(exc)[:500]
    return kept, left_out


def _carried(name: str, value: Any, most: int) -> tuple[Any, int]:
    """A value as JSON holds it, and its size. Raises: TypeError, ValueError, UnreadableValue."""
    if isinstance(value, UnreadableValue):
        raise value
    try:
        value = plain(value)
    except TypeError as exc:
        raise TypeError(f"holds {exc}; accepted: what JSON can hold") from exc
    text = json.dumps([name, value], ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        half = f"holds {text[exc.start]!a}, which is no character; accepted: UTF-8 text"
        raise ValueError(half) from exc
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError("holds a NUL character; accepted: text")
    if size > most:
        raise ValueError(f"has {size:,} bytes; accepted: {most:,} more in this row")
    return value, size


def shown(name: str) -> str:
    """A column's name as text that can be stored."""
    return name.replace("\0", "").encode("utf-8", "replace").decode()


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it: times as ISO texts, NaN, ±Infinity and {} as null.

    Parquet knows no object without fields, JSON no number that is none.

    Raises:
        TypeError: it is of another kind or too deep; the message says what was found.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= DEEPEST and isinstance(value, list | tuple | Mapping):
        raise TypeError(f"more than {DEEPEST} levels of lists and objects")
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item, depth + 1) for name, item in value.items()} or None
    for kinds, text in _AS_TEXT:
        if isinstance(value, kinds):
            return text(value)
    raise TypeError(type(value).__name__)


class SourceColumns:
    """The run's source columns and their Arrow types; fixed by the first batch."""

    def __init__(
        self, fixed: pa.Schema | None = None, settled: Callable[[], bool] = lambda: True
    ) -> None:
        """`settled` says whether rows were delivered: from then on no type changes any more."""
        self._types: dict[str, pa.DataType] = {}
        #: Columns with a whole number that a double cannot hold; None where that is not known.
        self._large: set[str] | None = set()
        if fixed is not None:
            self._types = {field.name: field.type for field in fixed}
            large = (fixed.metadata or {}).get(_LARGE_KEY)
            self._large = None if large is None else set(json.loads(large))
        self._settled = settled
        # Shapes that fit, and their whole numbers' names. Types only widen: they go on fitting.
        self._fitting: dict[Shape, tuple[str, ...]] = {}

    @classmethod
    def from_text(
        cls, text: str | None, settled: Callable[[], bool] = lambda: True
    ) -> "SourceColumns":
        """The columns that `to_text` wrote down; None: nothing is fixed yet."""
        if text is None:
            return cls(settled=settled)
        return cls(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))), settled)

    def to_text(self) -> str:
        """The columns and their types as ASCII text: Arrow's own serialization in Base64."""
        schema = self.schema
        if self._large is not None:
            schema = schema.with_metadata({_LARGE_KEY: json.dumps(sorted(self._large)).encode()})
        return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")

    @property
    def schema(self) -> pa.Schema:
        """The columns so far; one in which only nulls were seen has the type null."""
        return pa.schema(list(self._types.items()))

    def fit(self, columns: Mapping[str, Any], *, first: bool) -> LeftOut:
        """Which columns of a row do not fit the run's, and why. Never raises.

        A row of the `first` batch may bring columns and widen types (whole numbers to double, an
        object by a field). A later row may give a type to what was null so far, and make whole
        numbers double while no row was delivered; a column that it lacks is null. What does not fit
        changes nothing.
        """
        shape = tuple(zip(columns, map(type, columns.values()), strict=True))
        whole = self._fitting.get(shape)
        if whole is None or any(abs(columns[name]) > _EXACT_IN_DOUBLE for name in whole):
            return self._examine(shape, columns, first=first)
        return {}

    def _examine(self, shape: Shape, columns: Mapping[str, Any], *, first: bool) -> LeftOut:
        left_out: LeftOut = {}
        for name, value in columns.items():
            accepted = self._types.get(name, pa.null())
            if name not in self._types and not first:
                known = ", ".join(map(repr, self._types))[:300] or "none"
                left_out[name] = f"is new; accepted: {known}"
                continue
            try:
                self._types[name] = self._widened(name, accepted, value, first=first)
            except _ARROW as exc:
                left_out[name] = _refusal(value, accepted, exc)
                continue
            if self._large is not None and _has_large(value):
                self._large.add(name)
        if not left_out and all(kind in _SCALARS for _, kind in shape):
            self._fitting[shape] = tuple(name for name, kind in shape if kind is int)
        return left_out

    def _widened(self, name: str, accepted: pa.DataType, value: Any, *, first: bool) -> pa.DataType:
        """The column's type once it holds `value`; one of `_ARROW` is raised if it cannot."""
        found = _SCALARS.get(type(value)) or pa.array([value]).type
        merged = _merge(accepted, found)
        if not _fills(accepted, merged):
            to_double = _fills(accepted, merged, to_double=True)
            if not first and not (to_double and not self._settled()):
                raise TypeError("another type")
            if _has_double(merged) and (self._large is None or name in self._large):
                raise TypeError("whole numbers that a double cannot hold came before")
        # Arrow converts what is kept, so that nothing fails when a shard is written.
        pa.array([value], type=merged)
        return merged


def _merge(accepted: pa.DataType, found: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("value", kind)]) for kind in (accepted, found)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _fills(accepted: pa.DataType, merged: pa.DataType, *, to_double: bool = False) -> bool:
    """Whether the merged type differs at most where there was only null.

    With `to_double` also where whole numbers became double.
    """
    if accepted == merged or pa.types.is_null(accepted):
        return True
    if to_double and pa.types.is_integer(accepted) and pa.types.is_floating(merged):
        return True
    if pa.types.is_list(accepted) and pa.types.is_list(merged):
        return _fills(accepted.value_type, merged.value_type, to_double=to_double)
    if pa.types.is_struct(accepted) and pa.types.is_struct(merged):
        return len(accepted) == len(merged) and all(
            _fills(field.type, merged.field(field.name).type, to_double=to_double)
            for field in accepted
        )
    return False


def _has_double(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_double(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_double(field.type) for field in kind)
    return bool(pa.types.is_floating(kind))


def _has_large(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_large, value))
    if isinstance(value, dict):
        return any(map(_has_large, value.values()))
    return type(value) is int and abs(value) > _EXACT_IN_DOUBLE


def _refusal(value: Any, accepted: pa.DataType, exc: Exception) -> str:
    if type(exc) is TypeError or isinstance(exc, pa.ArrowTypeError):
        found = str(_SCALARS.get(type(value)) or _inferred(value))
    else:
        found = " ".join(str(exc).split())[:200]
    allowed = "values of one type" if pa.types.is_null(accepted) else accepted
    return f"holds {found}; accepted: {allowed}"[:500]


def _inferred(value: Any) -> str:
    try:
        return str(pa.array([value]).type)
    except _ARROW:
        return type(value).__name__
