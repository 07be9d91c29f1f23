"""What a competent user writes after an hour with kazoo's documents: `by_hand.py HOSTS PATH TIMEOUT COMMAND...`.

The election is the recipe's; the listener, which its documents recommend, stops the command when the session is lost;
TERM stops the command first and gives up the leadership then. What it does not do is what the comparison is about.
"""

# ruff: noqa: PLW0603

import signal
import subprocess
import sys

from kazoo.client import KazooClient, KazooState

hosts, path, timeout, *command = sys.argv[1:]
beat = None
stopping = False


def lead():
    global beat
    beat = subprocess.Popen(command)
    beat.wait()
    beat = None


def on_state(state):
    if state == KazooState.LOST and beat is not None:
        beat.terminate()


def on_term(_number, _frame):
    global stopping
    stopping = True
    if beat is None:
        sys.exit(0)
    beat.terminate()


client = KazooClient(hosts=hosts, timeout=float(timeout))
client.add_listener(on_state)
signal.signal(signal.SIGTERM, on_term)
client.start()
while not stopping:
    client.Election(path).run(lead)
client.stop()
