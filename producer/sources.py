"""Where prompts come from: a Hub dataset, a file or stdin, read lazily, each row checked by itself.

What makes a whole source unreadable is a `SourceError`; a bad row is only an item. Positions are
meant for the ledger: reading goes on after the row that carried one.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from producer.csv_file import csv_count, csv_rows
from producer.hub_source import hub_count, hub_items
from producer.lines import Line, file_lines, pipe_lines
from producer.prompts import Found, Item, Position, RowError, brief, item, record
from producer.tabular import TABLE_ERRORS, parquet_count, parquet_rows
from workers.errors import SourceError
from workers.recipe import Columns

if TYPE_CHECKING:
    from workers.recipe import Source

#: Text files up to this many bytes are counted for a progress bar.
MAX_COUNTED_BYTES = 64_000_000

_LINES = (".jsonl", ".ndjson")
_KINDS = (*_LINES, ".parquet", ".csv")

#: Path, columns, rows to pass over → number of the row, its place, the row.
_Rows = Callable[[Path, Columns, int], Iterator[tuple[int, str, Found]]]


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
) -> Generator[Item, None, None]:
    """The source's rows after `position`; None where nothing new came for about `idle_s` seconds.

    With `follow` lines of JSON and Hub datasets never end, and a missing JSONL file is waited for;
    Parquet and CSV end as ever. Without it None comes from a slow stdin only (`fd`). Close the
    generator when leaving it early: `datasets` holds threads and files.

    Raises:
        SourceError: the source cannot be opened or read; one line that says what to do.
    """
    if source.hub is not None:
        return hub_items(source, position or {}, follow=follow, idle_s=idle_s)
    if source.file is None:
        return _line_items(pipe_lines(fd, idle_s=idle_s), source, "stdin")
    kind = _kind(source.file)
    if kind in _LINES:
        lines = file_lines(source.file, position, follow=follow, idle_s=idle_s)
        return _line_items(lines, source, source.file.name)
    rows = parquet_rows if kind == ".parquet" else csv_rows
    return _file_items(rows, source.file, source.columns, position or {})


def row_count(source: "Source") -> int | None:
    """How many rows the source has, if that is cheap to learn; None otherwise. Never raises."""
    try:
        if source.hub is not None:
            return hub_count(source)
        if source.file is None:
            return None
        if _kind(source.file) == ".parquet":
            return parquet_count(source.file)
        if source.file.stat().st_size > MAX_COUNTED_BYTES:
            return None
        if _kind(source.file) == ".csv":
            return csv_count(source.file)
        return sum(1 for line in file_lines(source.file) if line and line.text != b"")
    except (SourceError, OSError, RowError, *TABLE_ERRORS):
        return None


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise SourceError(f"source.file: {path} is none of {', '.join(_KINDS)}")
    return kind


def _line_items(
    lines: Iterator[Line | None], source: "Source", name: str
) -> Generator[Item, None, None]:
    with _reading(name):
        for line in lines:
            if line is None:
                yield None
            elif line.text is None or line.text.strip():
                at = line.position if source.file else {}
                yield item(record(line.text), source.columns, f"{name}:{line.number}", at)


def _file_items(
    rows: _Rows, path: Path, columns: Columns, position: Position
) -> Generator[Item, None, None]:
    with _reading(str(path)):
        for number, place, row in rows(path, columns, position.get("row", 0)):
            yield item(row, columns, f"{path.name}{place}", {"row": number})


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise SourceError(f"source.file: {name} does not exist") from exc
    except (OSError, *TABLE_ERRORS) as exc:
        raise SourceError(f"source.file: {name} cannot be read: {brief(exc)}") from exc
