"""A small network of named hosts that can be cut off from one another, for tests of partitions. Needs root.

Each host is a network namespace on one bridge.
A cut is made *in the bridge*, not in the hosts: what a host sends is gone without a trace
(no error from its own kernel, no RST, no ICMP), as when a real switch or router fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

# Each name carries the pid of the process that made it: so `sweep` can tell what a crashed one left behind.
_NAMESPACE = re.compile(r"zkt-(\d+)-")
_LINK = re.compile(r"zkt(\d+)x\d+")

# The bridge has a namespace to itself, out of reach of the machine's own firewall: where Docker runs, bridged
# packets pass through its FORWARD chain, which drops them.
_BRIDGE_SETUP = """\
link add br0 type bridge
link set br0 up
"""
_CUT_SETUP = """\
table bridge zkt {
    set cut { type ipv4_addr . ipv4_addr; }
    set lossy { type ipv4_addr . ipv4_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr . ip daddr @cut drop
        ip saddr . ip daddr @lossy numgen random mod 100 < 30 drop
    }
}
"""

_serials = itertools.count()


def why_not() -> str | None:
    """Say what keeps this machine from making a Lan, if anything does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Host:
    """One host of a Lan; `exec_prefix` in front of a command runs it there."""

    name: str
    ip: str
    namespace: str
    lan: Lan

    @property
    def exec_prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def cut_off(self, from_ips: Iterable[str]) -> None:
        """Lose silently whatever goes between this host and those addresses, either way."""
        self.lan._lose("cut", [pair for other in from_ips for pair in ((self.ip, other), (other, self.ip))])

    def mute(self, to_ips: Iterable[str]) -> None:
        """Lose silently what this host sends to those addresses, and nothing of what they send."""
        self.lan._lose("cut", [(self.ip, other) for other in to_ips])

    def deafen(self, to_ips: Iterable[str]) -> None:
        """Lose silently what those addresses send to this host, and nothing of what it sends."""
        self.lan._lose("cut", [(other, self.ip) for other in to_ips])

    def disturb(self, with_ips: Iterable[str]) -> None:
        """Lose three packets of ten between this host and those addresses, either way."""
        self.lan._lose("lossy", [pair for other in with_ips for pair in ((self.ip, other), (other, self.ip))])

    def heal(self) -> None:
        """Undo whatever loses packets with this host at either end."""
        self.lan._heal(self.ip)


class Lan:
    """A /24 of its own with a bridge; `ip` is the address of this process on it, for the hosts to talk to."""

    def __init__(self) -> None:
        serial = next(_serials)
        self._stem = f"zkt-{os.getpid()}-{serial}"
        self._switch = f"{self._stem}-switch"
        self._link = f"zkt{os.getpid()}x{serial}"
        self._hosts: dict[str, Host] = {}
        self._losses: dict[str, set[tuple[str, str]]] = {"cut": set(), "lossy": set()}
        try:
            with _only_one_at_a_time():
                sweep()
                self._net = _free_net(os.getpid() + serial)
                self.ip = f"{self._net}.254"
                _ip(["netns", "add", self._switch])
                _ip(["-n", self._switch, "-batch", "-"], _BRIDGE_SETUP)
                _run(["ip", "netns", "exec", self._switch, "nft", "-f", "-"], _CUT_SETUP)
                self._plug_in(self._link, None, self.ip, "uplink")
        except BaseException:
            self.close()
            raise

    def host(self, name: str) -> Host:
        """Return the host of that name, which is made when it is asked for first."""
        if name not in self._hosts:
            number = len(self._hosts) + 1
            host = Host(name, f"{self._net}.{number}", f"{self._stem}-{name}", self)
            _ip(["netns", "add", host.namespace])
            _ip(["-n", host.namespace, "link", "set", "lo", "up"])
            self._plug_in("eth0", host.namespace, host.ip, f"port{number}")
            self._hosts[name] = host
        return self._hosts[name]

    def heal(self) -> None:
        """Undo every cut, and whatever else loses packets."""
        self._losses = {how: set() for how in self._losses}
        self._apply_losses()

    def close(self) -> None:
        """Remove everything, and kill what still runs on the hosts: it would keep its namespace alive."""
        _remove(
            [name for name in _namespaces() if name.startswith(f"{self._stem}-")],
            [name for name in _links() if name == self._link],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plug_in(self, link: str, namespace: str | None, ip: str, port: str) -> None:
        """Lay a cable from the bridge to a namespace, or to this process's own where that is None."""
        within = ["-n", namespace] if namespace else []
        _ip([*within, "link", "add", link, "type", "veth", "peer", "name", port, "netns", self._switch])
        _ip([*within, "-batch", "-"], f"addr add {ip}/24 dev {link}\nlink set {link} up\n")
        _ip(["-n", self._switch, "link", "set", port, "master", "br0", "up"])

    def _lose(self, how: str, ways: Iterable[tuple[str, str]]) -> None:
        self._losses[how] |= set(ways)
        self._apply_losses()

    def _heal(self, ip: str) -> None:
        self._losses = {how: {way for way in ways if ip not in way} for how, ways in self._losses.items()}
        self._apply_losses()

    def _apply_losses(self) -> None:
        # nft applies its input as one transaction: at no moment in between is a standing cut open.
        lines = []
        for how, ways in self._losses.items():
            pairs = ", ".join(f"{source} . {target}" for source, target in sorted(ways))
            lines.append(f"flush set bridge zkt {how}\n")
            lines.append(f"add element bridge zkt {how} {{ {pairs} }}\n" if pairs else "")
        _run(["ip", "netns", "exec", self._switch, "nft", "-f", "-"], "".join(lines))


def sweep() -> None:
    """Remove what processes that are no more have left behind."""
    _remove(
        [name for name in _namespaces() if _is_stale(_NAMESPACE.match(name))],
        [name for name in _links() if _is_stale(_LINK.fullmatch(name))],
    )


def _is_stale(match: re.Match[str] | None) -> bool:
    return match is not None and not Path("/proc", match[1]).exists()


def _remove(namespaces: list[str], links: list[str]) -> None:
    # Someone else may be sweeping too, so that any of it may be gone already.
    for namespace in namespaces:
        for pid in _run(["ip", "netns", "pids", namespace], check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run(["ip", "netns", "delete", namespace], check=False)
    for link in links:
        _run(["ip", "link", "delete", link], check=False)


def _namespaces() -> list[str]:
    # A line may go on with "(id: 0)".
    return [line.split()[0] for line in _ip(["netns", "list"]).splitlines() if line]


def _links() -> list[str]:
    # A line begins with the index, the name and the peer, as in `12: eth0@if3: `.
    return [line.split()[1].split("@")[0].rstrip(":") for line in _ip(["-o", "link", "show"]).splitlines()]


def _free_net(start: int) -> str:
    used = _ip(["-o", "-4", "addr", "show"]) + _ip(["-4", "route", "show"])
    for number in range(256):
        net = f"10.201.{(start + number) % 256}"
        if f" {net}." not in f" {used}":
            return net
    raise RuntimeError("each of 10.201.0.0/24 to 10.201.255.0/24 is in use")


@contextlib.contextmanager
def _only_one_at_a_time() -> Iterator[None]:
    """Two processes that look for a free net at the same moment would find the same one."""
    with Path(tempfile.gettempdir(), "zkbeat-test-lan.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ip(arguments: list[str], stdin: str = "") -> str:
    return _run(["ip", *arguments], stdin)


def _run(argv: list[str], stdin: str = "", *, check: bool = True) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()}\n{stdin}")
    return done.stdout
