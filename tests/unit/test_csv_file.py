"""No CSV changes a text: a value comes to the byte, or its row is bad and says where."""

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.csv_file import csv_count
from producer.prompts import BadRow, Row
from producer.sources import read
from workers.errors import SourceError
from workers.recipe import Columns, Source

#: Texts as people have them in cells.
CELLS = [
    "plain",
    " leading and trailing ",
    "two\nlines",
    "two\r\nlines of Windows",
    "an old\rMac",
    'say "hi"',
    '"',
    "\\",
    'a backslash \\" is no escape',
    "a, comma",
    "tab\tand ; and |",
    "\u2028\u0085\x0b\x0c are no line ends",
    "é \U0001f600 \ufeff",
    "=1+1",
    '5" pipe',
    "'quoted'",
]


def rows_of(content: bytes, position: Any = None) -> list[Row | BadRow]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.csv"
        path.write_bytes(content)
        found = list(read(Source(file=path, columns=Columns()), position=position))
        assert csv_count(path) >= len(found)
    return [row for row in found if row is not None]


def texts_of(content: bytes) -> list[str]:
    rows = rows_of(content)
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.prompt.instruction for row in rows if isinstance(row, Row)]


def bad(content: bytes) -> tuple[list[str], list[tuple[str, str, str]]]:
    """The instructions of good rows, and place, reason and detail of bad ones."""
    rows = rows_of(content)
    good = [row.prompt.instruction for row in rows if isinstance(row, Row)]
    return good, [(row.where, row.reason, row.detail) for row in rows if isinstance(row, BadRow)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts_come_back_to_the_byte(end: str, quoting: Any, mark: bytes) -> None:
    file = io.StringIO(newline="")
    # By itself the csv module quotes no line end but the file's own.
    others = {"\r", "\n"} - set(end) if quoting == csv.QUOTE_MINIMAL else set()
    cells = [cell for cell in CELLS if not others & set(cell)]
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    writer.writerows([["instruction", "n"], *([cell, "1"] for cell in cells)])
    assert texts_of(mark + file.getvalue().encode()) == cells


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_whatever_is_written_comes_back(texts: list[str], end: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["instruction", "note"], *(["x", text] for text in texts)])
    rows = rows_of(file.getvalue().encode())
    assert [row.prompt.columns["note"] for row in rows if isinstance(row, Row)] == texts


@given(st.text(st.sampled_from('a,"\n\r ')))
def test_what_the_csv_module_accepts_strictly_is_read_alike(text: str) -> None:
    content = "instruction,n\n" + text
    try:
        expected = list(csv.reader(io.StringIO(content, newline="\n"), strict=True))[1:]
    except csv.Error:
        assert any(isinstance(row, BadRow) for row in rows_of(content.encode()))
        return
    rows = rows_of(content.encode())
    values = [value for value in expected if value]
    assert len(rows) == len(values)
    for row, value in zip(rows, values, strict=True):
        if isinstance(row, Row):
            assert [row.prompt.instruction, row.prompt.columns["n"]] == value


@pytest.mark.parametrize(
    ("broken", "place", "told"),
    [
        (b'"abc"def,1\n', ":2", "line 2: text follows a closing quote"),
        (b'"a" b,1\n', ":2", "line 2: text follows a closing quote"),
        (b'"say \\"hi\\"",1\n', ":2", "line 2: text follows a closing quote"),
        (b"an old\rMac,1\n", ":2", "line 2: a carriage return outside quotes"),
        (b'"one\ntwo" three,1\n', ":2", "lines 2 to 3: text follows a closing quote"),
    ],
)
def test_a_row_with_wrong_quotes_is_bad_and_the_next_is_read(
    broken: bytes, place: str, told: str
) -> None:
    good, ((where, reason, detail),) = bad(b"instruction,n\n" + broken + b"fine,1\n")
    assert (good, where, reason) == (["fine"], f"p.csv{place}", "wrong_quotes")
    assert detail.startswith(told)
    assert "accepted" in detail


