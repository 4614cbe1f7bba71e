"""The source's own columns: plain values, and the Arrow types that the first batch gave the run.

Rows are appended to one dataset for as long as a run lives, so its columns cannot change under it:
a later row fits or is refused. What became of a refused row, and what the columns mean, is unknown
here. Numbers, texts and truth values are judged by their Python type alone and remembered by shape;
only nested values cost an inference by Arrow.
"""

import base64
import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a row's columns do not fit: `new_column` or `wrong_column_type`, and one line."""

    reason: str
    detail: str


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

    def __init__(self, fixed: pa.Schema | None = None) -> None:
        self._types: dict[str, pa.DataType] = {}
        if fixed is not None:
            self._types = {field.name: field.type for field in fixed}
        # Shapes that fit, and their whole numbers' names. Types only widen: they go on fitting.
        self._fitting: dict[Shape, tuple[str, ...]] = {}
        # Whole numbers that a double cannot hold exactly: they forbid a later promotion.
        self._large: dict[str, list[Any]] = {}

    @classmethod
    def from_text(cls, text: str | None) -> "SourceColumns":
        """The columns that `to_text` wrote down; None: nothing is fixed yet."""
        if text is None:
            return cls()
        return cls(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))))

    def to_text(self) -> str:
        """The columns and their types as ASCII text: Arrow's own serialization in Base64."""
        return base64.b64encode(self.schema.serialize().to_pybytes()).decode("ascii")

    @property
    def schema(self) -> pa.Schema:
        """The columns so far; one in which only nulls were seen has the type null."""
        return pa.schema(list(self._types.items()))

    def admit(self, columns: Mapping[str, Any], *, first: bool) -> Misfit | None:
        """Why a row does not fit the run's columns; None if it does. Never raises.

        A row of the `first` batch may bring columns and widen types (whole numbers to double, an
        object by a field). A later row may only give a type to what was null so far; a column that
        it lacks is null. A row that is refused changes nothing.
        """
        shape = tuple(zip(columns, map(type, columns.values()), strict=True))
        whole = self._fitting.get(shape)
        if whole is None or any(abs(columns[name]) > _EXACT_IN_DOUBLE for name in whole):
            return self._examine(shape, columns, first=first)
        return None

    def _examine(self, shape: Shape, columns: Mapping[str, Any], *, first: bool) -> Misfit | None:
        changed: dict[str, pa.DataType] = {}
        for name, value in columns.items():
            if name not in self._types and not first:
                known = ", ".join(map(repr, self._types))[:300] or "none"
                return Misfit("new_column", f"column {name!r} is new; accepted: {known}")
            accepted = self._types.get(name, pa.null())
            try:
                changed[name] = self._widened(name, accepted, value, first=first)
            except _ARROW as exc:
                return Misfit("wrong_column_type", _refusal(name, value, accepted, exc))
        self._types.update(changed)
        self._remember(shape, columns, first=first)
        return None

    def _widened(self, name: str, accepted: pa.DataType, value: Any, *, first: bool) -> pa.DataType:
        """The column's type once it holds `value`; one of `_ARROW` is raised if it cannot."""
        found = _SCALARS.get(type(value)) or pa.array([value]).type
        merged = _merge(accepted, found)
        if not first and not _fills(accepted, merged):
            raise TypeError("another type")
        # Arrow converts what is kept, so that nothing fails when a shard is written.
        pa.array([value, *self._large.get(name, ())], type=merged)
        return merged

    def _remember(self, shape: Shape, columns: Mapping[str, Any], *, first: bool) -> None:
        if all(kind in _SCALARS for _, kind in shape):
            self._fitting[shape] = tuple(name for name, kind in shape if kind is int)
        if not first:
            self._large.clear()
            return
        for name, value in columns.items():
            if _has_large(value):
                self._large.setdefault(name, []).append(value)


def _merge(accepted: pa.DataType, found: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("value", kind)]) for kind in (accepted, found)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _fills(accepted: pa.DataType, merged: pa.DataType) -> bool:
    """Whether the merged type differs at most where there was only null."""
    if accepted == merged or pa.types.is_null(accepted):
        return True
    if pa.types.is_list(accepted) and pa.types.is_list(merged):
        return _fills(accepted.value_type, merged.value_type)
    if pa.types.is_struct(accepted) and pa.types.is_struct(merged):
        return len(accepted) == len(merged) and all(
            _fills(field.type, merged.field(field.name).type) for field in accepted
        )
    return False


def _has_large(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_large, value))
    if isinstance(value, dict):
        return any(map(_has_large, value.values()))
    return type(value) is int and abs(value) > _EXACT_IN_DOUBLE


def _refusal(name: str, value: Any, accepted: pa.DataType, exc: Exception) -> str:
    if type(exc) is TypeError or isinstance(exc, pa.ArrowTypeError):
        found = str(_SCALARS.get(type(value)) or _inferred(value))
    else:
        found = " ".join(str(exc).split())[:200]
    allowed = "values of one type" if pa.types.is_null(accepted) else accepted
    return f"column {name!r} holds {found}; accepted: {allowed}"[:500]


def _inferred(value: Any) -> str:
    try:
        return str(pa.array([value]).type)
    except _ARROW:
        return type(value).__name__
