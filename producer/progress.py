"""How far a run is, stage by stage, while it works: bars on a terminal, lines elsewhere.

Derived from the ledger and the queues at each look; nothing is counted for it.
"""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from workers.ledger import Counts
from workers.recipe import Recipe

#: Between two lines where there is no terminal, in seconds.
LINE_EVERY_S = 5.0


def stages(recipe: Recipe, counts: Counts, depths: Mapping[str, int]) -> dict[str, int]:
    """Prompts that have passed each stage; within a batch of what is true.

    A batch has a message in the queue of the stage it waits for, so what passed a stage is what was
    accepted without what waits there or before.
    """
    size = recipe.fleet.batch_size

    def passed(*queues: str) -> int:
        waiting = size * max((depths.get(queue, 0) for queue in queues), default=0)
        return counts.accepted - min(counts.in_flight, waiting)

    generators = [f"generate.{generator.name}" for generator in recipe.generators]
    generated = min(passed(queue) for queue in generators)
    judged = min(generated, counts.accepted - min(counts.in_flight, size * depths.get("judge", 0)))
    return {
        "accepted": counts.accepted,
        **{queue: passed(queue) for queue in generators},
        "judge": max(counts.finished, judged - (counts.accepted - generated)),
        "done": counts.finished,
    }


class Display:
    """Shows stages on a console, as bars or as lines."""

    def __init__(self, console: Console, total: int | None) -> None:
        """`total` is the number of prompts to expect, if known."""
        self._console, self._total = console, total
        self._started = self._last_line = time.monotonic()
        self._first: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description:>24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>10}"),
            Remaining(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bars.stop()

    def show(self, passed: Mapping[str, int], *, total: int | None = None) -> None:
        """Show how many prompts have passed each stage."""
        self._total = total or self._total
        if not self._first:
            self._first = dict(passed)
        if not self._console.is_terminal:
            self._line(passed)
            return
        for stage, done in passed.items():
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=self._total, rate="")
            rate = f"{self._rate(stage, done):.1f}/s"
            self._bars.update(self._tasks[stage], completed=done, total=self._total, rate=rate)

    def _rate(self, stage: str, done: int) -> float:
        elapsed = time.monotonic() - self._started
        return (done - self._first[stage]) / elapsed if elapsed > 0 else 0.0

    def _line(self, passed: Mapping[str, int]) -> None:
        now = time.monotonic()
        if now - self._last_line < LINE_EVERY_S:
            return
        self._last_line = now
        parts = [f"{stage} {n} ({self._rate(stage, n):.1f}/s)" for stage, n in passed.items()]
        total = f" of {self._total}{self._eta(passed)}" if self._total else ""
        self._console.print(
            f"{now - self._started:5.0f} s  {'  '.join(parts)}{total}",
            highlight=False,
            soft_wrap=True,
        )

    def _eta(self, passed: Mapping[str, int]) -> str:
        rate = self._rate("done", passed["done"])
        if not rate or self._total is None:
            return ""
        return f", about {max(0, self._total - passed['done']) / rate:.0f} s left"
