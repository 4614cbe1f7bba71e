"""Rows out of the ledger into files: a dataset folder, Parquet or JSON lines.

Read page by page, so memory does not grow with the run. A folder or file appears whole or not at
all: it is written beside its place and renamed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from producer import owner
from workers.errors import PrefmillError, SettingsError
from workers.ledger import Ledger
from workers.rows import CONFIGURATIONS, DEFAULT, FULL, HUMAN
from workers.shapes import Shape, shape, source_schema

Format = Literal["parquet", "jsonl"]

#: What a file's name ends in, and the form that it has then.
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}

_LINE_ENDS = "\u0085\u2028\u2029"

#: Rows that are held and written at a time.
PAGE = 500


def form_of(out: Path | None, form: Format | None) -> Format:
    """The form of a file: as asked for, else by what its name ends in, else Parquet.

    Raises: SettingsError if the two contradict each other, or no form has such a name.
    """
    suffix = out.suffix.lower() if out else ""
    if suffix and suffix not in SUFFIXES:
        accepted = ", ".join(SUFFIXES)
        raise SettingsError(f"--out {out}: {suffix!r} cannot be written; accepted: {accepted}")
    if suffix and form and SUFFIXES[suffix] != form:
        raise SettingsError(
            f"--format {form} contradicts --out {out}; accepted: --format {SUFFIXES[suffix]}, "
            f"or a name that ends in .{form}"
        )
    return form or SUFFIXES.get(suffix, "parquet")


def export(ledger: Ledger, run: str, configuration: str, form: Format, out: Path) -> int:
    """Write one configuration to one file; returns the number of rows.

    Raises: SettingsError if `out` cannot be written, LedgerError.
    """
    made = shape(configuration, source_schema(ledger.stored_schema(run)))
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.exists() and not out.is_file():
            raise SettingsError(f"--out {out}: is no file; accepted: a file path")
        out.parent.mkdir(parents=True, exist_ok=True)
        write = _write_parquet if form == "parquet" else _write_jsonl
        rows = write(partial, made, ledger, run)
        partial.replace(out)
    except OSError as exc:
        raise SettingsError(f"--out {out}: {exc.strerror or exc}; accepted: a file path") from exc
    finally:
        partial.unlink(missing_ok=True)
    return rows


def no_rows(ledger: Ledger, run: str, configuration: str) -> str:
    """Why a configuration has none. Raises: LedgerError."""
    if configuration == HUMAN:
        return "no pairs follow from people's ratings (`prefmill pull` reads them from Argilla)"
    counts = ledger.counts(run)
    return f"none of {counts.accepted} prompts is paired, {counts.in_flight} are in flight"


def export_dataset(ledger: Ledger, run: str, folder: Path) -> int:
    """Write the folder that `datasets.load_dataset(folder)` loads; returns the rows of `default`.

    A configuration without a row is left out: `full` alone may hold kept ties, and without any
    the folder holds its README alone. Raises: SettingsError if the folder is another run's;
    LedgerError, PrefmillError.
    """
    place = folder.resolve()  # where a link leads to
    partial = place.with_name(f".{place.name}.partial")
    owner.restore(folder)
    try:
        rows = _write_dataset(partial, ledger, run)
        begun = ledger.identity(run)
        # Minutes may have passed since the run began.
        owner.check(folder, run, begun)
        _replace(place, partial)
        owner.claim(folder, run, begun)
    except OSError as exc:
        raise PrefmillError(
            f"{folder} cannot be written: {exc.strerror or exc}; the pairs are in the ledger"
        ) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def _write_dataset(partial: Path, ledger: Ledger, run: str) -> int:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows: dict[str, int] = {}
    source = source_schema(ledger.stored_schema(run))
    shapes = [shape(configuration, source) for configuration in CONFIGURATIONS]
    for made in shapes:
        shard = _shard(partial, made.configuration)
        shard.parent.mkdir(parents=True)
        rows[made.configuration] = _write_parquet(shard, made, ledger, run)
        if not rows[made.configuration]:
            shutil.rmtree(shard.parent)
    if not any(rows.values()):
        shutil.rmtree(partial / "data")
    (partial / "README.md").write_text(_card(run, shapes, partial, rows), encoding="utf-8")
    return rows[DEFAULT]


def _replace(folder: Path, partial: Path) -> None:
    """Put a folder in another's place; `owner.restore` undoes half of it."""
    old = owner.older(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _shard(folder: Path, configuration: str) -> Path:
    return folder / "data" / configuration / "train-000000.parquet"


def _pages(ledger: Ledger, run: str, made: Shape) -> Iterator[list[dict[str, Any]]]:
    human = made.configuration == HUMAN
    rows = made.rows(ledger.human_pairs(run) if human else ledger.pairs(run, page=PAGE))
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
            file.writelines(_line(row) for row in page)
            rows += len(page)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    """A line of JSON, with escapes for what some readers take for the end of a line as well."""
    text = json.dumps(row, ensure_ascii=False)
    for end in _LINE_ENDS:
        text = text.replace(end, f"\\u{ord(end):04x}")
    return text + "\n"


def _card(run: str, shapes: list[Shape], folder: Path, rows: Mapping[str, int]) -> str:
    """The README: what loads, and for people what is in it."""
    lines = [f"# {run}", "", f"{rows[DEFAULT]} preference pairs, made by prefmill.", ""]
    if ties := rows[FULL] - rows[DEFAULT]:
        lines += [f"`full` has {ties} ties as well, labelled in `metadata`.", ""]
    for made in shapes:
        lines += [f"## {made.configuration}", "", "| column | type |", "|---|---|"]
        lines += [f"| `{field.name}` | `{field.type}` |" for field in made.schema]
        lines.append("")
    return f"---\n{_yaml(run, shapes, folder, rows)}---\n\n" + "\n".join(lines)


def _yaml(run: str, shapes: list[Shape], folder: Path, rows: Mapping[str, int]) -> str:
    configs, infos = [], []
    for made in shapes:
        name = made.configuration
        if not rows[name]:
            continue
        shard = _shard(folder, name)
        configs.append(
            {
                "config_name": name,
                "data_files": [{"split": "train", "path": f"data/{name}/train-*.parquet"}],
                **({"default": True} if name == DEFAULT else {}),
            }
        )
        # `load_dataset` caches by this header, not by the files: it has to change with them.
        with shard.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        infos.append({"config_name": name, "description": f"{rows[name]} rows, SHA-256 {digest}"})
    card: dict[str, Any] = {"tags": ["prefmill"]}
    if configs:
        card = {"tags": ["dpo", "prefmill"], "configs": configs, "dataset_info": infos}
    return yaml.safe_dump({**card, "prefmill": {"run": run}}, sort_keys=False)
