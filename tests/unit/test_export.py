"""The form of an exported file."""

from pathlib import Path

import pytest

from producer.export import Format, form_of


@pytest.mark.parametrize(
    ("name", "asked", "form"),
    [
        (None, None, "parquet"),
        (None, "jsonl", "jsonl"),
        ("pairs", None, "parquet"),
        ("pairs", "jsonl", "jsonl"),
        ("v1.2/pairs", None, "parquet"),
        ("pairs.parquet", "parquet", "parquet"),
        ("pairs.jsonl", None, "jsonl"),
        ("pairs.NDJSON", "jsonl", "jsonl"),
    ],
)
def test_the_name_or_the_option_says_the_form(
    name: str | None, asked: Format | None, form: Format
) -> None:
    assert form_of(Path(name) if name else None, asked) == form
