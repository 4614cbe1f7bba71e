"""Reading prompts out of files and pipes: lazily, to the line, and on after a restart."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.prompts import BadRow, Item, Position, Row
from producer.sources import identity, read, row_count
from workers.errors import SourceError
from workers.recipe import Columns, Source

IDLE_S = 0.005


def from_file(path: Path, *, column: str = "instruction") -> Source:
    return Source(file=path, columns=Columns(instruction=column))


def items(
    path: Path, position: Position | None = None, *, column: str = "instruction"
) -> list[Any]:
    return list(read(from_file(path, column=column), position=position))


def instructions(found: list[Any]) -> list[str]:
    assert all(isinstance(item, Row) for item in found), found
    return [item.prompt.instruction for item in found]


def reasons(found: list[Any]) -> list[str]:
    return [item.reason if isinstance(item, BadRow) else "row" for item in found]


def line(text: str, **columns: object) -> str:
    return json.dumps({"instruction": text, **columns}) + "\n"


def jsonl(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(one.encode() if isinstance(one, str) else one for one in lines))
    return path


def following(path: Path, position: Position | None = None) -> Iterator[Item]:
    return read(from_file(path), position=position, follow=True, idle_s=IDLE_S)


def next_row(rows: Iterator[Item], deadline_s: float = 10) -> Row:
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        item = next(rows)
        if item is not None:
            assert isinstance(item, Row), item
            return item
    raise AssertionError("no row came")


def stays_quiet(rows: Iterator[Item]) -> bool:
    return all(next(rows) is None for _ in range(3))


def test_lines_become_prompts_with_the_other_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line(" a ", topic="x", n=1), "\n", "  \r\n", line("b"))
    first, second = items(path)
    assert first.prompt.instruction == " a "
    assert first.prompt.columns == {"topic": "x", "n": 1}
    assert (first.where, second.where) == ("p.jsonl:1", "p.jsonl:4")


def test_the_instruction_may_have_another_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps({"q": "a", "instruction": "kept"}))
    (row,) = items(path, column="q")
    assert (row.prompt.instruction, row.prompt.columns) == ("a", {"instruction": "kept"})


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    path = jsonl(tmp_path, b"\xef\xbb\xbf", b'{"instruction": "a"}\r\n{"instruction": "b"}\r\n')
    assert instructions(items(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        (b"{oops", "not_json", "one JSON object a line"),
        (b"[" * 100_000, "not_json", "one JSON object a line"),
        (b'{"instruction": "a", "n": ' + b"9" * 5000 + b"}", "not_json", "one JSON object"),
        (b'["a"]', "not_an_object", "list"),
        (b'{"prompt": "a"}', "no_instruction", "'prompt'"),
        (b'{"\\ud800\\n": "a"}', "no_instruction", "'instruction'"),
        (b'{"instruction": null}', "no_instruction", "null"),
        (b'{"instruction": 5}', "wrong_type", "int"),
        (b'{"instruction": " \\n\\t"}', "empty", "'instruction'"),
        (b'{"instruction": "\xff"}', "not_text", "'instruction' holds '\\udcff'"),
        (b'{"instruction": "\\ud800"}', "not_text", "\\ud800"),
        (b'{"instruction": "a\\u0000"}', "not_text", "NUL"),
        (b'{"instruction": "' + b"a" * 1_000_001 + b'"}', "too_large", "1,000,001"),
        (b" " * 10 + b"x" * 4_000_000, "too_large", "4,000,000"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_bad_line_says_what_is_wrong_and_the_next_is_read(
    tmp_path: Path, text: bytes, reason: str, named: str
) -> None:
    bad, good = items(jsonl(tmp_path, text, "\n", line("b")))
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.where) == (reason, "p.jsonl:1")
    assert named in bad.detail
    assert bad.detail.isprintable()
    assert good.prompt.instruction == "b"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b'["\\udfff"]', "'\\udfff', which is no character"),
        (b'"\xff"', "'\\udcff', which is no character"),
        (b'"\\u0000"', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b"[" * 40 + b"]" * 40, "more than 32 levels"),
    ],
    ids=["surrogate", "no UTF-8", "NUL", "NUL in a name", "deep"],
)
def test_a_prompt_is_not_lost_over_a_column_nobody_asked_for(
    tmp_path: Path, value: bytes, why: str
) -> None:
    text = b'{"instruction": "a", "x": ' + value + b', "y": 1}'
    (row,) = items(jsonl(tmp_path, text))
    assert (row.prompt.instruction, row.prompt.columns) == ("a", {"y": 1})
    assert list(row.left_out) == ["x"]
    assert why in row.left_out["x"]


def test_a_column_whose_name_is_no_text_is_left_out(tmp_path: Path) -> None:
    (row,) = items(jsonl(tmp_path, b'{"instruction": "a", "\\ud800": 1, "b\\u0000": 2}'))
    assert row.prompt.columns == {}
    assert list(row.left_out) == ["?", "b"]


def test_a_value_of_parquet_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"caf\xe9"]).cast(pa.string(), safe=False)
    table = pa.table({"instruction": ["a", "b"], "note": broken, "topic": ["x", "y"]})
    pq.write_table(table, tmp_path / "p.parquet")
    first, second = items(tmp_path / "p.parquet")
    assert (first.prompt.columns, first.left_out) == ({"note": "fine", "topic": "x"}, {})
    assert second.prompt.columns == {"topic": "y"}
    assert "no UTF-8" in second.left_out["note"]
    (bad,) = items(tmp_path / "p.parquet", column="note")[1:]
    assert (bad.reason, "'note' holds bytes" in bad.detail) == ("not_text", True)


def test_a_backslash_before_u0000_is_text(tmp_path: Path) -> None:
    (row,) = items(jsonl(tmp_path, line("a", x="\\u0000")))
    assert row.prompt.columns == {"x": "\\u0000"}


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    (row,) = items(jsonl(tmp_path, '{"instruction": "a", "x": NaN, "y": [Infinity, 1e999]}'))
    assert row.prompt.columns == {"x": None, "y": [None, None]}


def test_an_instruction_of_the_largest_size_is_read(tmp_path: Path) -> None:
    assert len(instructions(items(jsonl(tmp_path, line("a" * 1_000_000))))[0]) == 1_000_000


def test_an_endless_line_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with path.open("wb") as file:
        file.truncate(200_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line("b").encode())
    bad, good = items(path)
    assert (bad.reason, good.prompt.instruction) == ("too_large", "b")
    assert instructions(items(path, bad.position)) == ["b"]


def test_reading_goes_on_after_every_position(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), "\n", "bad\n", line("ü" * 100), line("c").rstrip())
    whole = items(path)
    for number, item in enumerate(whole, 1):
        assert items(path, json.loads(json.dumps(item.position))) == whole[number:]


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), line("b"))
    position = items(path)[0].position
    other = tmp_path / "other"
    other.write_text(line("c") + line("d"))
    other.rename(path)
    assert instructions(items(path, position)) == ["c", "d"]


def test_a_file_written_anew_in_place_is_read_from_its_start(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), line("b"))
    position = items(path)[-1].position
    path.write_text(line("new"))
    assert instructions(items(path, position)) == ["new"]
    path.write_text(line("x") + line("y") + line("z"))
    assert instructions(items(path, position)) == ["x", "y", "z"]


def test_a_followed_file_gives_a_line_once_its_newline_came(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), '{"instruction"')
    rows = following(path)
    assert next_row(rows).prompt.instruction == "a"
    assert stays_quiet(rows)
    with path.open("a") as file:
        file.write(': "b"}')
        file.flush()
        assert stays_quiet(rows)
        file.write("\n")
    row = next_row(rows)
    assert (row.prompt.instruction, row.where) == ("b", "p.jsonl:2")


def test_a_missing_file_is_waited_for_when_following(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = following(path)
    assert stays_quiet(rows)
    path.write_text(line("a"))
    assert next_row(rows).prompt.instruction == "a"


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"))
    rows = following(path)
    assert next_row(rows).prompt.instruction == "a"
    path.rename(tmp_path / "p.jsonl.1")
    with (tmp_path / "p.jsonl.1").open("a") as old:
        old.write(line("b") + line("c").rstrip())
    path.write_text(line("d"))
    found = [next_row(rows) for _ in range(3)]
    assert instructions(found) == ["b", "c", "d"]
    assert found[-1].where == "p.jsonl:1"


def test_a_rotated_file_goes_on_while_its_successor_is_missing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"))
    rows = following(path)
    next_row(rows)
    path.rename(tmp_path / "p.jsonl.1")
    assert stays_quiet(rows)
    with (tmp_path / "p.jsonl.1").open("a") as old:
        old.write(line("b"))
    assert next_row(rows).prompt.instruction == "b"


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), line("b"))
    rows = following(path)
    assert instructions([next_row(rows), next_row(rows)]) == ["a", "b"]
    assert stays_quiet(rows)
    os.truncate(path, 0)
    assert stays_quiet(rows)
    with path.open("a") as file:
        file.write(line("c"))
    row = next_row(rows)
    assert (row.prompt.instruction, row.where) == ("c", "p.jsonl:1")


def test_following_goes_on_after_a_position(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a"), line("b"))
    position = next_row(following(path)).position
    assert next_row(following(path, position)).prompt.instruction == "b"


def test_stdin_gives_none_while_its_writer_is_slow_and_ends_with_it() -> None:
    reader, writer = os.pipe()
    try:
        rows = read(Source(stdin=True), idle_s=IDLE_S, fd=reader)
        assert next(rows) is None
        os.write(writer, line("a").encode() + b'{"instruction": ')
        row = next_row(rows)
        assert (row.where, row.position) == ("stdin:1", {})
        assert next(rows) is None
        os.write(writer, b'"b"}')
        os.close(writer)
        assert next_row(rows).prompt.instruction == "b"
        assert next(rows, "ended") == "ended"
    finally:
        os.close(reader)


def test_csv_rows_become_prompts_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'\xef\xbb\xbfinstruction,n\r\n"a, ""quoted""\nline",1\r\n\r\nb,\r\n')
    first, second = items(path)
    assert (first.prompt.instruction, first.prompt.columns) == ('a, "quoted"\nline', {"n": "1"})
    assert (second.prompt.instruction, second.prompt.columns) == ("b", {"n": ""})
    assert second.where == "p.csv:5"
    assert items(path, first.position) == [second]


def test_bad_csv_rows_are_told_apart_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    long = b"x" * 4_000_001
    path.write_bytes(
        b"instruction,n\na\nb,1,2\nc\xff,1\nd\0,1\n ,1\n" + long + b',1\ne,1\nf,"' + long[:-9]
    )
    found = items(path)
    expected = ["wrong_type", "wrong_type", "not_text", "not_text", "empty", "too_large", "row"]
    assert reasons(found)[:7] == expected
    assert items(path, found[5].position)[0] == found[6]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("p.txt", b"", ".jsonl, .ndjson, .parquet, .csv"),
        ("p.jsonl", None, "does not exist"),
        ("p.csv", None, "does not exist"),
        ("p.parquet", None, "does not exist"),
        ("p.csv", b"", "column names"),
        ("p.csv", b"a,b\n1,2\n", "no column 'instruction'; it has: 'a', 'b'"),
        ("p.csv", b"instruction,x,x\n1,2,3\n", "several columns of one name"),
        ("p.parquet", b"PAR1 but no", "cannot be read"),
    ],
)
def test_an_unreadable_source_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        items(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value) or name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        items(tmp_path / "p.jsonl")


def parquet(tmp_path: Path, table: pa.Table, rows_a_group: int = 100) -> Path:
    path = tmp_path / "p.parquet"
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def test_parquet_goes_on_after_any_row_within_and_between_groups(tmp_path: Path) -> None:
    texts = [f"prompt {number}" for number in range(250)]
    path = parquet(tmp_path, pa.table({"instruction": texts, "n": range(250)}))
    whole = items(path)
    assert instructions(whole) == texts
    assert whole[130].where == "p.parquet row 131"
    for start in (0, 1, 63, 64, 99, 100, 101, 199, 249, 250, 900):
        assert items(path, {"row": start}) == whole[start:]


def test_parquet_values_are_plain_and_binary_columns_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table(
        {
            "instruction": ["a", None, "c"],
            "at": pa.array([1, 2, None], pa.timestamp("ns")),
            "image": [{"bytes": b"x"}, None, None],
            "list": [[{"x": 1.5}], [], None],
            "nan": [float("nan"), 1.0, 2.0],
        }
    )
    first, second, third = items(parquet(tmp_path, table))
    assert reasons([first, second, third]) == ["row", "no_instruction", "row"]
    expected = {"at": "1970-01-01T00:00:00.000000001", "list": [{"x": 1.5}], "nan": None}
    assert first.prompt.columns == expected
    assert third.prompt.columns == {"at": None, "list": None, "nan": 2.0}
    assert [record.getMessage() for record in caplog.records] == ["source_columns_left_out"]


def test_parquet_times_are_iso_texts(tmp_path: Path) -> None:
    moment = pa.array([1_704_164_645_000_000], pa.timestamp("us", tz="UTC"))
    (row,) = items(parquet(tmp_path, pa.table({"instruction": ["a"], "at": moment})))
    assert row.prompt.columns == {"at": "2024-01-02T03:04:05+00:00"}


def test_one_bad_text_in_parquet_does_not_take_its_neighbours(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0")
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    found = items(parquet(tmp_path, pa.table({"instruction": texts})))
    assert reasons(found) == ["row", "not_text", "row"]


def test_parquet_without_the_instruction_column_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"prompt": ["a"]}))
    with pytest.raises(SourceError, match="no column 'instruction'; it has: 'prompt'"):
        items(path)


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    assert row_count(from_file(jsonl(tmp_path, line("a"), "\n", line("b").rstrip()))) == 2
    assert row_count(from_file(parquet(tmp_path, pa.table({"instruction": ["a"] * 3})))) == 3
    (tmp_path / "p.csv").write_text('instruction\n"a\nb"\nc\n')
    assert row_count(from_file(tmp_path / "p.csv")) == 2
    assert row_count(from_file(tmp_path / "missing.jsonl")) is None
    assert row_count(from_file(tmp_path / "p.txt")) is None
    assert row_count(Source(stdin=True)) is None


def test_a_source_has_a_stable_name() -> None:
    assert identity(Source(file=Path("/d/p.jsonl"))) == "file:/d/p.jsonl"
    assert identity(Source(stdin=True)) == "stdin"
    assert identity(Source(hub="a/b", config="c", split="test")) == "hub:a/b/c/test"
    assert identity(Source(hub="a/b")) == "hub:a/b//train"


USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": f"{role} says"} for role in ("user", "assistant", "system")
)


def chats(path: Path, **columns: str) -> list[Any]:
    return list(read(Source(file=path, columns=Columns(messages="chat", **columns))))


def test_a_chat_is_a_prompt_whose_last_turn_is_the_instruction(tmp_path: Path) -> None:
    last = {"role": "user", "content": "and then?"}
    turns = [SYSTEM, USER, ASSISTANT, last]
    path = jsonl(tmp_path, json.dumps({"chat": turns, "instruction": "rides", "n": 1}))
    (row,) = chats(path)
    assert row.prompt.instruction == "and then?"
    assert row.prompt.system_prompt == "system says"
    assert list(row.prompt.messages) == turns[1:]
    assert row.prompt.columns == {"instruction": "rides", "n": 1}


def test_a_chat_of_one_turn_is_the_same_prompt_as_its_plain_text(tmp_path: Path) -> None:
    (chat,) = chats(jsonl(tmp_path, json.dumps({"chat": [USER]})))
    (plain,) = items(jsonl(tmp_path, line("user says")))
    assert chat.prompt == plain.prompt
    assert chat.prompt.key("run") == plain.prompt.key("run")


def test_prompts_that_differ_in_what_came_before_have_keys_of_their_own(tmp_path: Path) -> None:
    found = chats(
        jsonl(
            tmp_path,
            json.dumps({"chat": [USER]}) + "\n",
            json.dumps({"chat": [SYSTEM, USER]}) + "\n",
            json.dumps({"chat": [USER, ASSISTANT, USER]}) + "\n",
        )
    )
    assert len({row.prompt.key("run") for row in found}) == 3
    assert {row.prompt.prompt_id for row in found} == {found[0].prompt.prompt_id}


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (None, "no_instruction"),
        ([], "not_a_chat"),
        ("hello", "not_a_chat"),
        ({"role": "user"}, "not_a_chat"),
        (["hello"], "not_a_chat"),
        ([{"role": "tool", "content": "x"}], "not_a_chat"),
        ([{"role": ["user"], "content": "x"}], "not_a_chat"),
        ([USER, ASSISTANT], "not_a_chat"),
        ([SYSTEM], "not_a_chat"),
        ([USER, SYSTEM, USER], "not_a_chat"),
        ([{"role": "user", "content": None}], "wrong_type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "wrong_type"),
        ([{**ASSISTANT, "tool_calls": [1]}, USER], "wrong_type"),
        ([{"role": "user", "content": " \n"}], "empty"),
        ([{"role": "user", "content": "a\0"}], "not_text"),
        ([{"role": "user", "content": "a\0"}, USER], "not_text"),
        ([{"role": "user", "content": "x" * 1_000_001}], "too_large"),
    ],
)
def test_what_is_no_chat_is_a_bad_row(tmp_path: Path, chat: object, reason: str) -> None:
    path = jsonl(tmp_path, json.dumps({"chat": chat}) + "\n", json.dumps({"chat": [USER]}))
    found = chats(path)
    assert reasons(found) == [reason, "row"]


def test_a_turn_may_have_other_fields_that_are_null(tmp_path: Path) -> None:
    path = jsonl(tmp_path, json.dumps({"chat": [{**USER, "tool_calls": None, "name": None}]}))
    assert instructions(chats(path)) == ["user says"]


def test_chats_are_read_from_tables_as_well(tmp_path: Path) -> None:
    turns = [SYSTEM, USER, ASSISTANT, USER]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"chat": [turns], "n": [1]}), path)
    (from_parquet,) = chats(path)
    csv_path = tmp_path / "p.csv"
    text = json.dumps(turns).replace('"', '""')
    csv_path.write_text(f'chat,n\n"{text}",1\n')
    (from_csv,) = chats(csv_path)
    assert from_parquet.prompt.messages == from_csv.prompt.messages == tuple(turns[1:])
    assert from_parquet.prompt.system_prompt == from_csv.prompt.system_prompt == "system says"


def test_a_system_prompt_has_a_column_and_may_be_missing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a", how="Be brief."), line("b", how=None), line("c", how=" "))
    source = Source(file=path, columns=Columns(system_prompt="how"))
    found = list(read(source))
    assert [row.prompt.system_prompt for row in found] == ["Be brief.", None, None]
    assert all(row.prompt.columns == {} for row in found)


def test_a_system_prompt_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, line("a", how=["x"]))
    found = list(read(Source(file=path, columns=Columns(system_prompt="how"))))
    assert reasons(found) == ["wrong_type"]


@pytest.mark.parametrize(("own", "reason"), [("system says", "row"), ("other", "wrong_type")])
def test_two_system_prompts_of_one_row_have_to_agree(tmp_path: Path, own: str, reason: str) -> None:
    path = jsonl(tmp_path, json.dumps({"chat": [SYSTEM, USER], "how": own}))
    assert reasons(chats(path, system_prompt="how")) == [reason]


@pytest.mark.parametrize("ours", ["messages", "system_prompt"])
def test_a_table_without_a_column_that_is_asked_for_is_no_source(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text("instruction,n\na,1\n")
    with pytest.raises(SourceError, match=rf"source\.columns\.{ours}: .* no column 'x'"):
        list(read(Source(file=path, columns=Columns(**{ours: "x"}))))
