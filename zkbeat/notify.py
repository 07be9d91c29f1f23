"""Tells systemd how things are (sd_notify(3)); does nothing where it does not ask to be told."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """The socket that a unit of `Type=notify` names in its environment."""

    def __init__(self) -> None:
        # Taken out of the environment: the child must not speak in our name.
        path = os.environ.pop("NOTIFY_SOCKET", None)
        for_us = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval_us = os.environ.pop("WATCHDOG_USEC", "0")
        self._path = "\0" + path[1:] if path and path.startswith("@") else path
        self._last: dict[str, str] = {}
        self.watchdog_every_s: float | None = None
        """How often `WATCHDOG=1` is due: half of what systemd waits for, as it recommends."""
        if self._path and for_us and interval_us.isdigit() and int(interval_us):
            self.watchdog_every_s = int(interval_us) / 2e6

    def tell(self, **variables: str) -> None:
        """Send what has changed since it was last received."""
        news = {key: value for key, value in variables.items() if self._last.get(key) != value}
        if self._send(news):
            self._last.update(news)

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send({"WATCHDOG": "1"})

    def _send(self, variables: dict[str, str]) -> bool:
        """Say whether it was received: the queue of a systemd that is busy may be full."""
        if not self._path or not variables:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(f"{key}={value}" for key, value in variables.items()).encode(), self._path)
            return True
        return False
