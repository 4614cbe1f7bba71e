"""What the ledger says about a run, for machines and for people. All of it is derived."""

import json
from typing import Any

from rich.table import Table

from workers.ledger import Counts


def as_json(run: str, counts: Counts) -> dict[str, Any]:
    """The contract's `status --json`; accepted = in_flight + paired + rejected + failed, always."""
    return {
        "run": run,
        "accepted": counts.accepted,
        "in_flight": counts.in_flight,
        "paired": counts.paired,
        "rejected": dict(counts.rejected),
        "failed": dict(counts.failed),
        "skipped": dict(counts.skipped),
        "rows": counts.rows,
        "calls": {name: dict(numbers) for name, numbers in counts.calls.items()},
        "deliveries": {},
    }


def dumped(run: str, counts: Counts) -> str:
    """`as_json` as text."""
    return json.dumps(as_json(run, counts), indent=2)


def table(run: str, counts: Counts) -> Table:
    """The same for people."""
    grid = Table(title=f"run {run}", title_justify="left", box=None, show_header=False)
    grid.add_row("accepted", str(counts.accepted))
    grid.add_row("in flight", str(counts.in_flight))
    grid.add_row("paired", f"{counts.paired}  ({counts.rows} rows)")
    grid.add_row("rejected", _reasons(dict(counts.rejected)))
    grid.add_row("failed", _reasons(dict(counts.failed)))
    if counts.skipped:
        grid.add_row("skipped rows", _reasons(dict(counts.skipped)))
    for name, calls in counts.calls.items():
        grid.add_row(f"calls {name}", calls_line(dict(calls)))
    return grid


def _reasons(reasons: dict[str, int]) -> str:
    parts = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    total = str(sum(reasons.values()))
    return f"{total}  ({parts})" if parts else total


def calls_line(calls: dict[str, int]) -> str:
    """One model's calls on one line."""
    return (
        f"{calls['ok']} ok, {calls['failed']} failed, {calls['retried']} retried, "
        f"{calls['cached']} from cache, {calls['input_tokens']} + {calls['output_tokens']} tokens"
    )
