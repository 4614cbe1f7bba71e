"""Where prompts come from: a Hub dataset, a file or stdin, read lazily, each row checked by itself.

A row either is a `Prompt` or is a `BadRow` with a reason; what makes a whole source unreadable is a
`SourceError`. `Source.limit` and the types of the other columns are the feed's business, for only
it knows what was accepted before. Positions are meant for the ledger: reading goes on after the row
that carried one. A Hub dataset is taken to grow at its end only.
"""

import csv
import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from producer.columns import plain
from producer.lines import LONGEST, Line, file_lines, pipe_lines
from workers.errors import SourceError
from workers.records import Prompt

if TYPE_CHECKING:
    from workers.recipe import Source

log = logging.getLogger(__name__)

#: Bytes of UTF-8 that an instruction may have.
MAX_INSTRUCTION_BYTES = 1_000_000
#: Bytes of a line of JSON, or of the JSON of a row that comes otherwise.
MAX_ROW_BYTES = LONGEST
#: Text files up to this many bytes are counted for a progress bar.
MAX_COUNTED_BYTES = 64_000_000
#: Seconds that the Hub may take to name a dataset's newest revision.
HUB_TIMEOUT_S = 30.0

_LINES = (".jsonl", ".ndjson")
_KINDS = (*_LINES, ".parquet", ".csv")
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


class _RowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


_Found = Mapping[str, Any] | _RowError
#: Path, instruction column, rows to pass over → number of the row, its place, the row.
_Rows = Callable[[Path, str, int], Iterator[tuple[int, str, _Found]]]


def identity(source: "Source") -> str:
    """A stable name of what is read; positions are only good for the same one."""
    if source.hub is not None:
        return f"hub:{source.hub}/{source.config or ''}/{source.split}"
    return f"file:{source.file}" if source.file is not None else "stdin"


def read(
    source: "Source",
    *,
    position: Position | None = None,
    follow: bool = False,
    idle_s: float = 0.5,
    fd: int = 0,
) -> Iterator[Item]:
    """The source's rows after `position`; None where nothing new came for about `idle_s` seconds.

    With `follow` lines of JSON and Hub datasets never end, and a missing JSONL file is waited for;
    Parquet and CSV end as ever. Without it None comes from a slow stdin only (`fd`). Close the
    iterator when leaving it early: `datasets` holds threads and files.

    Raises:
        SourceError: the source cannot be opened or read; one line that says what to do.
    """
    if source.hub is not None:
        return _hub_items(source, position or {}, follow=follow, idle_s=idle_s)
    if source.file is None:
        return _line_items(pipe_lines(fd, idle_s=idle_s), source, "stdin")
    kind = _kind(source.file)
    if kind in _LINES:
        lines = file_lines(source.file, position, follow=follow, idle_s=idle_s)
        return _line_items(lines, source, source.file.name)
    rows = _parquet_rows if kind == ".parquet" else _csv_rows
    return _file_items(rows, source.file, source.columns.instruction, position or {})


def row_count(source: "Source") -> int | None:
    """How many rows the source has, if that is cheap to learn; None otherwise. Never raises."""
    try:
        if source.hub is not None:
            return _hub_count(source)
        if source.file is None:
            return None
        if _kind(source.file) == ".parquet":
            return int(pq.read_metadata(source.file).num_rows)
        if source.file.stat().st_size > MAX_COUNTED_BYTES:
            return None
        if _kind(source.file) == ".csv":
            return sum(1 for row in csv.reader(_CsvLines(source.file)) if row) - 1
        return sum(1 for line in file_lines(source.file) if line and line.text != b"")
    except (SourceError, OSError, pa.ArrowException, csv.Error, _RowError):
        return None


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise SourceError(f"source.file: {path} is none of {', '.join(_KINDS)}")
    return kind


def _line_items(lines: Iterator[Line | None], source: "Source", name: str) -> Iterator[Item]:
    column = source.columns.instruction
    with _reading(name):
        for line in lines:
            if line is None:
                yield None
            elif line.text is None or line.text.strip():
                at = line.position if source.file else {}
                yield _item(_record(line.text), column, f"{name}:{line.number}", at)


def _file_items(rows: _Rows, path: Path, column: str, position: Position) -> Iterator[Item]:
    with _reading(str(path)):
        for number, place, row in rows(path, column, position.get("row", 0)):
            yield _item(row, column, f"{path.name}{place}", {"row": number})


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise SourceError(f"source.file: {name} does not exist") from exc
    except (OSError, pa.ArrowException, csv.Error) as exc:
        raise SourceError(f"source.file: {name} cannot be read: {_brief(exc)}") from exc


