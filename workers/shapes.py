"""The Arrow shape of each configuration: what the ledger's pairs become in a file.

A run's source columns under the names that `rows` gives them, then ours, of fixed types: files are
appended to one dataset for as long as a run lives. Where a file goes is unknown here.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.ledger import Judged
from workers.rows import (
    COLUMNS,
    default_row,
    full_row,
    human_row,
    kto_rows,
    reward_row,
    ride_along_names,
)

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TYPES = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float64()),
    "messages": _MESSAGES,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of one configuration: the source's under their new names, then ours."""

    configuration: str
    names: dict[str, str]
    schema: pa.Schema

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of names and types: files of one dataset share it."""
        return hashlib.sha256(self.schema.remove_metadata().serialize()).hexdigest()

    def rows(self, judged: Iterable[Judged]) -> Iterator[dict[str, Any]]:
        """The rows of pairs that come prompt by prompt; every column filled or null."""
        for _, pairs in groupby(judged, key=lambda one: one.key):
            yield from self._of_one_prompt(list(pairs))

    def _of_one_prompt(self, judged: list[Judged]) -> Iterator[dict[str, Any]]:
        prompt = judged[0].prompt
        theirs = {ours: prompt.columns.get(name) for name, ours in self.names.items()}
        untied = [one.pair for one in judged if not one.pair.tie]
        match self.configuration:
            case "default":
                made = [default_row(prompt, pair) for pair in untied]
            case "reward":
                made = [reward_row(prompt, pair) for pair in untied]
            case "kto":
                made = kto_rows(prompt, untied)
            case "human":
                made = [human_row(prompt, one.pair, one.people or {}) for one in judged]
            case _:
                made = [_full(one) for one in judged]
        return (theirs | row for row in made)

    def parquet(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """A Parquet file of these rows; the same rows make the same bytes."""
        table = pa.Table.from_pylist(list(rows), schema=self.schema)
        pq.write_table(table, sink := io.BytesIO(), compression="zstd")
        return sink.getvalue()


def _full(one: Judged) -> dict[str, Any]:
    return full_row(
        one.prompt,
        one.pair,
        one.generations,
        one.judgements,
        key=one.key,
        recipe_hash=one.recipe_hash,
    )


def source_schema(text: str | None) -> pa.Schema:
    """The run's source columns, as a ledger stores them: Arrow's own serialization in Base64."""
    if text is None:
        return pa.schema([])
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def shape(configuration: str, source: pa.Schema) -> Shape:
    """The shape of a configuration for a run with these source columns."""
    names = ride_along_names(source.names)
    fields = [pa.field(names[field.name], _without_null(field.type)) for field in source]
    fields += [pa.field(name, _TYPES[kind]) for name, kind in COLUMNS[configuration]]
    return Shape(configuration, names, pa.schema(fields))


def _without_null(kind: pa.DataType) -> pa.DataType:
    """A null-typed column makes a dataset that loads alone and fails beside its next shard."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_null(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_null(field.type)) for field in kind])
    return kind
