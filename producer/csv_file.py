"""Rows out of CSV files, numbered from 1, to the byte or not at all.

Quotes are strict: a reader that guesses joins `"a"b` to `ab`, and lets one quote that is never
closed swallow the rest of the file. A row that is not well quoted is a `RowError` with its lines,
and reading goes on after it.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from producer.lines import LONGEST, file_lines
from producer.prompts import MAX_ROW_BYTES, Found, RowError
from producer.tabular import check_columns
from workers.errors import SourceError
from workers.recipe import Columns

#: Of a file whose first line ends in a carriage return alone, as on an old Mac.
_MAC_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)")


def csv_rows(path: Path, columns: Columns, start: int) -> Iterator[tuple[int, str, Found]]:
    """A CSV file's rows after the first `start`: number to go on after, place, row.

    Raises:
        SourceError: it has no row of column names, or not the columns.
        OSError: it cannot be read.
    """
    lines = _Lines(path)
    records = _records(lines)
    header = next(records, None)
    if not isinstance(header, list):
        why = f": {header.detail}" if header is not None else ""
        raise SourceError(f"source.file: {path} does not begin with a row of column names{why}")
    check_columns(header, columns, str(path))
    for number, values in enumerate(records, 1):
        if number <= start:
            continue
        row: Found
        if isinstance(values, RowError):
            # One that has no end is read again once someone has closed its quote.
            done = number - 1 if lines.unclosed else number
            yield done, f":{lines.first}", values
            continue
        if len(values) != len(header):
            found = f"the row has {len(values)} values"
            row = RowError("wrong_type", f"{found}; accepted: {len(header)}, as in the header")
        else:
            row = dict(zip(header, values, strict=True))
        yield number, f":{lines.number}", row


def csv_count(path: Path) -> int:
    """How many rows follow the header; reads the whole file."""
    return sum(1 for _ in _records(_Lines(path))) - 1


class _Lines:
    """A CSV file's lines with their ends; bytes that are no UTF-8 become surrogates, found later.

    An iterator and not a generator: it goes on after a line that is too long.
    """

    def __init__(self, path: Path) -> None:
        self._lines = file_lines(path)
        #: Lines that were read already and come next, the last one first; None: one too long.
        self._parts: list[str | None] = []
        self._mac = False
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """From the next line on a new record is read."""
        self.first = self.number + 1
        #: Where the quote that is open now was opened; None: none is.
        self.opened: int | None = None
        #: Whether the file ended within quotes.
        self.unclosed = False
        self._record: list[str] = []
        self._bytes = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        text = self._next()
        if text is None:
            raise RowError("too_large", f"a line is longer than {LONGEST:,} bytes")
        self._bytes += len(text)
        if self._bytes > MAX_ROW_BYTES:
            raise RowError("too_large", f"the row has more than {MAX_ROW_BYTES:,} bytes")
        self._record.append(text)
        return text

    def pass_over_cell(self) -> None:
        """Read on to the end of a row that has text after a closing quote at this line.

        It ends where a quote stands before a comma or a line end. A quote that begins a cell on a
        later line than the one that is open tells that this one was never closed: reading goes on
        there, as what lies between may be the middle of a text; but after this line if the row is
        this line alone. Where neither is found it goes on after this line.
        """
        known = len(self._record)
        lines: list[str | None] = list(self._record)
        size, within, place = 0, False, 0
        while size <= MAX_ROW_BYTES:
            if place == len(lines) and not self._look_ahead(lines):
                break
            line = lines[place]
            if line is None:
                break
            size += len(line)
            within, begins = _after(line, within=within)
            if begins:
                self._give_back(lines[1 if known == 1 else place :])
                return
            place += 1
            if not within and place >= known:
                self._give_back(lines[place:])
                return
        self._give_back(lines[known:])

    def _look_ahead(self, lines: list[str | None]) -> bool:
        """Add the next line; returns whether there is one."""
        try:
            lines.append(self._next())
        except StopIteration:
            return False
        return True

    def _give_back(self, lines: list[str | None]) -> None:
        self._parts += reversed(lines)
        self.number -= len(lines)

    def pass_over(self) -> None:
        """Read on, without keeping it, until the quote that is open now is closed."""
        try:
            while self.opened is not None and self._next() is not None:
                pass
        except StopIteration:
            self.unclosed = True

    def _next(self) -> str | None:
        """The next line; None for one that is too long. Raises: StopIteration."""
        if not self._parts:
            line = next(self._lines)
            assert line is not None
            text = None if line.text is None else line.text.decode(errors="surrogateescape") + "\n"
            if text is None:
                self.number += 1
                return None
            if self.number == 0:
                head, end, rest = text.partition("\r")
                self._mac = bool(end) and rest != "\n" and head.count('"') % 2 == 0
            self._parts += _MAC_LINE.findall(text)[::-1] if self._mac else [text]
        self.number += 1
        text = self._parts.pop()
        if text is not None and text.count('"') % 2:
            self.opened = self.number if self.opened is None else None
        return text


def _after(line: str, *, within: bool) -> tuple[bool, bool]:
    """Whether a line ends within a quoted cell, and whether a quote begins a cell in one that an
    earlier line opened.
    """
    earlier, place = within, 0
    while (place := line.find('"', place)) >= 0:
        first = place == 0 or line[place - 1] == ","
        ends = line[place + 1 : place + 2] in ("", ",", "\r", "\n")
        if not within:
            within, earlier = first, False
        elif line[place + 1 : place + 2] == '"':
            place += 1
        elif ends:
            within = False
        elif first and earlier:
            return within, True
        place += 1
    return within, False


def _records(lines: _Lines) -> Iterator[list[str] | RowError]:
    """The rows that are not blank; the reader goes on with the next line after an error."""
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            if "expected after" in str(exc):
                lines.pass_over_cell()
            yield _wrong_quotes(lines, exc)
        except RowError as error:
            lines.pass_over()
            yield error
        else:
            if values:
                yield values


def _wrong_quotes(lines: _Lines, exc: csv.Error) -> RowError:
    accepted = 'accepted: quotes around a whole value, and "" for a quote within'
    if "unexpected end of data" in str(exc):
        lines.unclosed = True
        opened = f"a quote that opens at line {lines.opened or lines.first} is never closed"
        return RowError("wrong_quotes", f"{opened}, and nothing after it was read; {accepted}")
    where = f"line {lines.number}"
    if lines.first < lines.number:
        where = f"lines {lines.first} to {lines.number}"
    if "new-line" in str(exc):
        return RowError("wrong_quotes", f"{where}: a carriage return outside quotes; {accepted}")
    return RowError("wrong_quotes", f"{where}: text follows a closing quote; {accepted}")