def _item(row: _Found, column: str, where: str, at: Position) -> Item:
    try:
        if isinstance(row, _RowError):
            raise row
        prompt = _prompt(row, column)
    except _RowError as error:
        return BadRow(error.reason, error.detail, where, at)
    return Row(prompt, where, at)


def _prompt(row: Mapping[str, Any], column: str) -> Prompt:
    instruction = row.get(column)
    if instruction is None:
        names = ", ".join(map(repr, row))[:300] or "nothing"
        raise _RowError("no_instruction", f"{column!r} is missing or null; the row has: {names}")
    if not isinstance(instruction, str):
        found = type(instruction).__name__
        raise _RowError("wrong_type", f"{column!r} is of type {found}; accepted: a string")
    if not instruction or instruction.isspace():
        raise _RowError("empty", f"{column!r} is empty; accepted: a string that says something")
    _check(instruction, MAX_INSTRUCTION_BYTES, repr(column))
    columns = {name: _plain(name, value) for name, value in row.items() if name != column}
    text = json.dumps(columns, ensure_ascii=False)
    _check(text, MAX_ROW_BYTES - len(instruction), "the row without its instruction")
    if "\0" in instruction or ("\\u0000" in text and _NUL.search(text)):
        raise _RowError("not_text", "the row holds a NUL character; accepted: text")
    return Prompt(instruction, columns)


def _check(text: str, most: int, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        detail = f"{what} holds {text[exc.start]!a}, which is no character; accepted: UTF-8 text"
        raise _RowError("not_text", detail) from exc
    if size > most:
        raise _RowError("too_large", f"{what} has {size:,} bytes; accepted: at most {most:,}")


def _plain(name: str, value: Any) -> Any:
    try:
        return plain(value)
    except TypeError as exc:
        detail = f"column {name!r} holds {exc}; accepted: what JSON can hold"
        raise _RowError("wrong_column_type", detail) from exc


def _record(text: bytes | None) -> _Found:
    if text is None:
        return _RowError(
            "too_large", f"the line is longer than {LONGEST:,} bytes, which is the most"
        )
    try:
        record = json.loads(text.decode())
    except UnicodeDecodeError as exc:
        return _RowError("not_text", f"byte {exc.start + 1} of the line; accepted: UTF-8 text")
    except (ValueError, RecursionError) as exc:
        return _RowError("not_json", f"{_brief(exc)}; accepted: one JSON object a line")
    if not isinstance(record, dict):
        found = type(record).__name__
        return _RowError("not_an_object", f"the line is of type {found}; accepted: a JSON object")
    return record


def _brief(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__


class _CsvLines:
    """A CSV file's lines as text; bytes that are no UTF-8 become surrogates and are found later.

    An iterator and not a generator: it goes on after a line that is too long.
    """

    def __init__(self, path: Path) -> None:
        self._lines = file_lines(path)
        self.number = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        assert line is not None
        self.number = line.number
        if line.text is None:
            raise _RowError("too_large", f"a line is longer than {LONGEST:,} bytes")
        return line.text.decode(errors="surrogateescape") + "\n"


def _csv_rows(path: Path, column: str, start: int) -> Iterator[tuple[int, str, _Found]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _CsvLines(path)
    records = _csv_records(csv.reader(lines))
    header = next(records, None)
    if not isinstance(header, list):
        raise SourceError(f"source.file: {path} does not begin with a row of column names")
    _accepted(header, column, str(path))
    for number, values in enumerate(records, 1):
        if number <= start:
            continue
        row: _Found
        if isinstance(values, _RowError):
            row = values
        elif len(values) != len(header):
            found = f"the row has {len(values)} values"
            row = _RowError("wrong_type", f"{found}; accepted: {len(header)}, as in the header")
        else:
            row = dict(zip(header, values, strict=True))
        yield number, f":{lines.number}", row


def _csv_records(reader: Iterator[list[str]]) -> Iterator[list[str] | _RowError]:
    """The rows that are not blank; the reader goes on with the next line after an error."""
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield _RowError("too_large" if "limit" in str(exc) else "wrong_type", _brief(exc))
        except _RowError as error:
            yield error
        else:
            if values:
                yield values


def _parquet_rows(path: Path, column: str, start: int) -> Iterator[tuple[int, str, _Found]]:
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        names = _storable(file.schema_arrow, column, str(path))
        groups, number = _groups_from(file.metadata, start)
        for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=names):
            first = min(batch.num_rows, max(0, start - number))
            number += first
            for row in _batch_rows(batch.slice(first)):
                number += 1
                yield number, f" row {number}", row


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


def _batch_rows(batch: pa.RecordBatch) -> Iterator[_Found]:
    try:
        yield from batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as exc:
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _batch_rows(batch.slice(number, 1))
            return
        not_text = isinstance(exc, UnicodeDecodeError)
        yield _RowError("not_text" if not_text else "wrong_column_type", _brief(exc))


def _accepted(names: Sequence[str], column: str, name: str) -> None:
    known = ", ".join(map(repr, names))[:300]
    if column not in names:
        raise SourceError(
            f"source.columns.instruction: {name} has no column {column!r}; it has: {known}"
        )
    if len(set(names)) < len(names):
        raise SourceError(f"source.file: {name} has several columns of one name: {known}")


def _storable(schema: pa.Schema, column: str, name: str) -> list[str]:
    """The columns whose values JSON can hold; the others are left out with one warning."""
    _accepted(schema.names, column, name)
    kept = [field.name for field in schema if field.name == column or _json_able(field.type)]
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


def _hub_items(
    source: "Source", position: Position, *, follow: bool, idle_s: float
) -> Iterator[Item]:
    number, read_once = int(position.get("row", 0)), False
    known = revision = _newest(source)
    while True:
        try:
            for row in _hub_rows(source, revision, number):
                number += 1
                read_once = True
                where = f"hub {source.hub} {source.split} {number}"
                at = {"row": number, "revision": revision}
                yield _item(row, source.columns.instruction, where, at)
            read_once = True
        except SourceError as error:
            if not (follow and read_once):
                raise
            log.warning("source_unreadable", extra={"error": str(error), "row": number})
            known = None
        if not follow:
            return
        known = revision = yield from _next_revision(source, known, idle_s)


def _next_revision(
    source: "Source", known: str | None, idle_s: float
) -> Generator[None, None, str | None]:
    """Ask every `source.poll` seconds until the newest revision is another one than `known`."""
    while True:
        due = time.monotonic() + source.poll
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(idle_s, left))
            yield None
        try:
            revision = _newest(source)
        except SourceError as error:
            log.warning("source_not_polled", extra={"error": str(error)})
            continue
        if revision != known:
            return revision


def _newest(source: "Source") -> str | None:
    """The commit that the source's revision names now; None if the Hub is not to be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _asking(source):
        try:
            info = HfApi().dataset_info(
                str(source.hub), revision=source.revision, timeout=HUB_TIMEOUT_S
            )
        except OfflineModeIsEnabled:
            return None
    return info.sha


def _hub_rows(source: "Source", revision: str | None, start: int) -> Iterator[Mapping[str, Any]]:
    """The rows after the first `start` of one revision, without columns that JSON cannot hold."""
    with _asking(source):
        builder = _builder(source, revision)
        if source.streaming:
            dataset = builder.as_streaming_dataset(split=source.split)
        else:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=source.split)
    if dataset.features is not None:
        name = f"{source.hub} ({source.split})"
        kept = _storable(dataset.features.arrow_schema, source.columns.instruction, name)
        dataset = dataset.select_columns(kept)
    if not source.streaming and start >= len(dataset):
        return  # a Dataset, unlike an IterableDataset, cannot skip all of its rows
    with _asking(source):
        rows = iter(dataset.skip(start))
    while True:
        with _asking(source):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _builder(source: "Source", revision: str | None) -> Any:
    """What `load_dataset` goes through, without its silent fall back to an older cached copy."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(
        str(source.hub), name=source.config, revision=revision or source.revision
    )
    if revision is not None and builder.hash != revision:
        raise ConnectionError(f"revision {revision} could not be read, only an older copy of it")
    return builder


