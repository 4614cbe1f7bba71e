"""Joining what several generators answered, column by column, as distilabel's GroupColumns does.

Pure: rows in, rows out. It refuses to guess: inputs of different lengths, or a row without one of
the columns, are errors, because a shifted list would pair texts with the wrong models.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from workers.records import Generation, Slot


def group_columns(
    *inputs: list[dict[str, Any]], columns: Sequence[str], output_columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Merge the i-th rows of every input into one row whose grouped columns are lists.

    `inputs` are n lists of m rows; the result has m rows in which `output_columns[k]` holds the n
    values of `columns[k]`, in the order of the inputs. Other columns are taken over, the first
    input's value winning.

    Raises: ValueError if lengths differ or a column is missing.
    """
    if len(columns) != len(output_columns):
        raise ValueError(f"{len(columns)} columns, but {len(output_columns)} output columns")
    if len({len(rows) for rows in inputs}) > 1:
        raise ValueError(f"inputs of different lengths: {[len(rows) for rows in inputs]}")
    return [_merged(rows, columns, output_columns) for rows in zip(*inputs, strict=True)]


def _merged(
    rows: tuple[dict[str, Any], ...], columns: Sequence[str], output_columns: Sequence[str]
) -> dict[str, Any]:
    for number, row in enumerate(rows):
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(f"input {number} has no column {missing[0]!r}")
    merged: dict[str, Any] = {}
    for row in reversed(rows):
        merged.update({name: value for name, value in row.items() if name not in columns})
    for column, output in zip(columns, output_columns, strict=True):
        merged[output] = [row[column] for row in rows]
    return merged


def by_prompt(
    generations: Iterable[tuple[str, Generation]], slots: Sequence[Slot], keys: Iterable[str]
) -> dict[str, tuple[Generation, ...]]:
    """Each prompt's generations, exactly one a slot and in the order of `slots`.

    `generations` are (prompt key, generation) in any order; of a slot that was delivered twice the
    first one counts. Prompts that lack a slot are left out: their batch was not joined whole.
    """
    held: dict[str, dict[Slot, Generation]] = {key: {} for key in keys}
    for key, generation in generations:
        if key in held:
            held[key].setdefault(generation.slot, generation)
    return {
        key: tuple(of_prompt[slot] for slot in slots)
        for key, of_prompt in held.items()
        if all(slot in of_prompt for slot in slots)
    }


def usable(generations: Iterable[Generation]) -> list[Generation]:
    """The generations that have a text."""
    return [generation for generation in generations if generation.usable]


def why_unusable(generations: Iterable[Generation]) -> str:
    """One line that says why each generation without a text has none."""
    return "; ".join(
        f"{generation.generator}: {generation.reason} {generation.detail}".strip()
        for generation in generations
        if not generation.usable
    )
