"""The first batch fixes the columns and their types; later rows fit or are refused."""

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from producer.columns import DEEPEST, SourceColumns, plain


def fixed(*rows: dict[str, Any]) -> SourceColumns:
    columns = SourceColumns()
    for row in rows:
        assert columns.admit(row, first=True) is None
    return columns


def refused(columns: SourceColumns, row: dict[str, Any], *, first: bool = False) -> str:
    before = columns.schema
    misfit = columns.admit(row, first=first)
    assert misfit is not None
    assert columns.schema == before
    assert "\n" not in misfit.detail
    return f"{misfit.reason}: {misfit.detail}"


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
    assert columns.admit({"meta": {"b": "y"}}, first=False) is None
    assert "wrong_column_type" in refused(columns, {"meta": {"c": 1}})


@pytest.mark.parametrize("second", ["x", True, [1], {"b": 1}])
def test_kinds_that_do_not_mix_are_refused_within_the_first_batch_too(second: object) -> None:
    message = refused(fixed({"a": 1}), {"a": second}, first=True)
    assert "wrong_column_type: column 'a' holds" in message
    assert "accepted: int64" in message


def test_a_later_column_is_refused_by_name() -> None:
    message = refused(fixed({"a": 1, "b": 2}), {"a": 1, "extra": 1})
    assert message == "new_column: column 'extra' is new; accepted: 'a', 'b'"


def test_a_later_type_is_refused_with_what_was_found_and_what_is_accepted() -> None:
    message = refused(fixed({"a": "x"}), {"a": 1})
    assert message == "wrong_column_type: column 'a' holds int64; accepted: string"
    assert "double; accepted: int64" in refused(fixed({"a": 1}), {"a": 0.5})


def test_later_rows_may_lack_columns_or_hold_null() -> None:
    columns = fixed({"a": 1, "b": "x"})
    assert columns.admit({}, first=False) is None
    assert columns.admit({"a": None}, first=False) is None


def test_whole_numbers_fit_a_double_column_later() -> None:
    columns = fixed({"score": 0.5})
    assert columns.admit({"score": 3}, first=False) is None
    assert columns.schema.field("score").type == pa.float64()


def test_whole_numbers_that_a_double_cannot_hold_are_refused() -> None:
    columns = fixed({"score": 0.5})
    assert columns.admit({"score": 2**53}, first=False) is None
    refused(columns, {"score": 2**53 + 1})
    refused(fixed({"id": 2**53 + 1}), {"id": 0.5}, first=True)
    refused(fixed({"ids": [2**53 + 1]}, {"ids": [1]}), {"ids": [0.5]}, first=True)


def test_whole_numbers_beyond_64_bits_are_refused() -> None:
    columns = fixed({"id": 2**63 - 1}, {"id": -(2**63)})
    assert columns.admit({"id": 2**60}, first=False) is None
    refused(columns, {"id": 2**63})
    refused(columns, {"id": 10**4000})
    refused(SourceColumns(), {"id": 2**63}, first=True)
    refused(SourceColumns(), {"id": [2**63]}, first=True)


def test_what_was_null_gets_its_type_later_and_keeps_it() -> None:
    columns = fixed({"a": None, "b": [], "c": {"d": None}})
    assert columns.admit({"a": "x", "b": [1], "c": {"d": 1}}, first=False) is None
    assert columns.schema.field("b").type == pa.list_(pa.int64())
    refused(columns, {"a": 1})
    refused(columns, {"b": ["x"]})


def test_mixed_lists_are_refused_and_never_raise() -> None:
    assert "'m'" in refused(SourceColumns(), {"m": [1, "a"]}, first=True)
    refused(SourceColumns(), {"m": [{"a": 1}, {"a": "x"}]}, first=True)
    refused(SourceColumns(), {"m": object()}, first=True)
    refused(SourceColumns(), {"m": ["\ud800"]}, first=True)
    refused(SourceColumns(), {"m": {1: 2}}, first=True)


def test_true_is_no_number() -> None:
    columns = fixed({"flag": True, "count": 1})
    refused(columns, {"flag": 1})
    refused(columns, {"count": False})


def test_a_refused_row_leaves_no_columns_behind() -> None:
    columns = fixed({"a": 1})
    refused(columns, {"b": "new", "a": "wrong"}, first=True)
    assert columns.schema.names == ["a"]


def test_columns_survive_being_written_down() -> None:
    columns = fixed({"a": 1, "n": None, "m": {"x": [0.5]}, "é\n": "x"})
    again = SourceColumns.from_text(columns.to_text())
    assert again.schema == columns.schema
    assert again.to_text() == columns.to_text()
    assert columns.to_text().isascii()
    refused(again, {"new": 1})
    assert SourceColumns.from_text(None).schema == pa.schema([])


def test_everything_admitted_can_be_written_with_the_schema() -> None:
    columns = SourceColumns()
    rows: list[dict[str, Any]] = [
        {"a": 1, "b": []},
        {"a": 0.5, "b": [{"c": 1}]},
        {"a": 2**60, "b": None},
        {"d": "x", "b": [{"e": None}]},
    ]
    taken = [row for row in rows if columns.admit(row, first=True) is None]
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
