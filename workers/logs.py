"""Logging: standard library, an event's name plus its `extra`, as text or as JSON.

One line an event, whatever it holds: control characters are escaped, so that no prompt or reply can
forge a line, and secrets that this process knows are masked. Prompts and replies are never logged.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from workers.masking import masked

LogFormat = Literal["text", "json"]

log = logging.getLogger(__name__)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "data"}

#: Libraries that tell more than a fleet's log needs.
_QUIET = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "huggingface_hub",
    "stamina",
    "celery.app.trace",
    "datasets",
    "fsspec",
    "urllib3",
)


class Formatter(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return masked(self._line(record))

    def _line(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        trouble = self.formatException(record.exc_info) if record.exc_info else None
        if self._json:
            ours = {"time": time, "level": record.levelname, "event": record.getMessage()}
            ours |= {"logger": record.name} | ({"trouble": trouble} if trouble else {})
            return json.dumps({name: _jsonable(value) for name, value in (extra | ours).items()})
        facts = "".join(f" {name}={plain(value)}" for name, value in extra.items())
        head = f"{time} {record.levelname:<7} {plain(record.getMessage())}{facts}"
        below = "".join(f"\n    {plain(line)}" for line in (trouble or "").splitlines())
        return head + below


def _jsonable(value: object) -> object:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def plain(value: object) -> str:
    """A value as text in which nothing moves a cursor, ends a line or turns its direction."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )


def configure(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Send every logger of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(log_format))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    sys.excepthook = _tell_of_the_end
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.getLogger("celery.app.trace").addFilter(_handed_back_in_one_line)


def _handed_back_in_one_line(record: logging.LogRecord) -> bool:
    """Celery shows where a message was handed back; its reason, which stays, says enough."""
    if getattr(record, "data", {}).get("description") == "rejected":
        record.exc_info = None
    return True


def _tell_of_the_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What nobody caught is told in the same form, so that it cannot show what others may not."""
    if isinstance(error, KeyboardInterrupt):
        return
    log.critical("process.broke", exc_info=(kind, error, trace))
