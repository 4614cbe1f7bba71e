"""The wire form of a batch, and the names of tasks and queues.

A message carries ids only: the run, the recipe's hash and the batch. The prompts lie in the ledger
and endpoints in each worker's own recipe, so a message can neither grow with its prompts nor make a
worker send a key to another host. Queues bear the run and this version, so that two runs, or two
versions side by side, do not take each other's work.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

VERSION = "v1"

GENERATE = "prefmill.generate"
GROUP = "prefmill.group"
JUDGE = "prefmill.judge"
SINK = "prefmill.sink"
DELIVER = "prefmill.deliver"
RECONCILE = "prefmill.reconcile"
SET_ASIDE = "prefmill.set_aside"


@dataclass(frozen=True, slots=True)
class Batch:
    """Names the prompts of one publication; `id` is new at each publication."""

    run: str
    recipe_hash: str
    id: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON of the batch."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Batch":
        """The batch of a message. Raises: TypeError if keys are missing or unknown."""
        return cls(**data)


def generate_queue(run: str, generator: str) -> str:
    """The queue of one generator's work."""
    return queue(run, f"generate.{generator}")


def queue(run: str, short: str) -> str:
    """The full name of a queue that people call by its short name (`judge`, `sink`, …)."""
    return f"{run}.{VERSION}.{short}"


def short_name(full_name: str) -> str:
    """What people call a queue, by its full name."""
    return full_name.split(".", 2)[-1]


def run_of(queue: str) -> str:
    """The run that a queue belongs to, by the queue's full name."""
    return queue.partition(".")[0]


def task_id(batch: Batch, step: str) -> str:
    """One id for one step of one publication: repeated messages are recognised by it."""
    return f"{batch.id}.{step}"


def join_id(batch: Batch) -> str:
    """The id of the chord that joins a publication, so that what it left behind can be found."""
    return f"{batch.run}.{batch.id}"


def batch_of(task: str) -> str:
    """The batch id inside a task id."""
    return task.partition(".")[0]


def step_of(task: str) -> str:
    """The step inside a task id, which is the short name of its queue (or `group`)."""
    return task.partition(".")[2]
