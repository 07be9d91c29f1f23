"""The console script: finds out what was asked before it imports what that needs.

`zkbeat [OPTIONS] -- COMMAND...` and `zkbeat SUBCOMMAND ...` share one command line. What stands behind the first `--`
is never looked at, so a command may be called `health`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from zkbeat import start

SUBCOMMANDS = (
    "health",
    "status",
    "step-down",
    "pause",
    "resume",
    "reload",
    "doctor",
    "demo",
    "schedule",
    "schedule list",
    "schedule show",
    "schedule run",
    "schedule pause",
    "schedule resume",
    "schedule import",
)


def route(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Return (what to run, its arguments, the command to wrap).

    What to run is a subcommand, or "run". Of the subcommands, only the doctor looks at a command.
    """
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    options, command = words[:at], words[at + 1 :]
    for length in (2, 1):
        what = " ".join(options[:length])
        if len(options) >= length and what in SUBCOMMANDS:
            return what, options[length:], command
    return "run", options, command


def _open_standard_streams() -> None:
    """Make sure that 0, 1 and 2 are open: else a socket of ours would take their place, and be written to."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # for the sidecar, the guard and the child


def main() -> int:
    """Run zkbeat; return the exit code."""
    _open_standard_streams()
    start.end_on_term_as_init()
    what, arguments, command = route(sys.argv[1:])
    if what == "health":
        from zkbeat import health

        return health.main(arguments)
    from zkbeat import cli

    return cli.main(what, arguments, command)


if __name__ == "__main__":
    sys.exit(main())
