# ruff: noqa: INP001 (a script to be copied)
"""A supervisord event listener that kills a zkbeat which does not answer any more, to have it started again.

    zkbeat_health.py [--zkbeat PATH] [--failures N] PROGRAM=RUNTIME_DIR ...

At each TICK event it runs `zkbeat health` for every program that supervisord says is RUNNING. After N failures in a row
it has supervisord send KILL to that program.

KILL, and not a stop and a start: what hangs does not react to TERM, zkbeat's guard ends beat whichever way the sidecar
dies, and a listener that itself ended between a stop and a start would leave the node without zkbeat. What starts it
again is the program's own `autorestart`.

A supervised zkbeat is not killed for what a restart does not mend: without ZooKeeper, or backing off, it still answers.

Needs the Python that supervisor is installed for; nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any
from xmlrpc.client import Error as RpcError

from supervisor.childutils import getRPCInterface, listener

CHECK_WITHIN_S = 10.0
"""`zkbeat health` gives up after 2 s by itself; more than this means that the machine is in trouble."""


@dataclass
class Program:
    """One zkbeat, and what was seen of it."""

    name: str
    runtime_dir: str
    pid: int = 0
    failures: int = 0


def check(program: Program, zkbeat: str) -> str | None:
    """Return why the program is not well, or None."""
    command = [zkbeat, "health", "--runtime-dir", program.runtime_dir]
    try:
        # Its output must not be ours: supervisord reads that as the protocol.
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} took more than {CHECK_WITHIN_S:g} s"
    if done.returncode == 0:
        return None
    # Only 1 is an answer. Anything else (usage, not executable) is a fault of this set-up, and no reason to kill.
    if done.returncode != 1:
        raise OSError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stderr.strip() or done.stdout.strip()


def look_at(program: Program, zkbeat: str, failures_at_most: int, supervisor: Any) -> None:
    """Check one program; kill it if this was one failure too many."""
    info = supervisor.getProcessInfo(program.name)
    if info["statename"] != "RUNNING":
        program.failures = 0
        return
    if info["pid"] != program.pid:
        # Another life: it has N checks to open its socket, for which it may have to wait for the last life's guard.
        program.pid, program.failures = info["pid"], 0
    why = check(program, zkbeat)
    if why is None:
        program.failures = 0
        return
    program.failures += 1
    say(f"{program.name} (pid {program.pid}), failure {program.failures} of {failures_at_most}: {why}")
    if program.failures >= failures_at_most:
        say(f"killing {program.name} (pid {program.pid})")
        supervisor.signalProcess(program.name, "KILL")
        program.failures = 0


def say(message: str) -> None:
    """Write to the listener's log; its standard output belongs to the protocol."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=sys.stderr, flush=True)


def program_of(argument: str) -> Program:
    """Parse `PROGRAM=RUNTIME_DIR`; `GROUP:PROGRAM=RUNTIME_DIR` for one in a group."""
    name, equals, directory = argument.partition("=")
    if not (name and equals and directory):
        raise argparse.ArgumentTypeError(f"{argument!r} is not PROGRAM=RUNTIME_DIR")
    return Program(name, directory)


def main() -> None:
    """Serve supervisord's events until it closes our input."""
    parser = argparse.ArgumentParser(description="Kill a zkbeat that does not answer any more.")
    parser.add_argument("--zkbeat", default="zkbeat", help="the zkbeat to ask with (default: from the PATH)")
    parser.add_argument("--failures", type=int, default=3, metavar="N", help="kill after N in a row (default: 3)")
    parser.add_argument("programs", nargs="+", type=program_of, metavar="PROGRAM=RUNTIME_DIR")
    options = parser.parse_args()
    if "SUPERVISOR_SERVER_URL" not in os.environ:
        sys.exit("zkbeat_health.py: to be started by supervisord, which needs a [unix_http_server] section for it")
    while True:
        listener.ready()
        header = sys.stdin.readline()
        if not header:
            return
        sys.stdin.read(int(dict(word.split(":", 1) for word in header.split())["len"]))
        supervisor = getRPCInterface(os.environ).supervisor  # a connection of this tick's own
        for program in options.programs:
            try:
                look_at(program, options.zkbeat, options.failures, supervisor)
            except (RpcError, OSError) as error:
                say(f"cannot check {program.name}: {error}")
        # Always OK: a FAIL would have this very tick sent again.
        listener.ok()


if __name__ == "__main__":
    main()
