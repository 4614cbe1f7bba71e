"""Rows out of Parquet files, numbered from 1, on from any number.

A row that cannot be read is a `RowError` among the others; a file without rows of its own kind is a
`SourceError`. What a row must hold is for `producer.prompts` to say.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from producer.columns import UnreadableValue
from producer.memory import TOO_MUCH, bounded
from producer.prompts import MAX_ROW_BYTES, Found, RowError, brief
from workers.errors import SourceError
from workers.recipe import Columns

log = logging.getLogger(__name__)

#: What reading a Parquet file raises when the file is not what its name says.
TABLE_ERRORS = (pa.ArrowException, MemoryError)

#: Rows of a Parquet file that are unpacked at a time, and from the first on that are too much so.
TOGETHER = 64
FEW = 8

#: Bytes that such rows, or one of them, may have as Arrow holds them before they become objects.
MAX_UNPACKED_BYTES = 4 * MAX_ROW_BYTES


def parquet_rows(path: Path, columns: Columns, start: int) -> Iterator[tuple[int, str, Found]]:
    """A Parquet file's rows after the first `start`: number, place, row.

    Raises:
        SourceError: it has not the columns, or two of one name.
        OSError, TABLE_ERRORS: it cannot be read.
    """
    with open_parquet(path) as file:
        number = min(start, file.metadata.num_rows)
        for row in rows_of(file, columns, str(path), start):
            number += 1
            yield number, f" row {number}", row


def open_parquet(file: Any) -> pq.ParquetFile:
    """A path or an open file, of which columns are read in small parts. Raises: TABLE_ERRORS."""
    with bounded():
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)


def rows_of(file: pq.ParquetFile, columns: Columns, name: str, start: int) -> Iterator[Found]:
    """The rows of an open Parquet file after the first `start`, with the columns JSON can hold.

    Raises:
        SourceError: it has not the columns, or two of one name, or unpacks to too much.
        OSError, TABLE_ERRORS: it cannot be read.
    """
    names = storable(file.schema_arrow, columns, name)
    try:
        for batch in _batches(file, names, start, TOGETHER):
            if batch.nbytes > MAX_UNPACKED_BYTES:
                del batch
                break
            yield from _batch_rows(batch)
            start += batch.num_rows
            del batch  # or it would count while the next one is read
        else:
            return
    except MemoryError:
        pass
    try:
        for batch in _batches(file, names, start, FEW):
            yield from _batch_rows(batch)
            start += batch.num_rows
            del batch
    except MemoryError as exc:
        raise SourceError(f"source: {name} after row {start}: {TOO_MUCH}") from exc


def parquet_count(path: Path) -> int:
    """How many rows the file's footer says it has."""
    return int(pq.read_metadata(path).num_rows)


def _groups_from(metadata: pq.FileMetaData, start: int) -> tuple[list[int], int]:
    """The row groups that hold rows after `start`, and the number of rows before them."""
    group, before = 0, 0
    while group < metadata.num_row_groups:
        size = metadata.row_group(group).num_rows
        if before + size > start:
            break
        before += size
        group += 1
    return list(range(group, metadata.num_row_groups)), before


def _batches(
    file: pq.ParquetFile, names: list[str], start: int, together: int
) -> Iterator[pa.RecordBatch]:
    """The rows after the first `start`, a few at a time. Raises: MemoryError."""
    groups, number = _groups_from(file.metadata, start)
    batches = file.iter_batches(together, row_groups=groups, columns=names, use_threads=False)
    while True:
        with bounded():
            batch = next(batches, None)
        if batch is None:
            return
        first = min(batch.num_rows, max(0, start - number))
        number += batch.num_rows
        yield batch.slice(first)
        del batch


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Found]:
    try:
        rows = _objects(batch)
    except (pa.ArrowException, ValueError, OverflowError, MemoryError) as exc:
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _batch_rows(batch.slice(number, 1))
        elif isinstance(exc, MemoryError):
            yield _too_large(exc)
        else:
            yield {name: _value(batch.column(name)) for name in batch.schema.names}
    else:
        yield from rows


def _objects(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """Raises: MemoryError if they would be too many or too large."""
    if batch.nbytes > MAX_UNPACKED_BYTES:
        raise MemoryError(f"the row unpacks to {batch.nbytes:,} bytes")
    with bounded():
        return list(batch.to_pylist())


def _value(column: pa.Array) -> object:
    """The only value of a column; one that cannot be read says why."""
    try:
        return column.to_pylist()[0]
    except UnicodeDecodeError as exc:
        return UnreadableValue(f"holds bytes that are no UTF-8 ({brief(exc)}); accepted: text")
    except (pa.ArrowException, ValueError, OverflowError) as exc:
        return UnreadableValue(f"cannot be read: {brief(exc)}")


def _too_large(exc: MemoryError) -> RowError:
    found = brief(exc) if str(exc) else "the row holds more values than there is memory for"
    return RowError("too_large", f"{found}; accepted: at most {MAX_UNPACKED_BYTES:,} bytes")


def check_columns(names: Sequence[str], columns: Columns, name: str) -> None:
    """That a table has the columns that are asked for, each once. Raises: SourceError."""
    known = ", ".join(map(repr, names))[:300]
    for ours, theirs in columns.read.items():
        if theirs not in names:
            raise SourceError(
                f"source.columns.{ours}: {name} has no column {theirs!r}; it has: {known}"
            )
    if len(set(names)) < len(names):
        raise SourceError(f"source.file: {name} has several columns of one name: {known}")


def storable(schema: pa.Schema, columns: Columns, name: str) -> list[str]:
    """The columns whose values JSON can hold; the others are left out with one warning.

    Raises:
        SourceError: the `columns` are not among them, or two have one name.
    """
    check_columns(schema.names, columns, name)
    read = columns.read.values()
    kept = [field.name for field in schema if field.name in read or _json_able(field.type)]
    left_out = [field for field in schema.names if field not in kept]
    if left_out:
        log.warning("source_columns_left_out", extra={"source": name, "columns": left_out})
    return kept


def _json_able(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return str(kind.extension_name) == "arrow.json"
    if pa.types.is_nested(kind):
        return not pa.types.is_map(kind) and all(
            _json_able(kind.field(index).type) for index in range(kind.num_fields)
        )
    return not (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
