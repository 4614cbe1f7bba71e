"""Celery's Redis result store, for a fleet in which nobody waits for a result.

As it comes, publishing a chord subscribes the publisher to its results and remembers it for ever:
2 channels and about 30 objects a chord, and noise at exit. Chord joins need none of that. And it
tries once to note that a header ended: a store that is away at that moment would lose the body.
"""

import logging
from typing import Any

from celery.backends.redis import RedisBackend
from celery.exceptions import Reject
from celery.worker import state as worker_state
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

#: How long a worker that joined a chord has to publish its body, in seconds, before another one
#: that holds a copy of a header may. A body that is published twice is worked on once.
CLAIM_S = 10

#: How often a store that is away, or a claim that is held, is looked at again, in seconds.
POLL_S = 1.0


class Results(RedisBackend):  # type: ignore[misc]
    """Stores and joins; never listens, never gives up."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing."""

    def add_pending_result(
        self, result: Any, weak: bool = False, start_drainer: bool = True
    ) -> Any:
        """Remember nothing."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Forget nothing."""
        return result

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Note that a header ended, until it is noted; the last one publishes the body.

        A copy of a header finds the claim of whoever joined the chord before. It waits until the
        body was published, or publishes it itself when that process does not any more.
        Raises: Reject to hand the message back when the worker shuts down meanwhile.
        """
        troubled = False
        while True:
            try:
                claim = self.client.get(self.get_key_for_group(request.group, ".c"))
                super().on_chord_part_return(request, state, result, **kwargs)
                if claim in (None, b"done"):
                    return
            except (RedisError, OSError) as exc:
                if not troubled:
                    log.warning("results.away", extra={"because": str(exc)})
                troubled = True
            if worker_state.should_stop is not None:
                raise Reject("the worker shuts down before a header could be noted", requeue=True)
            self._sleep(POLL_S)

    def _chord_publish_claim_expires(self, initial_expires: int, callback: Any) -> int:
        return max(initial_expires, CLAIM_S)
