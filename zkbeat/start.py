"""How zkbeat's processes are started: one interpreter, with nothing in it but what that process needs.

`python -I -S zkbeat/start.py sidecar|guard|remover ...`: isolated, so that neither the working directory (a project may
well hold a `queue.py` or a `celery.py`) nor the environment decides what is imported, and without `site`, which saves
time and memory. Where kazoo is found comes from the process that has found it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

_SYS_PATH = "ZKBEAT_SYS_PATH"


def command(process: str, *arguments: str) -> list[str]:
    """Return the command that starts one of zkbeat's own processes."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), process, *arguments]  # noqa: PTH100


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to start it with."""
    return {**inherited, _SYS_PATH: os.pathsep.join(path for path in sys.path if path)}


def end_on_term_as_init() -> None:
    """As PID 1, end on a TERM that comes before the sidecar takes it: the kernel drops what an init does not handle."""
    if os.getpid() == 1:
        import signal

        signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))


def main() -> int:
    """Run the process that the first argument names; return its exit code."""
    end_on_term_as_init()
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    # Popped: the child, and whatever Python it is, must not see it.
    found = [path for path in os.environ.pop(_SYS_PATH, "").split(os.pathsep) if path]
    sys.path[:] = [here, *(path for path in found if path != here), *(path for path in sys.path if path not in found)]
    serve: Callable[[], int] = import_module(f"zkbeat.{sys.argv.pop(1)}").main
    return serve()


if __name__ == "__main__":
    sys.exit(main())
