"""Whose a dataset folder is: one run's, by its name and by when it began in its ledger.

    DIR/dataset         its README names the run; equal runs write equal bytes, so no time is in it
    DIR/dataset.owner   run, time and whether the dataset was written; not for others to read

A run claims the folder before it does anything else, so a run that was interrupted still has it. A
dataset that was written and is there no more leaves its place free. Knows no rows.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from workers.errors import SettingsError
from workers.settings import sqlite_path

#: In the folder of a run.
LEDGER, DATASET = "ledger.db", "dataset"

_HEADER = re.compile(r"---\n(.*?)^---\s*$(.*)", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Owner:
    """A run, and `Ledger.identity` of it."""

    run: str
    begun: str
    written: bool


def check(folder: Path, run: str, begun: str | None = None) -> None:
    """Refuse a dataset folder that is not this run's; nothing is written.

    `begun` is the run's identity in its ledger, "" if it has none there, None if that is not known
    yet: then names alone are compared. Raises: SettingsError.
    """
    with _usable(folder):
        inside, owner = _named(folder, run), _owner(folder, run)
    if inside is None and (owner is None or owner.written):
        return
    for name in (inside, owner.run if owner else None):
        if name not in (None, run):
            raise _refused(folder, run, f"which belongs to run {name!r}")
    same = bool(begun) if owner is None else owner.begun == begun
    if begun is not None and not same:
        raise _refused(folder, run, f"which belongs to a run {run!r} of another ledger")


def claim(folder: Path, run: str, begun: str) -> None:
    """Note that a free folder, or its own, is this run's. Raises: SettingsError."""
    with _usable(folder):
        path = _file(folder)
        partial = path.with_name(f".{path.name}.partial")
        owner = Owner(run, begun, written=_named(folder, run) is not None)
        partial.write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
        partial.replace(path)


def restore(folder: Path) -> None:
    """Undo what a process left that was killed while it replaced the folder.

    Only for who holds the lock. Raises: SettingsError.
    """
    with _usable(folder):
        if older(folder).exists() and not folder.exists():
            older(folder).rename(folder.resolve())


def older(folder: Path) -> Path:
    """Where a dataset lies while another one takes its place; beside it, where a link leads to."""
    place = folder.resolve()
    return place.with_name(f".{place.name}.old")


def beside(database_url: str, run: str, begun: str) -> Path | None:
    """The run's dataset in the folder of its ledger, as `run` lays them out; None without one."""
    ledger = sqlite_path(database_url)
    if ledger is None or ledger.name != LEDGER:
        return None
    folder = ledger.with_name(DATASET)
    try:
        check(folder, run, begun)
        return folder if older(folder).exists() or _named(folder, run) else None
    except (SettingsError, OSError):
        return None


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.owner")


def _owner(folder: Path, run: str) -> Owner | None:
    path = _file(folder)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(data["run"]), str(data["begun"]), bool(data["written"]))
    except (ValueError, TypeError, KeyError) as exc:
        raise _refused(folder, run, f"whose owner in {path} cannot be read") from exc


def _named(folder: Path, run: str) -> str | None:
    """The run that the folder's README names; None if nothing is in the folder.

    Raises: SettingsError if something else is there, OSError.
    """
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        raise _refused(folder, run, "which is no folder")
    if not any(folder.iterdir()):
        return None
    name = _from_card(folder / "README.md")
    if name is None:
        raise _refused(folder, run, "which prefmill did not write")
    return name


def _from_card(card: Path) -> str | None:
    try:
        found = _HEADER.match(card.read_text(encoding="utf-8"))
        header: Any = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if found is None or not isinstance(header, dict):
        return None
    ours, tags = header.get("prefmill"), header.get("tags")
    if isinstance(ours, dict) and isinstance(ours.get("run"), str):
        return str(ours["run"])
    # Earlier versions named the run in the heading alone.
    heading = _HEADING.search(found[2])
    return heading[1] if heading and isinstance(tags, list) and "prefmill" in tags else None


def _refused(folder: Path, run: str, why: str) -> SettingsError:
    return SettingsError(
        f"--out {folder.parent}: run {run!r} cannot write {folder}, {why}; accepted: --out with "
        f"another folder, or this one once {folder.name} and {_file(folder).name} are moved away"
    )


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SettingsError(
            f"--out {folder.parent}: {exc.filename or folder}: {exc.strerror or exc}; "
            "accepted: a folder that can be read and written"
        ) from exc
