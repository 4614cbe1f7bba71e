"""What a run needs around it: its folder for itself, and signals that end it in good order."""

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from workers.errors import Interrupted, SettingsError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run at a time; the lock goes with the process."""
    with (folder / "lock").open("w") as lock:
        deadline = time.monotonic() + 5
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                # A run that was just killed may take its children along a moment later.
                if time.monotonic() > deadline:
                    raise SettingsError(
                        f"--out {folder}: another run works there; accepted: a folder of its own"
                    ) from exc
            time.sleep(0.1)
        yield


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
