"""zkbeat's own log: one line an event, on standard error, for people or as JSON.

The loop that renews the lease must not wait for whoever reads the log, so a thread writes; when the reader is too slow,
lines are dropped rather than the leadership lost.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
from datetime import datetime, timezone
from typing import Any

LINES_WAITING_AT_MOST = 1000


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Human(logging.Formatter):
    def __init__(self, member: str) -> None:
        super().__init__()
        self._member = member

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().splitlines())
        return f"{_time(record)} zkbeat {self._member} {record.levelname.lower()}: {text}"


class _Json(_Human):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "id": self._member,
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "fields", {}))


class Log:
    """Where the sidecar says what happens."""

    def __init__(self, member: str, log_format: str, level: str) -> None:
        logging.raiseExceptions = False  # a closed stderr is no reason to fail
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(LINES_WAITING_AT_MOST)
        out = logging.StreamHandler(sys.stderr)
        out.setFormatter(_Json(member) if log_format == "json" else _Human(member))
        self._listener = logging.handlers.QueueListener(waiting, out)
        self._logger = logging.getLogger("zkbeat")
        self._logger.setLevel(level.upper())
        self._logger.propagate = False
        self._logger.addHandler(logging.handlers.QueueHandler(waiting))
        if level == "debug":  # what matters of it, the state machine says
            logging.getLogger("kazoo").addHandler(logging.handlers.QueueHandler(waiting))
            for name in ("kazoo", "kazoo.zkbeat"):
                logging.getLogger(name).setLevel(logging.DEBUG)
        self._listener.start()

    def say(self, level: str, event: str, message: str, **fields: Any) -> None:
        """Write one line."""
        self._logger.log(getattr(logging, level.upper()), message, extra={"event": event, "fields": fields})

    def bug(self, message: str) -> None:
        """Write what nobody expected, with its traceback."""
        self._logger.exception(message, extra={"event": "bug", "fields": {}})  # noqa: LOG004  # called by handlers

    def flush(self, within_s: float) -> bool:
        """Write what is waiting; say whether the reader took it in time. If not, Python's own exit would hang on it."""
        stopper = threading.Thread(target=self._listener.stop, daemon=True)
        stopper.start()
        stopper.join(within_s)
        return not stopper.is_alive()
