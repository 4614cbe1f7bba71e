"""Starts prefmill with a fault in it, such as a point of death; production has no such hook.

    python -P -m tests.faults.entry worker sink

FAULT         module:Class.method or module:function, wrapped where it is looked up
FAULT_WHEN    before | after: kill before its work, or after it and before anyone learns of it
FAULT_NTH     only at the n-th call (1); 0: at each
FAULT_TEXT    only if the arguments' repr holds this text
FAULT_ONCE    a file that is made just before the kill; while it exists there is none
RESULTS_URL   results and joins of chords go there, while messages go to the broker
"""

import asyncio
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wrap(point: str) -> None:
    """Put the kill around the named function."""
    module, _, path = point.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    setattr(holder, name, _killing(getattr(holder, name)))


def _killing(real: Callable[..., Any]) -> Callable[..., Any]:
    when, text = os.environ.get("FAULT_WHEN", "before"), os.environ.get("FAULT_TEXT", "")
    nth, calls = int(os.environ.get("FAULT_NTH", "1")), 0

    def due(arguments: object) -> bool:
        nonlocal calls
        if text and text not in repr(arguments):
            return False
        calls += 1
        return nth in (0, calls)

    if asyncio.iscoroutinefunction(real):

        @functools.wraps(real)
        async def later(*args: Any, **kwargs: Any) -> Any:
            kill = due((args, kwargs))
            if kill and when == "before":
                _die()
            result = await real(*args, **kwargs)
            if kill:
                _die()
            return result

        return later

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        kill = due((args, kwargs))
        if kill and when == "before":
            _die()
        result = real(*args, **kwargs)
        if kill:
            _die()
        return result

    return wrapped


def _die() -> None:
    once = os.environ.get("FAULT_ONCE")
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if "FAULT" in os.environ:
        wrap(os.environ["FAULT"])
    if "RESULTS_URL" in os.environ:
        from workers.app import app

        app.conf.result_backend = f"workers.results:Results+{os.environ['RESULTS_URL']}"
    from producer.cli import main

    sys.exit(main())
