"""Logging: standard library, an event's name plus its `extra`, as text or as JSON.

One line an event, whatever it holds: control characters are escaped, so that no prompt or reply can
forge a line. Prompts and replies are never logged.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

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
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        trouble = self.formatException(record.exc_info) if record.exc_info else None
        if self._json:
            ours = {"time": time, "level": record.levelname, "event": record.getMessage()}
            ours |= {"logger": record.name} | ({"trouble": trouble} if trouble else {})
            return json.dumps({name: _jsonable(value) for name, value in (extra | ours).items()})
        facts = "".join(f" {name}={_plain(value)}" for name, value in extra.items())
        head = f"{time} {record.levelname:<7} {_plain(record.getMessage())}{facts}"
        below = "".join(f"\n    {_plain(line)}" for line in (trouble or "").splitlines())
        return head + below


def _jsonable(value: object) -> object:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def _plain(value: object) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )


def configure(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Send every logger of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(log_format))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
