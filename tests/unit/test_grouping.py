"""Columns of several generators joined row by row, and generations joined by prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.grouping import by_prompt, group_columns, usable, why_unusable
from workers.records import Generation

SLOTS = ("a", "b", "c")


def answered(slot: str, text: str = "text") -> Generation:
    return Generation(slot, f"model-{slot}", text=text)


def test_columns_become_lists_in_the_order_of_the_inputs() -> None:
    first = [{"instruction": "i", "generation": "x", "model_name": "A"}]
    second = [{"instruction": "i", "generation": "y", "model_name": "B"}]
    assert group_columns(
        first,
        second,
        columns=["generation", "model_name"],
        output_columns=["generations", "generation_models"],
    ) == [{"instruction": "i", "generations": ["x", "y"], "generation_models": ["A", "B"]}]


def test_a_columns_own_name_may_be_the_output() -> None:
    rows = group_columns([{"t": 1}], [{"t": 2}], columns=["t"], output_columns=["t"])
    assert rows == [{"t": [1, 2]}]


def test_of_other_columns_the_first_inputs_value_wins() -> None:
    rows = group_columns(
        [{"t": 1, "same": "first"}],
        [{"t": 2, "same": "second", "only": "second"}],
        columns=["t"],
        output_columns=["ts"],
    )
    assert rows == [{"ts": [1, 2], "same": "first", "only": "second"}]


def test_every_row_is_grouped_with_its_own_counterparts() -> None:
    inputs = [[{"t": f"{slot}{row}"} for row in range(4)] for slot in SLOTS]
    grouped = group_columns(*inputs, columns=["t"], output_columns=["ts"])
    assert grouped == [{"ts": [f"a{row}", f"b{row}", f"c{row}"]} for row in range(4)]


def test_missing_values_keep_their_place() -> None:
    rows = group_columns([{"t": None}], [{"t": "y"}], columns=["t"], output_columns=["ts"])
    assert rows == [{"ts": [None, "y"]}]


def test_inputs_are_left_as_they_were() -> None:
    first, second = [{"t": 1, "x": 1}], [{"t": 2, "y": 2}]
    group_columns(first, second, columns=["t"], output_columns=["ts"])
    assert (first, second) == ([{"t": 1, "x": 1}], [{"t": 2, "y": 2}])


def test_no_input_and_no_row_make_no_row() -> None:
    assert group_columns(columns=["t"], output_columns=["ts"]) == []
    assert group_columns([], [], columns=["t"], output_columns=["ts"]) == []


def test_inputs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different lengths: \[2, 1\]"):
        group_columns([{"t": 1}, {"t": 2}], [{"t": 3}], columns=["t"], output_columns=["ts"])


def test_a_row_without_the_column_is_refused() -> None:
    with pytest.raises(ValueError, match="input 1 has no column 't'"):
        group_columns([{"t": 1}], [{"u": 2}], columns=["t"], output_columns=["ts"])


def test_as_many_output_columns_as_columns_are_wanted() -> None:
    with pytest.raises(ValueError, match="2 columns, but 1 output columns"):
        group_columns([{"t": 1, "u": 1}], columns=["t", "u"], output_columns=["ts"])


@given(st.data())
def test_neither_order_nor_repetition_of_deliveries_matters(data: st.DataObject) -> None:
    whole = [(key, answered(slot, f"{key}{slot}")) for key in "xyz" for slot in SLOTS]
    again = data.draw(st.lists(st.sampled_from(whole)))
    delivered = data.draw(st.permutations(whole + again))
    assert by_prompt(delivered, [(slot, 0) for slot in SLOTS], "xyz") == {
        key: tuple(answered(slot, f"{key}{slot}") for slot in SLOTS) for key in "xyz"
    }


def test_a_prompt_that_lacks_a_slot_is_left_out() -> None:
    delivered = [("x", answered("a")), ("x", answered("b")), ("y", answered("a"))]
    assert by_prompt(delivered, (("a", 0), ("b", 0)), "xy") == {"x": (answered("a"), answered("b"))}


def test_a_prompt_of_another_batch_is_left_out() -> None:
    assert by_prompt([("other", answered("a"))], (("a", 0),), ["mine"]) == {}


def test_of_a_slot_that_came_twice_the_first_counts() -> None:
    delivered = [("x", answered("a", "first")), ("x", answered("a", "second"))]
    assert by_prompt(delivered, (("a", 0),), "x") == {"x": (answered("a", "first"),)}


def test_a_failed_generation_fills_its_slot_but_is_not_usable() -> None:
    failed = Generation("b", "model-b", reason="timeout", detail="no whole reply in 3 s")
    grouped = by_prompt([("x", failed), ("x", answered("a"))], (("a", 0), ("b", 0)), "x")
    assert grouped == {"x": (answered("a"), failed)}
    assert usable(grouped["x"]) == [answered("a")]
    assert why_unusable(grouped["x"]) == "b: timeout no whole reply in 3 s"


def test_a_text_with_a_reason_is_not_usable() -> None:
    assert usable([Generation("a", "m", text="cut", reason="truncated")]) == []


def test_every_failure_is_told() -> None:
    failed = [Generation("a", "m", reason="timeout"), Generation("b", "m", reason="not_found")]
    assert why_unusable(failed) == "a: timeout; b: not_found"


def test_samples_of_one_generator_fill_slots_of_their_own() -> None:
    first, second = (Generation("a", "m", text=f"text {n}", sample=n) for n in range(2))
    grouped = by_prompt([("x", second), ("x", first), ("x", second)], (("a", 0), ("a", 1)), "x")
    assert grouped == {"x": (first, second)}
