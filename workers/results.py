"""Celery's Redis result store, for a fleet in which nobody waits for a result.

As it comes, publishing a chord subscribes the publisher to its results and remembers it for ever:
2 channels and about 30 objects a chord, and noise at exit. Chord joins need none of that.
"""

from typing import Any

from celery.backends.redis import RedisBackend


class Results(RedisBackend):  # type: ignore[misc]
    """Stores and joins; never listens."""

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
