"""What the ledger says about a run, for machines and for people. All of it is derived."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.doors import Doors
from workers.entries import Backlog
from workers.errors import BrokerError
from workers.ledger import Counts, Ledger
from workers.recipe import Recipe


def as_json(recipe: Recipe, counts: Counts) -> dict[str, Any]:
    """The contract's `status --json`; accepted = in_flight + paired + rejected + failed, always.

    `judging` comes on top: of each judge the replies that did not keep its contract, the pairs of
    texts that it compared in both orders, and those where its preference flipped with the order.
    """
    return {
        "run": recipe.name,
        "accepted": counts.accepted,
        "in_flight": counts.in_flight,
        "paired": counts.paired,
        "rejected": dict(counts.rejected),
        "failed": dict(counts.failed),
        "skipped": dict(counts.skipped),
        "left_out": dict(counts.left_out),
        "rows": counts.rows,
        "calls": {name: dict(numbers) for name, numbers in counts.calls.items()},
        "judging": judging(recipe, counts),
        "deliveries": {name: _delivery(of) for name, of in counts.deliveries.items()},
    }


def _delivery(of: Backlog) -> dict[str, int]:
    refused = {"refused": of.refused} if of.refused else {}
    return {"pending": of.waiting, "delivered": of.delivered, **refused}


def dumped(recipe: Recipe, counts: Counts) -> str:
    """`as_json` as text."""
    return json.dumps(as_json(recipe, counts), indent=2)


def judging(recipe: Recipe, counts: Counts) -> dict[str, dict[str, int]]:
    """What there is to say of each judge that was asked."""
    names = [judge.name for judge in recipe.judges]
    return {name: dict(counts.judging[name]) for name in names if name in counts.judging}


def obstacles(ledger: Ledger, recipe: Recipe, broker_url: str | None) -> list[str]:
    """Why a run may stand still: a person's pause, endpoints that turn calls away, no broker."""
    found = ["paused; `prefmill resume` goes on"] if ledger.paused(recipe.name) else []
    if broker_url is None:
        return found
    try:
        return found + [str(shut) for shut in Doors(broker_url, recipe).shut()]
    except BrokerError as exc:
        return [*found, str(exc)]


def lines(recipe: Recipe, counts: Counts, stopped_by: Sequence[str] = ()) -> list[str]:
    """The same for people, with what stands in the way."""
    facts = [
        ("run", recipe.name),
        ("accepted", str(counts.accepted)),
        ("in flight", str(counts.in_flight)),
        ("paired", f"{counts.paired}  ({counts.rows} rows)"),
        ("rejected", _reasons(counts.rejected)),
        ("failed", _reasons(counts.failed)),
    ]
    if counts.skipped:
        facts.append(("skipped rows", _reasons(counts.skipped)))
    if counts.left_out:
        facts.append(("left out values", _reasons(counts.left_out)))
    facts += [(f"calls {name}", _calls(calls)) for name, calls in counts.calls.items()]
    facts += [(f"judge {name}", _judged(of)) for name, of in judging(recipe, counts).items()]
    facts += [(f"to {name}", _delivered(name, of)) for name, of in counts.deliveries.items()]
    facts += [("stopped", what) for what in stopped_by]
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def _delivered(name: str, of: Backlog) -> str:
    unit = "rows" if name == "hub" else "records"
    said = f"{of.delivered} {unit} delivered, {of.waiting} pending"
    said += f", {of.refused} refused" if of.refused else ""
    said += f"; {of.changed} prompts have other pairs by now: `prefmill compact`" * bool(of.changed)
    return said + (f"; stands still: {of.trouble}" if of.trouble else "")


def _reasons(reasons: Mapping[str, int]) -> str:
    parts = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    total = str(sum(reasons.values()))
    return f"{total}  ({parts})" if parts else total


def _judged(counts: Mapping[str, int]) -> str:
    said = f"{counts['unparsable']} replies that did not keep the contract"
    if not counts["compared"]:
        return said
    share = counts["flipped"] / counts["compared"]
    return (
        f"{said}; {counts['flipped']} flips of preference in {counts['compared']} pairs of texts "
        f"that it saw in both orders ({share:.0%})"
    )


def _calls(calls: Mapping[str, int]) -> str:
    return (
        f"{calls['ok']} ok, {calls['failed']} failed, {calls['retried']} retried, "
        f"{calls['cached']} from cache, {calls['input_tokens']} + {calls['output_tokens']} tokens"
    )
