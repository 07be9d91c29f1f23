"""zkbeat as the command line starts it, but with a ZooKeeper that it only imagines: it grants everything, at once.

Takes zkbeat's own arguments. Files in the directory named by ALONE control it: while `mute` exists, no renewal is
answered, and while `failing` does, each one fails as without a connection.
In `terms` there is a line for each term that began, with its epoch, and for each one that ended, with why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def as_sidecar() -> int:  # noqa: C901
    # The class is in here since what it needs is found only now.
    sys.path[:0] = [path for path in os.environ.pop("ZKBEAT_SYS_PATH").split(os.pathsep) if path]
    from zkbeat import sidecar
    from zkbeat.core import events
    from zkbeat.core.record import Ledger

    directory = Path(os.environ["ALONE"])

    class Imagined:
        """In the place of `zkbeat.ensemble.Ensemble`."""

        last_error = None

        def __init__(self, access, _root, _name, post, _left_behind) -> None:
            self._access = access
            self._post = post
            self._session = 0
            self._epoch = 0

        def open(self) -> None:
            self._session += 1
            self._post(events.Connected(self._session, self._access.session_timeout_s, sidecar.clock.now()))

        renew_session = open  # noqa: A003

        def znode(self, node) -> str:
            return f"/imagined/{node}"

        def join(self, attempt, _member) -> None:
            self._epoch += 1
            node = f"alone__lock__{self._epoch:010d}"
            self._post(events.Queued(attempt, node, 0, None))
            self._post(events.Elected(attempt, node))

        def leave(self, attempt, _led=None) -> None:
            self._post(events.ElectionEnded(attempt, None))

        def renew(self, node, sent_at, _member) -> None:
            if (directory / "failing").exists():
                self._post(events.RenewalFailed(node, sent_at, refused=False, reason="connection loss"))
            elif not (directory / "mute").exists():
                self._post(events.Renewed(node, sent_at, self._session, self._epoch, 0.0))

        def read_ledger(self) -> None:
            # Whoever led before has certified that its child is dead: nobody is to be waited for.
            self._post(events.LedgerRead(Ledger(led="before", lease=1.0, left=True), 0))

        def enter(self, node, _version, _lease_s) -> None:
            self._post(events.Entered(node, ok=True))

        def read_control(self) -> None:
            self._post(events.ControlRead(None))

        def term_began(self, epoch, *_) -> None:
            self._note(f"began {epoch}")

        def term_ended(self, epoch, why, _offset) -> None:
            self._note(f"ended {epoch} {why}")

        def flush_notes(self, _within_s) -> None:
            pass

        def close(self, _within_s) -> bool:
            return True

        def _note(self, line) -> None:
            with (directory / "terms").open("a") as terms:
                terms.write(f"{line}\n")

    sidecar.Ensemble = Imagined
    return sidecar.main()


def as_command_line() -> int:
    from zkbeat import __main__, start

    started = start.command

    def command(process: str, *arguments: str) -> list[str]:
        if process == "sidecar":
            return [sys.executable, "-S", __file__, process, *arguments]
        return started(process, *arguments)

    start.command = command
    return __main__.main()


if sys.argv[1:2] == ["sidecar"]:
    del sys.argv[1]
    sys.exit(as_sidecar())
sys.exit(as_command_line())
