"""What a run needs around it: its folder for itself, and signals that end it in good order."""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from workers.errors import FolderBusy, Interrupted, SettingsError


@contextmanager
def locked(folder: Path, patience_s: float = 5.0) -> Iterator[None]:
    """Hold the folder for one run at a time; the lock goes with the process.

    Makes the folder. Raises: SettingsError if that cannot be; FolderBusy after `patience_s`.
    """
    with _lock_of(folder) as lock:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                # A run that was just killed may take its children along a moment later.
                if time.monotonic() > deadline:
                    raise FolderBusy(
                        f"--out {folder}: another run works there; accepted: a folder of its own"
                    ) from exc
            time.sleep(0.1)
        yield


def _lock_of(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return (folder / "lock").open("w")
    except OSError as exc:
        why = "is no folder" if isinstance(exc, FileExistsError) else exc.strerror or exc
        raise SettingsError(
            f"--out {folder}: {why}; accepted: a folder that can be made and written"
        ) from exc


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf() -> Iterator[None]:
    """Impatience must not leave orphans: the end of a run is bounded and not interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    yield
