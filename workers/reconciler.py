"""What to publish again: batches that ought to have ended and of which no message exists any more.

No setting of Celery closes every window in which a message can vanish: between the pop and the
table of unacknowledged messages, between a chord's join and its body, in a wiped broker. The ledger
knows what is in flight, the broker knows what it still holds, and the difference is lost.
"""

import logging
import time

from celery import Celery

from workers.broker import Broker
from workers.doors import Doors
from workers.flow import publish
from workers.ledger import Ledger
from workers.recipe import Recipe

log = logging.getLogger(__name__)

#: A message on its way between two tables is in neither; a second look, this much later, in
#: seconds, tells it from a lost one.
SECOND_LOOK_S = 1.0


def interval_s(recipe: Recipe) -> float:
    """How often to look: a few times within the deadline, at most twice a minute."""
    return max(1.0, min(30.0, recipe.fleet.deadline / 4))


def look_after(app: Celery, ledger: Ledger, broker: Broker, doors: Doors, recipe: Recipe) -> int:
    """All that wants doing now and then; returns how many prompts were published again.

    Raises: BrokerError, LedgerError.
    """
    doors.pause(ledger.paused(recipe.name))  # the ledger knows, whatever became of Redis
    joins = broker.joins()
    live = ledger.overdue(recipe.name, float("inf"))
    stale = joins.keys() - live.keys()  # looked for first, so none of a batch that is new
    broker.drop_joins(name for batch in stale for name in joins[batch])
    return reconcile(app, ledger, broker, recipe)


def reconcile(app: Celery, ledger: Ledger, broker: Broker, recipe: Recipe) -> int:
    """Publish again what was lost; returns how many prompts.

    A batch that still waits in a queue is left alone, however late it is: waiting is no attempt.
    Prompts whose work already began `fleet.max_attempts` times fail as lost.
    Raises: BrokerError, LedgerError.
    """
    overdue = ledger.overdue(recipe.name, time.time() - recipe.fleet.deadline)
    lost = overdue.keys() - broker.batches() if overdue else set()
    if not lost:
        return 0
    time.sleep(SECOND_LOOK_S)
    lost -= broker.batches()
    keys = [key for batch in overdue if batch in lost for key in overdue[batch]]
    failed = ledger.give_up(recipe.name, keys, recipe.fleet.max_attempts)
    batches = ledger.rebatch(recipe.name, recipe.fleet.batch_size, keys)
    publish(app, ledger, recipe, batches)
    log.warning(
        "reconciler.republished",
        extra={"run": recipe.name, "prompts": len(keys) - failed, "failed": failed},
    )
    return len(keys) - failed