def _hub_count(source: "Source") -> int | None:
    with _asking(source):
        split = (_builder(source, None).info.splits or {}).get(source.split)
    return split.num_examples if split else None


@contextmanager
def _asking(source: "Source") -> Iterator[None]:
    """Whatever `datasets` and `huggingface_hub` raise, as one line that says what to do."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or httpx2

    foreign = (DatasetsError, HTTPError, pa.ArrowException, OSError, ValueError, RuntimeError)
    try:
        yield
    except (*foreign, LookupError) as exc:
        dataset = f"{source.hub} (split {source.split})"
        raise SourceError(f"source.hub: {dataset}: {_advice(exc)}") from exc


def _advice(exc: BaseException) -> str:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(exc, "response", None), "status_code", None)
    if isinstance(exc, RevisionNotFoundError):
        return "there is no such revision; check source.revision"
    if isinstance(exc, RepositoryNotFoundError | DatasetNotFoundError) or status in (401, 403):
        return "not found or not allowed; check the name, and set HF_TOKEN to a token that reads it"
    if isinstance(exc, FileNotFoundError | ValueError | LookupError):
        return f"{_brief(exc)}; check source.config, source.split and the dataset's files"
    return f"{_brief(exc)}; check the network and HF_ENDPOINT, and start again"
