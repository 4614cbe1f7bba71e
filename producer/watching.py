"""What `prefmill run` watches beside its prompts: endpoints that let no call in, and the feed."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from producer.feed import Feed
from workers.doors import Doors
from workers.errors import PrefmillError

log = logging.getLogger(__name__)

#: How often a run looks for endpoints that let no call in, in seconds.
DOORS_S = 2.0


@dataclass
class Watch:
    """Says once when an endpoint lets no call in, and when it does again."""

    doors: Doors
    say: Callable[[str], None]
    _told: dict[tuple[str, str | None, float], str] = field(default_factory=dict)
    _looked_at: float = 0.0

    def look(self) -> None:
        """Look, if it is time. Short waits that an endpoint asked for are nobody's business."""
        if time.monotonic() - self._looked_at < DOORS_S:
            return
        self._looked_at = time.monotonic()
        shut = {
            (door.endpoint, door.model, door.since): str(door)
            for door in self.doors.shut()
            if door.reason != "rate_limited"
        }
        for key in shut.keys() - self._told.keys():
            self.say(f"{shut[key]}. Nothing is lost; it is tried again by itself")
        for key in self._told.keys() - shut.keys():
            self.say(f"no longer so: {self._told[key]}")
        self._told = shut


class Feeding(threading.Thread):
    """The feed, beside the loop that watches over it."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(name="feed", daemon=True)
        self._feed = feed
        self.error: PrefmillError | None = None

    def run(self) -> None:
        """Feed; keep the error for the thread that watches."""
        try:
            self._feed.run()
        except PrefmillError as exc:
            self.error = exc
        except Exception as exc:
            log.exception("feed.broken")
            self.error = PrefmillError(f"the feed broke: {type(exc).__name__}: {exc}")
