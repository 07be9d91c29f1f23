"""A child that notes what happens to it.

`child.py DIRECTORY NAME[+TRAIT]... [fork:NAME[+TRAIT]...]... [daemon:NAME[+TRAIT]...]...`

Once ready, each process leaves its pid as the target of the link DIRECTORY/NAME, and a line `NAME SIGNAL INSTANT` in
DIRECTORY/signals for each signal that it gets. It ends on TERM, unless it has the trait `stubborn`. One that is
`large` takes a while to die even of KILL: the kernel has its memory to free first.
"""

import os
import signal
import sys
import time

NOTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def live(directory, name, *traits):
    def note(number, _frame):
        line = f"{name} {signal.Signals(number).name} {time.clock_gettime(time.CLOCK_BOOTTIME)}\n"
        fd = os.open(f"{directory}/signals", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, line.encode())
        os.close(fd)
        if number == signal.SIGTERM and "stubborn" not in traits:
            os._exit(0)

    hoard = b"x" * (300 << 20) if "large" in traits else b""  # noqa: F841
    for number in NOTED:
        signal.signal(number, note)
    # In one step, over that of an earlier one, and without more imports.
    os.symlink(str(os.getpid()), f"{directory}/{name}.new")  # noqa: PTH211
    os.rename(f"{directory}/{name}.new", f"{directory}/{name}")  # noqa: PTH104
    while True:
        signal.pause()


def main():
    directory, own, *others = sys.argv[1:]
    for other in others:
        how, _, who = other.partition(":")
        if os.fork() == 0:
            if how == "daemon":
                os.setsid()
                if os.fork():
                    os._exit(0)
            live(directory, *who.split("+"))
    live(directory, *own.split("+"))


main()
