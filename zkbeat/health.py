"""The health socket, and `zkbeat health`, which asks there.

A liveness check is run every few seconds on every node, so this module imports the standard library only, and of that
as little as it can.
"""

from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False  # as typing has it, without the import
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

ANSWER_WITHIN_S = 2.0

USAGE = """\
Usage: zkbeat health [--ready | --leader] [--json] [--name NAME] [--runtime-dir DIR]

Ask the sidecar on this node how it is.

  (nothing)           alive: its loop answers
  --ready             standing by with a live session, or leading with a running child (of a beat: one that ticks)
  --leader            leading with a running child
  --json              print the whole answer
  --name NAME         of which election, if several run here   [env: ZKBEAT_NAME]
  --runtime-dir DIR   where the sidecar's socket is            [env: ZKBEAT_RUNTIME_DIR]

Exits 0 for yes, 1 for no, 2 for a usage error.
"""


class Server:
    """The sidecar's side: whoever connects gets one JSON object, and is never waited for."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(16)
        self.socket.setblocking(False)

    def answer(self, snapshot: dict[str, Any]) -> None:
        """Answer one who asks."""
        try:
            asker, _ = self.socket.accept()
        except OSError:
            return
        with asker:
            try:
                asker.setblocking(False)
                asker.send(json.dumps(snapshot).encode())
            except OSError:
                pass


def ask(path: Path | str) -> dict[str, Any]:
    """Return the sidecar's snapshot. Raises OSError (also on silence) or ValueError (not a sidecar)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(ANSWER_WITHIN_S)
        asker.connect(str(path))
        answer = b""
        while data := asker.recv(65536):
            answer += data
    snapshot: Any = json.loads(answer)
    if not isinstance(snapshot, dict):
        raise ValueError(f"it says {str(snapshot)[:40]!r}")  # noqa: TRY004  # as for what is no JSON
    return snapshot


def find_directory(name: str | None, given: str | None) -> str:
    """Find the runtime directory as `zkbeat` chooses it. Raises LookupError with what to say."""
    given = given or os.environ.get("ZKBEAT_RUNTIME_DIR")
    if given:
        return given
    from zkbeat.runtime import default_base

    base = default_base()
    name = name or os.environ.get("ZKBEAT_NAME")
    if name:
        return str(base / name)
    found = [path.parent for path in base.glob("*/health.sock")]
    if len(found) == 1:
        return str(found[0])
    if not found:
        raise LookupError(f"no zkbeat runs here: no socket below {base} (if it runs with --runtime-dir, give the same)")
    raise LookupError(
        f"several zkbeat run here ({', '.join(sorted(path.name for path in found))}): say which with --name"
    )


def main(argv: list[str]) -> int:
    """Run `zkbeat health` with these arguments; return its exit code."""
    options: dict[str, str] = {}
    flags: set[str] = set()
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word in {"--ready", "--leader", "--json", "--help"} and not equals:
            flags.add(word)
        elif word in {"--name", "--runtime-dir"} and (equals or rest):
            options[word] = value if equals else rest.pop(0)
        else:
            print(f"zkbeat health: cannot understand {word!r}; see zkbeat health --help", file=sys.stderr)
            return 2
    if "--help" in flags:
        print(USAGE, end="")
        return 0
    try:
        directory = find_directory(options.get("--name"), options.get("--runtime-dir"))
        snapshot = ask(f"{directory}/health.sock")
    except LookupError as error:
        return _say_no(str(error), flags)
    except (FileNotFoundError, ConnectionRefusedError):
        return _say_no("no zkbeat runs here: nobody listens on its socket", flags)
    except TimeoutError:
        return _say_no(f"zkbeat does not answer within {ANSWER_WITHIN_S:g} s: it hangs or is stopped", flags)
    except (OSError, ValueError) as error:
        return _say_no(f"cannot ask zkbeat: {error}", flags)
    asked = "leader" if "--leader" in flags else "ready" if "--ready" in flags else None
    yes = bool(snapshot.get(asked)) if asked else True
    if "--json" in flags:
        print(json.dumps(snapshot))
    else:
        print(_sentence(snapshot, asked, yes=yes))
    return 0 if yes else 1


def _say_no(why: str, flags: set[str]) -> int:
    if "--json" in flags:
        print(json.dumps({"state": "unreachable", "ready": False, "leader": False, "why": why}))
    else:
        print(f"zkbeat health: {why}", file=sys.stderr)
    return 1


def _sentence(snapshot: dict[str, Any], asked: str | None, *, yes: bool) -> str:
    state = snapshot.get("state", "unknown")
    details = [f"epoch {snapshot['epoch']}"] if snapshot.get("epoch") else []
    if snapshot.get("child"):
        details.append(f"child {snapshot['child']}")
    if snapshot.get("why"):
        details.append(str(snapshot["why"]))
    if not snapshot.get("connected", True):
        details.append("no connection to ZooKeeper")
    verdict = "" if asked is None else ("" if yes else f"not {asked}: ")
    return f"{verdict}{state}" + (f" ({', '.join(details)})" if details else "")
