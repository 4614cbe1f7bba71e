"""The first batch fixes the columns and their types; later values fit or are left out."""

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from producer.columns import DEEPEST, SourceColumns, carried, plain


def fixed(*rows: dict[str, Any], settled: bool = True) -> SourceColumns:
    columns = SourceColumns(settled=lambda: settled)
    for row in rows:
        assert columns.fit(row, first=True) == {}
    return columns


def left_out(columns: SourceColumns, row: dict[str, Any], *, first: bool = False) -> str:
    """Why the only column that does not fit is left out; the others change nothing."""
    before = columns.schema
    misfits = columns.fit(row, first=first)
    assert len(misfits) == 1
    ((name, why),) = misfits.items()
    assert name not in before.names or columns.schema.field(name) == before.field(name)
    assert "\n" not in why
    return f"{name!r} {why}"


def test_the_first_batch_brings_columns_and_types() -> None:
    columns = fixed({"a": 1, "b": "x"}, {"c": True, "d": None}, {"e": [1], "f": {"g": 1.5}})
    assert columns.schema == pa.schema(
        {
            "a": pa.int64(),
            "b": pa.string(),
            "c": pa.bool_(),
            "d": pa.null(),
            "e": pa.list_(pa.int64()),
            "f": pa.struct({"g": pa.float64()}),
        }
    )


def test_whole_numbers_become_double_within_the_first_batch() -> None:
    columns = fixed({"score": 1, "list": [1]}, {"score": 0.5, "list": [0.5]})
    assert columns.schema.field("score").type == pa.float64()
    assert columns.schema.field("list").type == pa.list_(pa.float64())


def test_objects_gain_fields_within_the_first_batch_only() -> None:
    columns = fixed({"meta": {"a": 1}}, {"meta": {"b": "x"}})
    assert columns.schema.field("meta").type == pa.struct({"a": pa.int64(), "b": pa.string()})
    assert columns.fit({"meta": {"b": "y"}}, first=False) == {}
    assert "'meta' holds struct<c: int64>" in left_out(columns, {"meta": {"c": 1}})


@pytest.mark.parametrize("second", ["x", True, [1], {"b": 1}])
def test_kinds_that_do_not_mix_are_left_out_of_the_first_batch_too(second: object) -> None:
    message = left_out(fixed({"a": 1}), {"a": second}, first=True)
    assert message.startswith("'a' holds")
    assert "accepted: int64" in message


def test_a_later_column_is_left_out() -> None:
    message = left_out(fixed({"a": 1, "b": 2}), {"a": 1, "extra": 1})
    assert message == "'extra' is new; accepted: 'a', 'b'"


def test_a_later_type_is_left_out_with_what_was_found_and_what_is_accepted() -> None:
    message = left_out(fixed({"a": "x"}), {"a": 1})
    assert message == "'a' holds int64; accepted: string"
    assert "double; accepted: int64" in left_out(fixed({"a": 1}), {"a": 0.5})


def test_later_rows_may_lack_columns_or_hold_null() -> None:
    columns = fixed({"a": 1, "b": "x"})
    assert columns.fit({}, first=False) == {}
    assert columns.fit({"a": None}, first=False) == {}


def test_whole_numbers_fit_a_double_column_later() -> None:
    columns = fixed({"score": 0.5})
    assert columns.fit({"score": 3}, first=False) == {}
    assert columns.schema.field("score").type == pa.float64()


def test_whole_numbers_that_a_double_cannot_hold_are_left_out() -> None:
    columns = fixed({"score": 0.5})
    assert columns.fit({"score": 2**53}, first=False) == {}
    left_out(columns, {"score": 2**53 + 1})
    left_out(fixed({"id": 2**53 + 1}), {"id": 0.5}, first=True)
    left_out(fixed({"ids": [2**53 + 1]}, {"ids": [1]}), {"ids": [0.5]}, first=True)


def test_whole_numbers_beyond_64_bits_are_left_out() -> None:
    columns = fixed({"id": 2**63 - 1}, {"id": -(2**63)})
    assert columns.fit({"id": 2**60}, first=False) == {}
    left_out(columns, {"id": 2**63})
    left_out(columns, {"id": 10**4000})
    left_out(SourceColumns(), {"id": 2**63}, first=True)
    left_out(SourceColumns(), {"id": [2**63]}, first=True)


def test_what_was_null_gets_its_type_later_and_keeps_it() -> None:
    columns = fixed({"a": None, "b": [], "c": {"d": None}})
    assert columns.fit({"a": "x", "b": [1], "c": {"d": 1}}, first=False) == {}
    assert columns.schema.field("b").type == pa.list_(pa.int64())
    left_out(columns, {"a": 1})
    left_out(columns, {"b": ["x"]})


