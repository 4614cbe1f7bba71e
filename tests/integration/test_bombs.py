"""Small files that unpack to gigabytes: refused or skipped in one line, within a gigabyte.

Each is read by a process of its own, which says what it found and what it took at most.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer, hub_environment

MOST_MB = 1000
READ = """
import json, sys
from pathlib import Path
from producer.prompts import BadRow
from producer.sources import read
from workers.errors import SourceError
from workers.recipe import Source
found, refused = [], None
rows = read(Source(**json.loads(sys.argv[1])))
try:
    for item in rows:
        bad = isinstance(item, BadRow)
        found.append(f"{item.where}: {item.reason}: {item.detail}" if bad else "row")
        if len(found) == 400:
            break
except SourceError as error:
    refused = str(error)
rows.close()
status = Path("/proc/self/status").read_text().splitlines()
(most_kb,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
print(json.dumps({"found": found, "refused": refused, "most_mb": int(most_kb) // 1024}))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bound is the kernel's")


def read(source: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(source)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(told["most_mb"], "MB", told["refused"] or told["found"][:1])
    assert told["most_mb"] < MOST_MB
    return told


def same_text(path: Path, size: int, rows: int) -> Path:
    """`rows` times one text of `size` bytes: unpacked `rows` * `size`, packed a few kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["y" * size])
    table = pa.table({"instruction": column})
    pq.write_table(table, path, compression="zstd", row_group_size=rows, store_schema=False)
    assert path.stat().st_size < 100_000
    return path


def one_page(path: Path) -> Path:
    """A text of 600 MB in a single page."""
    table = pa.table({"instruction": ["z" * 600_000_000]})
    plain = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    pq.write_table(table, path, compression="lz4", **plain)
    return path


def one_list(path: Path) -> Path:
    """A row whose list has 100 million numbers."""
    zeros = pa.nulls(100_000_000, pa.int8()).fill_null(0)
    lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    pq.write_table(pa.table({"instruction": ["a"], "more": lists}), path, compression="zstd")
    return path


def test_a_dictionary_that_a_million_rows_point_to_is_read_a_few_rows_at_a_time(
    tmp_path: Path,
) -> None:
    path = same_text(tmp_path / "p.parquet", 2_000_000, 1_000_000)
    told = read({"file": str(path)})
    assert len(told["found"]) == 400
    expected = "p.parquet row 1: too_large: the row unpacks to 2,000,00"
    assert (
        told["found"][0].startswith(expected) or "'instruction' has 2,000,000" in told["found"][0]
    )


def test_rows_of_which_few_are_too_much_together_refuse_their_file(tmp_path: Path) -> None:
    told = read({"file": str(same_text(tmp_path / "p.parquet", 30_000_000, 10_000))})
    assert "it unpacks to more than fits into" in told["refused"]


@pytest.mark.parametrize("bomb", [one_page, one_list])
def test_one_row_that_is_too_much_refuses_its_file(tmp_path: Path, bomb: Any) -> None:
    told = read({"file": str(bomb(tmp_path / "p.parquet"))})
    if told["refused"] is None:
        assert ["too_large" in row for row in told["found"]] == [True]
    else:
        assert "p.parquet after row 0: it unpacks to more than fits into" in told["refused"]


@pytest.mark.parametrize("how", [{}, {"use_dictionary": False}, {"compression": "none"}])
def test_a_page_of_many_rows_that_are_large_and_allowed_is_read(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    texts = [f"{number:06d} " + "word " * 176_000 for number in range(300)]
    pq.write_table(pa.table({"instruction": texts}), tmp_path / "p.parquet", **how)
    told = read({"file": str(tmp_path / "p.parquet")})
    assert told["found"] == ["row"] * 300


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_of_the_hub_is_bounded_as_well(tmp_path: Path, streaming: bool) -> None:
    path = same_text(tmp_path / "p.parquet", 2_000_000, 1_000_000)
    with HubServer() as hub:
        hub.put("me/bomb", {"data/train-00000-of-00001.parquet": path.read_bytes()})
        told = read(
            {"hub": "me/bomb", "streaming": streaming}, hub_environment(hub, tmp_path / "hf")
        )
    assert len(told["found"]) == 400
    assert all("too_large" in row for row in told["found"])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_of_the_hub_is_read_over_its_files_and_on_from_any_row(
    tmp_path: Path, streaming: bool
) -> None:
    program = """
import sys
from producer.sources import read
from workers.recipe import Source
for start in (0, 1, 2, 4, 5):
    rows = read(Source(hub="me/rows", streaming=sys.argv[1] == "True"), position={"row": start})
    print("".join(f"{row.prompt.instruction}{row.position['row']}" for row in rows))
"""
    with HubServer() as hub:
        for number, texts in enumerate(("ab", "cde")):
            pq.write_table(
                pa.table({"instruction": list(texts), "raw": [b"x"] * len(texts)}),
                tmp_path / "p.parquet",
                row_group_size=1,
            )
            name = f"data/train-{number:05d}-of-00002.parquet"
            hub.put("me/rows", {name: (tmp_path / "p.parquet").read_bytes()})
        done = subprocess.run(
            [sys.executable, "-c", program, str(streaming)],
            env={**os.environ, **hub_environment(hub, tmp_path / "hf")},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.split("\n") == ["a1b2c3d4e5", "b2c3d4e5", "c3d4e5", "e5", "", ""], done


def test_a_row_of_csv_that_never_ends_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with path.open("w") as file:
        file.write('instruction\n"')
        for _ in range(60):
            file.write('\n","' * 200_000)
    told = read({"file": str(path)})
    assert "too_large: the row has more than 4,000,000 bytes" in told["found"][0]
    assert told["most_mb"] < 400
