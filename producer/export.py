"""Rows out of the ledger into files: a dataset folder, Parquet or JSON lines.

Read page by page, so memory does not grow with the run. A folder or file appears whole or not at
all: it is written beside its place and renamed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from producer.columns import SourceColumns
from workers.errors import SettingsError
from workers.ledger import Judged, Ledger
from workers.rows import COLUMNS, CONFIGURATIONS, DEFAULT, default_row, full_row, ride_along_names

Format = Literal["parquet", "jsonl"]

#: Rows that are held and written at a time.
PAGE = 500

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TYPES = {
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float64()),
    "messages": _MESSAGES,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of one configuration: the source's under their new names, then ours."""

    configuration: str
    names: dict[str, str]
    schema: pa.Schema

    def row(self, judged: Judged) -> dict[str, Any]:
        """One row, every column filled or null."""
        columns = judged.prompt.columns
        theirs = {ours: columns.get(name) for name, ours in self.names.items()}
        if self.configuration == DEFAULT:
            return theirs | default_row(judged.prompt, judged.pair)
        return theirs | full_row(judged.prompt, judged.pair, judged.generations, judged.judgements)


def shape(configuration: str, columns: SourceColumns) -> Shape:
    """The shape of a configuration for a run with these source columns."""
    names = ride_along_names(columns.schema.names)
    fields = [pa.field(names[field.name], _without_null(field.type)) for field in columns.schema]
    fields += [pa.field(name, _TYPES[kind]) for name, kind in COLUMNS[configuration]]
    return Shape(configuration, names, pa.schema(fields))


def _without_null(kind: pa.DataType) -> pa.DataType:
    """A null-typed column makes a dataset that loads alone and fails beside its next shard."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_null(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_null(field.type)) for field in kind])
    return kind


def export(
    ledger: Ledger, run: str, columns: SourceColumns, configuration: str, form: Format, out: Path
) -> int:
    """Write one configuration to one file; returns the number of rows.

    Raises: SettingsError if `out` cannot be written, LedgerError.
    """
    made = shape(configuration, columns)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write = _write_parquet if form == "parquet" else _write_jsonl
        rows = write(partial, made, ledger, run)
        partial.replace(out)
    except OSError as exc:
        raise SettingsError(f"--out {out}: {exc.strerror or exc}; accepted: a file path") from exc
    finally:
        partial.unlink(missing_ok=True)
    return rows


def export_dataset(ledger: Ledger, run: str, columns: SourceColumns, folder: Path) -> int:
    """Write the folder that `datasets.load_dataset(folder)` loads; returns the rows of `default`.

    Without a single pair the folder holds its README alone. Raises: LedgerError, OSError.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shapes = [shape(configuration, columns) for configuration in CONFIGURATIONS]
    rows = 0
    for made in shapes:
        shard = _shard(partial, made.configuration)
        shard.parent.mkdir(parents=True)
        rows = _write_parquet(shard, made, ledger, run)
        if rows == 0:
            shutil.rmtree(partial / "data")
            break
    (partial / "README.md").write_text(_card(run, shapes, partial, rows), encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return rows


def _shard(folder: Path, configuration: str) -> Path:
    return folder / "data" / configuration / "train-000000.parquet"


def _pages(ledger: Ledger, run: str, made: Shape) -> Iterator[list[dict[str, Any]]]:
    rows = (made.row(judged) for judged in ledger.pairs(run, page=PAGE))
    while page := list(islice(rows, PAGE)):
        yield page


def _write_parquet(path: Path, made: Shape, ledger: Ledger, run: str) -> int:
    rows = 0
    with pq.ParquetWriter(path, made.schema) as writer:
        for page in _pages(ledger, run, made):
            writer.write_table(pa.Table.from_pylist(page, schema=made.schema))
            rows += len(page)
    return rows


def _write_jsonl(path: Path, made: Shape, ledger: Ledger, run: str) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        for page in _pages(ledger, run, made):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in page)
            rows += len(page)
    return rows


def _card(run: str, shapes: list[Shape], folder: Path, rows: int) -> str:
    """The README: what loads, and for people what is in it."""
    lines = [f"# {run}", "", f"{rows} preference pairs, made by prefmill.", ""]
    for made in shapes:
        lines += [f"## {made.configuration}", "", "| column | type |", "|---|---|"]
        lines += [f"| `{field.name}` | `{field.type}` |" for field in made.schema]
        lines.append("")
    return f"---\n{_yaml(shapes, folder, rows)}---\n\n" + "\n".join(lines)


def _yaml(shapes: list[Shape], folder: Path, rows: int) -> str:
    if rows == 0:
        return yaml.safe_dump({"tags": ["prefmill"]})
    configs, infos = [], []
    for made in shapes:
        shard = _shard(folder, made.configuration)
        name = made.configuration
        configs.append(
            {
                "config_name": name,
                "data_files": [{"split": "train", "path": f"data/{name}/train-*.parquet"}],
                **({"default": True} if name == DEFAULT else {}),
            }
        )
        # `load_dataset` caches by this header, not by the files: it has to change with them.
        digest = hashlib.sha256(shard.read_bytes()).hexdigest()
        infos.append({"config_name": name, "description": f"{rows} pairs, SHA-256 {digest}"})
    card = {"tags": ["dpo", "prefmill"], "configs": configs, "dataset_info": infos}
    return yaml.safe_dump(card, sort_keys=False)
