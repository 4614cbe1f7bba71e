"""One look at a store for all who want to know at the same moment.

Each look has a thread of its own, so that a store that hangs costs those who ask their patience and
no more. A store that works hard for its answer is asked less often. Knows nothing of what is looked
at.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.errors import PrefmillError

log = logging.getLogger(__name__)

#: What a store said is handed out for this time, in seconds, or for `REST` times what the look took
#: and `LONGEST_REST_S` at most.
FRESH_S = 2.0
REST = 9
LONGEST_REST_S = 15.0

#: A look that hangs for so long is given up, and another one begun, in seconds.
HANGING_S = 6.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Said(Generic[T]):
    """What a store said, when the look at it began and when it ended, by the steady clock."""

    answer: T
    began: float
    ended: float

    @property
    def took_s(self) -> float:
        """How long the look took, in seconds."""
        return self.ended - self.began


class Look(Generic[T]):
    """A store, looked at by one thread at a time."""

    def __init__(self, store: str, ask: Callable[[], T]) -> None:
        """`store` is its name in logs; `ask` looks at it, however long that takes."""
        self._store, self._ask = store, ask
        self._news = threading.Condition()
        #: The last look that ended; its answer is empty if the store was away.
        self._last: Said[tuple[T, ...]] | None = None
        self._begun: float | None = None
        self._away = False

    def begin(self) -> None:
        """Look, unless what is known is fresh or somebody looks already."""
        with self._news:
            now = time.monotonic()
            if self._fresh(now) or not self._nobody_looks(now):
                return
            self._begun = now
        threading.Thread(target=self._look, args=(now,), name=self._store, daemon=True).start()

    def said(self, until: float) -> Said[T] | None:
        """What the store said; None if it is away. Waits until that time of the steady clock.

        A store whose last look took long is given twice that before it counts as away.
        """
        with self._news:
            left_s = max(0.0, until - time.monotonic())
            self._news.wait_for(lambda: self._fresh(time.monotonic()), timeout=left_s)
            now, last = time.monotonic(), self._last
            if last is None or not last.answer:
                return None
            late = self._begun is None or now - self._begun > 2 * last.took_s
            if late and not self._fresh(now):
                return None
            return Said(last.answer[0], last.began, last.ended)

    def _fresh(self, now: float) -> bool:
        if self._last is None:
            return False
        rest_s = REST * self._last.took_s if self._last.answer else 0.0
        return now - self._last.ended < max(FRESH_S, min(rest_s, LONGEST_REST_S))

    def _nobody_looks(self, now: float) -> bool:
        took_s = self._last.took_s if self._last else 0.0
        return self._begun is None or now - self._begun > max(HANGING_S, 2 * took_s)

    def _look(self, began: float) -> None:
        answer: tuple[T, ...] = ()
        trouble: Exception | None = None
        try:
            answer = (self._ask(),)
        except Exception as exc:  # noqa: BLE001 - whoever asks must hear that there is no answer
            trouble = exc
        with self._news:
            if self._last is None or self._last.began < began:
                self._last = Said(answer, began, time.monotonic())
                self._tell(trouble)
            if self._begun == began:
                self._begun = None
            self._news.notify_all()

    def _tell(self, trouble: Exception | None) -> None:
        """Say once that a store is away, and once that it is back."""
        extra = {"store": self._store}
        if trouble is not None and not self._away:
            ours = isinstance(trouble, PrefmillError)
            extra["because"] = str(trouble) if ours else type(trouble).__name__
            log.warning("looks.away", extra=extra, exc_info=None if ours else trouble)
        elif trouble is None and self._away:
            log.info("looks.back", extra=extra)
        self._away = trouble is not None
