"""Celery's Redis result store, for a fleet in which nobody waits for a result.

As it comes, publishing a chord subscribes the publisher to its results and remembers it for ever:
2 channels and about 30 objects a chord, and noise at exit. Chord joins need none of that. And a
join is tried once: a store or a broker that is away at that moment loses the body. Here it is tried
until it is done, with Celery's own scripts and keys.
"""

import logging
from typing import Any
from uuid import uuid4

from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature
from celery.exceptions import Reject
from celery.worker import state as worker_state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

#: How long a worker that joined a chord has to publish its body, in seconds, before another one
#: that holds a copy of a header may. A body that is published twice is worked on once.
CLAIM_S = 10

#: How long late copies of a header find that the body was published, in seconds.
DONE_S = 300

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

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Note that a header ended, until it is noted; the last one publishes the body.

        Raises: Reject to hand the message back when the worker shuts down meanwhile.
        """
        told = False
        while True:
            try:
                if self._joined(request, state, result):
                    return
            except (RedisError, OperationalError, OSError) as exc:
                if not told:
                    log.warning("results.away", extra={"because": str(exc)})
                told = True
            if worker_state.should_stop is not None:
                raise Reject("the worker shuts down before a chord is joined", requeue=True)
            self._sleep(POLL_S)

    def _joined(self, request: Any, state: str, result: Any) -> bool:
        """Try once; False while another worker has claimed the body and not published it yet."""
        joined, more, size, seen, claim = (
            self.get_key_for_group(request.group, f".{end}") for end in "jtsdc"
        )
        token = uuid4().hex
        ended = self.encode([1, request.id, state, self.encode_result(result, state)])
        ready, extra, expected, claimed = self._chord_part_return_script(
            keys=[joined, more, size, seen, self.get_key_for_group(request.group), claim],
            args=[
                *(request.id, ended, 1, request.group_index),
                *(self.chord_expires or 0, self._chord_result_expires, CLAIM_S, token),
            ],
            client=self.client,
        )
        if ready == -1 or not expected or ready < int(expected) + int(extra or 0):
            return True
        if not claimed:
            return False
        results = [
            self._unpack_chord_result(member, self.decode)
            for member in self.client.zrange(joined, 0, -1)
        ]
        self._publish(request.chord, results)
        self._chord_cleanup_script(
            keys=[claim, joined, more, size, seen], args=[token, DONE_S], client=self.client
        )
        return True

    def _publish(self, body: Any, results: list[Any]) -> None:
        maybe_signature(body, app=self.app).delay(results)
