"""What is done in time: Celery's beat asks for reconciling and for deliveries.

It keeps no file and knows nothing that a restart could lose.
"""

from contextlib import suppress
from typing import Any

from celery.beat import Scheduler

from workers.errors import BrokerError
from workers.messages import DELIVER, RECONCILE, queue
from workers.reconciler import interval_s
from workers.worker import current

#: How often is looked whether something should be delivered, in seconds.
DELIVER_S = 10.0

#: How long a round of beat may take, in seconds, beside its waits.
BEAT_S = 120.0


class Beat(Scheduler):  # type: ignore[misc]
    """Celery's beat with its schedule in memory: nothing in it is worth a file."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """One round; returns the seconds to the next one."""
        current().liveness.moved()
        return super().tick(*args, **kwargs)

    def close(self) -> None:
        """Say good-bye."""
        super().close()
        current().liveness.close()

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish a tick, unless the last one still waits: nobody may be there to take them."""
        queue_name = entry.options["queue"]
        if entry.task == DELIVER:
            with suppress(BrokerError):
                if current().broker.waiting().get(queue_name):
                    return None
        return super().apply_async(entry, *args, **kwargs)

    def setup_schedule(self) -> None:
        """What is to be done in time: look for what was lost, and deliver."""
        mill = current()
        recipe = mill.recipe
        entries = {f"reconcile-{recipe.name}": _timed(RECONCILE, interval_s(recipe), "sink")}
        for name in recipe.destinations:
            every_s = min(DELIVER_S, mill.settings.deliver_every)
            entries[f"deliver-{recipe.name}-{name}"] = _timed(DELIVER, every_s, "deliver", name)
        self.merge_inplace(entries)
        mill.liveness.begin("beat", patience_s=2 * interval_s(recipe) + BEAT_S)


def _timed(task: str, every_s: float, short: str, *arguments: str) -> dict[str, Any]:
    # A tick that waited longer than to the next one is worth nothing.
    options = {"queue": queue(current().recipe.name, short), "expires": every_s}
    return {"task": task, "schedule": every_s, "args": arguments, "options": options}
