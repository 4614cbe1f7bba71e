"""Processes that live no longer than the one that started them.

A child stays in its parent's process group, so that whoever ends the group ends everything, but it
never sees Ctrl-C: SIGINT is blocked before exec, and exec keeps the mask. Only the parent decides
when a child stops; Celery takes a second Ctrl-C as an order to run its tasks twice.

On Linux the kernel signals a child when its parent dies, even by SIGKILL. Elsewhere nothing does:
after a killed parent, Valkey and the workers stay until someone ends them.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_DATA = resource.getrlimit(resource.RLIMIT_DATA)
_TAIL_BYTES = 64 * 1024

# Loaded here: between fork and exec nothing may be loaded or looked up.
_prctl: Callable[..., int] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Child:
    """A started process, the name it is reported by, and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number if one ended it, None while it runs."""
        return self.process.poll()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, for an error message."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def spawn(
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    death_signal: int = signal.SIGKILL,
) -> Child:
    """Start a process that gets `death_signal` when this one dies; its output is appended to `log`.

    Call it from the main thread: the kernel sends the signal when the *thread* that started the
    child ends. `env` replaces the environment, None inherits it.

    Raises: OSError when the command cannot be started.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 (commands come from this package, without a shell)
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            preexec_fn=_tie_to(os.getpid(), death_signal),
        )
    return Child(name, process, log)


def stop(children: Iterable[Child], *, grace_s: float) -> list[str]:
    """End all children: SIGTERM in the given order, SIGKILL to those left after `grace_s` in all.

    Returns the names of those that had to be killed. All have been waited for.
    """
    children = list(children)
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + grace_s
    killed = [child for child in children if not _ended_by(child, deadline)]
    for child in killed:
        child.process.kill()
    for child in killed:
        child.process.wait()
    return [child.name for child in killed]


def _ended_by(child: Child, deadline: float) -> bool:
    try:
        child.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _tie_to(parent: int, death_signal: int) -> Callable[[], None]:
    """Return what a child does between fork and exec."""

    def tie() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # A reader of a source may bound this process' memory for a moment, see producer.memory.
        resource.setrlimit(resource.RLIMIT_DATA, _DATA)
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            # A parent that died before prctl sends no signal any more.
            if os.getppid() != parent:
                os._exit(1)

    return tie
