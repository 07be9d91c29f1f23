"""Starts celery beat as `celery` or `python -m celery` would, with the scheduler wrapped, and the gate if there is one.

`python zkbeat/launcher/__main__.py SCRIPT ARGS...`: SCRIPT is what the user called, or `-m` for `python -m celery`. It
is run by its path, so that the first entry of the module search path is ours to replace by the one that was meant.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Become celery."""
    script = sys.argv.pop(1)
    sys.path[0] = os.getcwd() if script == "-m" else os.path.dirname(os.path.abspath(script))  # noqa: PTH100, PTH109, PTH120

    from zkbeat.launcher import gate, scheduler

    gate.install()
    scheduler.install()
    import celery.__main__

    sys.argv[0] = celery.__main__.__file__ if script == "-m" else script
    celery.__main__.main()


if __name__ == "__main__":
    main()
