"""What there is without zkbeat: kazoo's `Election` round a command. `python by_hand.py HOSTS PATH TIMEOUT COMMAND...`.

The listener, which kazoo's documents recommend, stops the command when the session is lost.
"""

# ruff: noqa: PLW0603

import subprocess
import sys

from kazoo.client import KazooClient, KazooState

hosts, path, timeout, *command = sys.argv[1:]
beat = None


def lead():
    global beat
    beat = subprocess.Popen(command)
    beat.wait()
    beat = None


def on_state(state):
    if state == KazooState.LOST and beat is not None:
        beat.terminate()


client = KazooClient(hosts=hosts, timeout=float(timeout))
client.add_listener(on_state)
client.start()
while True:
    client.Election(path).run(lead)