@pytest.mark.parametrize(
    ("broken", "lines"),
    [
        (b'"line one\nline "two" is\nmiddle,x\nline three",1\n', "lines 2 to 5"),
        (b'"He said "hello, my\nfriend" to me",1\n', "lines 2 to 3"),
        (b'"a"x,"multi\nline",1\n', "lines 2 to 3"),
        (b'"one\n"two" is\nmiddle,x\nthree",1\n', None),
        (b'"one\nhe said,"no" and\nmiddle,x\nend",1\n', None),
    ],
)
def test_the_middle_of_a_broken_cell_is_no_prompt(broken: bytes, lines: str | None) -> None:
    good, told = bad(b"instruction,n\nfirst,1\n" + broken + b"fine,1\n")
    assert good == ["first", "fine"]
    assert all(reason == "wrong_quotes" for _, reason, _ in told)
    if lines is not None:
        ((_, _, detail),) = told
        first, last = (int(word) + 1 for word in lines.split()[1::2])
        assert detail.startswith(f"lines {first} to {last}")


@pytest.mark.parametrize(
    ("broken", "good"),
    [
        (b'"a"b,1\nplain,1\n"quoted",1\n', ["plain", "quoted", "fine"]),
        (b'"a"b,1\nplain,1\nnoted,"quoted"\n', ["plain", "noted", "fine"]),
        (b'"open,1\n"quoted",1\nplain,1\n', ["quoted", "plain", "fine"]),
        (b'"a"b,1\n' * 3 + b'c,"d"e\nplain,1\n', ["plain", "fine"]),
    ],
)
def test_good_rows_after_a_broken_one_are_read(broken: bytes, good: list[str]) -> None:
    content = b"instruction,n\n" + broken + b"fine,1\n"
    assert bad(content)[0] == good
    rows = rows_of(content)
    for number, row in enumerate(rows, 1):
        assert rows_of(content, row.position) == rows[number:]


def test_a_quote_that_is_never_closed_says_where_it_opened() -> None:
    content = b'instruction,n\nfine,1\n"never closed,1\nswallowed,2\nswallowed too,3\n'
    good, ((where, reason, detail),) = bad(content)
    assert (good, where, reason) == (["fine"], "p.csv:3", "wrong_quotes")
    assert detail.startswith("a quote that opens at line 3 is never closed")
    late = b'instruction,n\n"fine",1\n"first","second opens\nhere\n'
    assert "opens at line 3" in bad(late)[1][0][2]


def test_rows_after_a_quote_are_read_once_someone_closed_it() -> None:
    rows = rows_of(b'instruction,n\nfine,1\n"open,1\nlast,2\n')
    mended = b'instruction,n\nfine,1\n"open",1\nlast,2\n'
    again = rows_of(mended, rows[-1].position)
    assert [row.prompt.instruction for row in again if isinstance(row, Row)] == ["open", "last"]


def test_reading_goes_on_after_a_bad_row_as_if_it_were_a_row() -> None:
    content = b'instruction,n\na,1\n"b"x,2\n"c\nd"y,3\ne,4\n'
    rows = rows_of(content)
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, Row]
    for number, row in enumerate(rows, 1):
        assert rows_of(content, row.position) == rows[number:]


def test_a_row_too_large_within_quotes_is_passed_over_to_its_end() -> None:
    large = b'"' + (b"x" * 999 + b"\n") * 4_200 + b'",1\n'
    good, ((where, reason, _),) = bad(b"instruction,n\n" + large + b"fine,1\n")
    assert (good, where, reason) == (["fine"], "p.csv:2", "too_large")


@pytest.mark.parametrize(
    ("content", "good", "reasons"),
    [
        (b'instruction,n\n"",1\n', [], ["empty"]),
        (b"instruction,n\na\n", [], ["wrong_type"]),
        (b"instruction,n\na,1,\n", [], ["wrong_type"]),
        (b"instruction,n\na,\n", ["a"], []),
        (b"instruction,n\n\n\r\na,1\n", ["a"], []),
        (b'instruction,"n ""m"""\na,1', ["a"], []),
        (b"instruction,n\na\0,1\nb,1\0\n", ["b"], ["not_text"]),
        (b"instruction,n\ncaf\xe9,1\nb,caf\xe9\n", ["b"], ["not_text"]),
    ],
)
def test_odd_cells_are_kept_or_told(content: bytes, good: list[str], reasons: list[str]) -> None:
    found, told = bad(content)
    assert (found, [reason for _, reason, _ in told]) == (good, reasons)


def test_a_header_with_wrong_quotes_is_no_header() -> None:
    with pytest.raises(SourceError, match="column names: line 1: text follows a closing quote"):
        rows_of(b'"instruction"x,n\na,1\n')