def test_mixed_lists_are_left_out_and_never_raise() -> None:
    assert "'m'" in left_out(SourceColumns(), {"m": [1, "a"]}, first=True)
    left_out(SourceColumns(), {"m": [{"a": 1}, {"a": "x"}]}, first=True)
    left_out(SourceColumns(), {"m": object()}, first=True)
    left_out(SourceColumns(), {"m": ["\ud800"]}, first=True)
    left_out(SourceColumns(), {"m": {1: 2}}, first=True)


def test_true_is_no_number() -> None:
    columns = fixed({"flag": True, "count": 1})
    left_out(columns, {"flag": 1})
    left_out(columns, {"count": False})


def test_what_fits_stays_beside_what_does_not() -> None:
    columns = fixed({"a": 1})
    assert list(columns.fit({"b": "new", "a": "wrong"}, first=True)) == ["a"]
    assert columns.schema.names == ["a", "b"]
    assert list(columns.fit({"c": 1, "b": "x", "a": 2}, first=False)) == ["c"]


@pytest.mark.parametrize(
    ("first", "later", "kind"),
    [
        (1, 0.5, pa.float64()),
        ([1], [0.5], pa.list_(pa.float64())),
        ({"x": 1}, {"x": 0.5}, pa.struct({"x": pa.float64()})),
    ],
)
def test_whole_numbers_become_double_while_nothing_was_delivered(
    first: object, later: object, kind: pa.DataType
) -> None:
    open_columns = SourceColumns.from_text(fixed({"a": first}).to_text(), lambda: False)
    assert open_columns.fit({"a": later}, first=False) == {}
    assert open_columns.schema.field("a").type == kind
    assert open_columns.fit({"a": first}, first=False) == {}
    assert "accepted" in left_out(fixed({"a": first}, settled=True), {"a": later})


def test_large_whole_numbers_never_become_double() -> None:
    columns = fixed({"id": 1}, settled=False)
    assert columns.fit({"id": 2**60}, first=False) == {}
    again = SourceColumns.from_text(columns.to_text(), lambda: False)
    left_out(again, {"id": 0.5})


def test_columns_of_an_earlier_version_do_not_become_double() -> None:
    earlier = SourceColumns(pa.schema({"a": pa.int64()}), lambda: False)
    left_out(earlier, {"a": 0.5})
    assert SourceColumns.from_text(earlier.to_text(), lambda: False).schema == earlier.schema


def test_other_types_never_change_later() -> None:
    columns = fixed({"a": 1, "b": "x", "m": {"x": 1}}, settled=False)
    for value in ({"a": "x"}, {"a": True}, {"b": 1}, {"m": {"y": 1}}, {"a": [1]}):
        left_out(columns, value)


def test_columns_survive_being_written_down() -> None:
    columns = fixed({"a": 1, "n": None, "m": {"x": [0.5]}, "é\n": "x"})
    again = SourceColumns.from_text(columns.to_text())
    assert again.schema == columns.schema
    assert again.to_text() == columns.to_text()
    assert columns.to_text().isascii()
    left_out(again, {"new": 1})
    assert SourceColumns.from_text(None).schema == pa.schema([])


def test_everything_admitted_can_be_written_with_the_schema() -> None:
    columns = SourceColumns()
    rows: list[dict[str, Any]] = [
        {"a": 1, "b": []},
        {"a": 0.5, "b": [{"c": 1}]},
        {"a": 2**60, "b": None},
        {"d": "x", "b": [{"e": None}]},
    ]
    taken = [row for row in rows if columns.fit(row, first=True) == {}]
    assert len(taken) == 3
    assert pa.Table.from_pylist(taken, schema=columns.schema).num_rows == 3


def test_times_and_decimals_become_texts() -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert plain(moment) == "2024-01-02T03:04:05+00:00"
    assert plain([datetime.date(2024, 1, 2), decimal.Decimal("1.10")]) == ["2024-01-02", "1.10"]


def test_what_json_has_no_number_for_is_null() -> None:
    assert plain([float("nan"), float("inf"), 1.5]) == [None, None, 1.5]


def test_objects_without_fields_are_null() -> None:
    assert plain({"a": {}, "b": [{}]}) == {"a": None, "b": [None]}


def test_values_that_json_cannot_hold_are_named() -> None:
    with pytest.raises(TypeError, match="bytes"):
        plain({"a": [b"x"]})
    deep: Any = 1
    for _ in range(DEEPEST + 1):
        deep = [deep]
    with pytest.raises(TypeError, match="levels"):
        plain(deep)


def test_values_are_carried_until_the_row_is_full() -> None:
    columns = {"a": "x" * 50, "b": "x" * 100, "c": 1}
    kept, left_out = carried(columns, 100)
    assert kept == {"a": "x" * 50, "c": 1}
    assert left_out == {"b": "has 109 bytes; accepted: 41 more in this row"}
