"""Room for work that may kill its process, apart from its like.

When a worker dies, all that it worked on is suspect. Few suspects at a time bring the deadly one
near; one by itself proves it. Otherwise each death would be laid at the door of every neighbour.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Suspect batches that one process works on at a time, before the last attempt of one.
SUSPECTS = 2


class Quarantine:
    """The suspects of one process."""

    def __init__(self) -> None:
        self._free = SUSPECTS
        self._changed = threading.Condition()

    @contextmanager
    def room(self, *, alone: bool, within_s: float) -> Iterator[bool]:
        """Wait for room, with other suspects or alone; yields whether there was any in time."""
        share = SUSPECTS if alone else 1
        with self._changed:
            found = self._changed.wait_for(lambda: self._free >= share, within_s)
            self._free -= share if found else 0
        try:
            yield found
        finally:
            with self._changed:
                self._free += share if found else 0
                self._changed.notify_all()
