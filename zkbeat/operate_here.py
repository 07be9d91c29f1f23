"""What an operator asks of the zkbeat on this very node."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from zkbeat import clock, health
from zkbeat.processes import RELOAD_SIGNAL

LOADS_WITHIN_S = 60.0
"""How long an app may take to be imported before we stop waiting for it."""

POLL_S = 0.1


def reload(name: str | None, runtime_dir: str | None) -> int:
    """Have the waiting process replaced by one with the new code, and wait for that; return the exit code."""
    try:
        socket = f"{health.find_directory(name, runtime_dir)}/health.sock"
        return _reload(socket, health.ask(socket))
    except LookupError as error:
        return _fail(str(error))
    except (OSError, ValueError) as error:
        return _fail(f"cannot ask zkbeat: {error}")


def _reload(socket: str, before: dict[str, Any]) -> int:
    if "preloaded" not in before:
        return _fail("nothing is preloaded here: it was started without --preload, or is no celery beat")
    os.kill(before["pid"], RELOAD_SIGNAL)
    if before["child"] is not None:
        print("this node leads: its beat keeps the code it was started with until its term ends (zkbeat step-down)")
        return 0
    return _await(socket, before)


def _await(socket: str, before: dict[str, Any]) -> int:
    give_up_at = clock.now() + LOADS_WITHIN_S
    asked_before = before["preloaded"]["reloads"]
    while clock.now() < give_up_at:
        found = health.ask(socket)
        loaded = found["preloaded"]
        if loaded["reloads"] > asked_before:
            if loaded["is"] == "waiting":
                print(f"loaded anew: process {loaded['pid']} waits, {loaded['kib'] / 1024:.0f} MB")
                return 0
            if loaded["is"] == "refused":
                return _fail("it could not be loaded in advance, and will be started plainly: zkbeat's log says why")
            if found["child"] is not None:
                print("this node has begun to lead, with the new code")
                return 0
        time.sleep(POLL_S)
    return _fail(f"not loaded within {LOADS_WITHIN_S:g} s: zkbeat's log says more")


def _fail(message: str) -> int:
    print(f"zkbeat reload: {message}", file=sys.stderr)
    return 1
