"""The gate of a preloaded beat: it has imported celery and the app, and does not go on before it is opened.

It waits where beat would begin to act: no connection is made, no schedule read. Its guard opens the gate when the node
leads, and when the guard is gone there is nothing left to wait for. An app that already holds threads or sockets by
then cannot be parked: it might act on a standby, or keep alive what a server has long forgotten. It says so and ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

_GATE_FD = "ZKBEAT_GATE_FD"


def install() -> None:
    """Have beat wait at the gate, if this process was started with one."""
    fd = os.environ.pop(_GATE_FD, None)
    if fd is None:
        return
    gate = Gate(socket.socket(fileno=int(fd)))
    from celery.apps.beat import Beat

    run = Beat.run

    def wait_and_run(beat: Any) -> None:
        gate.wait(beat)
        run(beat)

    Beat.run = wait_and_run


class Gate:
    """Made before anything is imported, so that what is open later on is known to be the app's."""

    def __init__(self, guard: socket.socket) -> None:
        self._guard = guard
        self._sockets = _sockets()

    def wait(self, beat: Any) -> None:
        """Load what beat will need, and return once this node leads; end the process if it is not to be waited for."""
        _load(beat)
        if not select.select([self._guard], [], [], 0)[0]:
            why = self._cannot_be_parked()
            if why is not None:
                self._say({"is": "unparkable", "why": why})
                os._exit(0)
            gc.collect()
            gc.freeze()
            self._say({"is": "parked", "kib": _resident_kib()})
        order = self._read()
        if order is None:
            os._exit(0)  # the guard is gone
        os.environ.update(order["env"])
        self._guard.close()

    def _cannot_be_parked(self) -> str | None:
        threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1  # noqa: PTH112, PTH208
        if threads > 1:
            return f"the app has started threads while it was imported ({threads - 1})"
        opened = _sockets() - self._sockets
        if opened:
            return f"the app has opened sockets while it was imported ({len(opened)})"
        return None

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._guard.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> dict[str, Any] | None:
        received = b""
        while not received.endswith(b"\n"):
            try:
                data = self._guard.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            received += data
        order: dict[str, Any] = json.loads(received)
        return order


def _load(beat: Any) -> None:
    """Import the tasks, and the modules of broker, result backend and scheduler, without making any of them."""
    from celery.app import backends
    from celery.beat import Service
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    app = beat.app
    beat.init_loader()
    # What cannot be loaded now, beat itself will complain about when it is its turn.
    with contextlib.suppress(Exception):
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        symbol_by_name(beat.scheduler_cls or Service.scheduler_cls, aliases=aliases)
    with contextlib.suppress(Exception):
        app.connection_for_write().get_transport_cls()
    with contextlib.suppress(Exception):
        backends.by_url(app.backend_cls or app.conf.result_backend, app.loader)
    if "django.db" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["django.db"].connections.close_all()


def _sockets() -> set[str]:
    """Return what tells this process's sockets apart, none where there is no /proc."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(fd)  # noqa: PTH115
                if target.startswith("socket:"):
                    found.add(target)
    return found


def _resident_kib() -> int:
    """Return the memory that this process takes, shared pages counted in part, in KiB; 0 where it is not known."""
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/self/{name}").read_text().splitlines()
            return int(next(line for line in lines if line.startswith(field)).split()[1])
    return 0
