"""A real ZooKeeper on this machine, for `zkbeat --dev`, `zkbeat demo` and the tests. Not for production.

Its one job: find a distribution that is installed here and run one server of it as a child process.
It knows ZooKeeper's configuration file and its four letter words, and nothing of elections or leases.
It must never be imported by the sidecar's own path to a production ensemble.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

DEV_PORT = 21810
"""Where `--dev` listens: not 2181, so that it never gets in the way of, or is taken for, a real ensemble."""

_LOOPBACK = "127.0.0.1"

# Below 32768, where Linux begins to number outgoing connections: a client that keeps knocking at the port of
# a server that is down could otherwise be given that very port, and so connect to itself and keep the server
# from coming back.
_FREE_PORTS = range(22000, 32000)

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.05
_ASK_TIMEOUT_S = 2.0
_LONGEST_ANSWER = 1 << 20
_LONGEST_TAIL = 64 * 1024

_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})

_DEBIAN_JARS = Path("/usr/share/java")
_USUAL_HOMES = (
    Path("/opt/zookeeper"),
    Path("/opt/homebrew/opt/zookeeper/libexec"),
    Path("/usr/local/opt/zookeeper/libexec"),
)

_JVM_OPTIONS = (
    # A quick start and a small footprint count here, throughput does not.
    "-Xmx128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dzookeeper.jmx.log4j.disable=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.showShortLogName=true",
)

_MAIN_CLASS = "org.apache.zookeeper.server.quorum.QuorumPeerMain"


class NoZooKeeperError(Exception):
    """There is no ZooKeeper, or no Java to run it, on this machine; the message says what to install."""


class ServerError(Exception):
    """A server did not start or does not serve; the message says why and ends with its log."""


@dataclass(frozen=True)
class Distribution:
    """An installed ZooKeeper: the `java` that runs it, its class path, and where it was found."""

    java: str
    classpath: str
    origin: str


def find_distribution() -> Distribution:
    """Find an installed ZooKeeper: `ZOOKEEPER_HOME`, Debian's package, then the usual places.

    Raises NoZooKeeperError.
    """
    classpath, origin = _find_classpath()
    return Distribution(_find_java(), classpath, origin)


def free_ports(count: int, bind: str = _LOOPBACK) -> list[int]:
    """Return that many different TCP ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(len(_FREE_PORTS)):
            if len(ports) == count:
                return ports
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As ZooKeeper does itself: connections that linger in TIME_WAIT do not take a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = secrets.choice(_FREE_PORTS)
            with contextlib.suppress(OSError):
                sock.bind((bind, port))
                # Two sockets with SO_REUSEADDR may both be bound; only one of them may listen.
                sock.listen(1)
                ports.append(port)
    raise ServerError(f"no {count} free ports on {bind} between {_FREE_PORTS.start} and {_FREE_PORTS.stop}")


class Server:
    """One ZooKeeper server as a child process; what it writes is kept in `directory`, also over a restart.

    `extra` adds to the configuration file, or overrides what is in it.
    `myid` makes it a member of the ensemble that `extra` describes with its `server.N` lines.
    `prefix` is put in front of the command (`ip netns exec NAME`).
    As a context manager it is started, waited for, and stopped at the end.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        tick_ms: int = 2000,
        bind: str = _LOOPBACK,
        extra: Mapping[str, str] = _NO_OPTIONS,
        myid: int | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.directory = directory.resolve()
        self.port = port or free_ports(1, bind)[0]
        self.tick_ms = tick_ms
        self._bind = bind
        self._extra = dict(extra)
        self._myid = myid
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hosts(self) -> str:
        """Its address as a ZooKeeper client takes it, `host:port`."""
        return f"{self._bind}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process exists, suspended or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest start, which is also its process group's."""
        if self._process is None:
            raise ServerError(f"the ZooKeeper of {self.directory} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start the process, on the data of an earlier start if there is any; returns before it serves."""
        if self.running:
            raise ServerError(f"the ZooKeeper of {self.directory} already runs, pid {self.pid}")
        distribution = find_distribution()
        config = self._write_config()
        argv = [*self._prefix, distribution.java, *_JVM_OPTIONS, "-cp", distribution.classpath, _MAIN_CLASS]
        with self._log.open("ab") as log:
            # A session of its own, so that a Ctrl-C in the terminal does not reach it,
            # and so that one signal to the group does, whatever the prefix is.
            self._process = subprocess.Popen(
                [*argv, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until it serves requests; raises ServerError with its log when it died or took too long."""
        deadline = time.monotonic() + timeout_s
        # ZooKeeper 3.8 can forget to close the connection of a question that comes before it serves: nothing
        # follows on that one, so ask anew soon, and be more patient each time for the sake of a slow machine.
        patience_s = _ASK_TIMEOUT_S / 16
        while True:
            if self._process is None or self._process.poll() is not None:
                raise self._error(self._how_it_ended())
            if self._serves(patience_s):
                return
            if time.monotonic() >= deadline:
                raise self._error(f"did not serve within {timeout_s:g} s")
            time.sleep(_POLL_S)
            patience_s = min(_ASK_TIMEOUT_S, patience_s * 1.2)

    def ask(self, word: str, timeout_s: float = _ASK_TIMEOUT_S) -> str:
        """Send a four letter word and return the answer; raises OSError when there is none in time."""
        return _ask(self._bind, self.port, word, timeout_s)

    def stop(self) -> None:
        """End it with SIGTERM, or with SIGKILL where that does not do; returns when it is dead."""
        self._signal(signal.SIGTERM)
        # A suspended process takes no SIGTERM before it is resumed.
        self._signal(signal.SIGCONT)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it with SIGKILL; returns when it is dead."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def suspend(self) -> None:
        """Freeze it with SIGSTOP: its connections stay open and nothing answers on them."""
        self._signal(signal.SIGSTOP)
        # Sent is not stopped: its other threads may still answer for a moment.
        # WNOWAIT because, should it have died, reaping it is Popen's.
        if self.running:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Thaw it again."""
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of what it has logged."""
        try:
            with self._log.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LONGEST_TAIL))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.directory / "zookeeper.log"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _write_config(self) -> Path:
        self._data.mkdir(parents=True, exist_ok=True)
        if self._myid is not None:
            (self._data / "myid").write_text(f"{self._myid}\n", encoding="ascii")
        options = {
            "dataDir": str(self._data),
            "clientPort": str(self.port),
            "clientPortAddress": self._bind,
            "tickTime": str(self.tick_ms),
            "initLimit": "10",
            "syncLimit": "5",
            "maxClientCnxns": "0",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
            "autopurge.purgeInterval": "1",
            **self._extra,
        }
        text = "".join(f"{key}={value}\n" for key, value in options.items()).replace("\\", "\\\\")
        config = self.directory / "zoo.cfg"
        # It is read as a Java properties file: Latin-1, and \uXXXX for the rest.
        config.write_bytes(text.encode("latin-1", "backslashreplace"))
        return config

    def _serves(self, patience_s: float) -> bool:
        try:
            if not self.ask("srvr", patience_s).startswith("Zookeeper version:"):
                return False
            # Another server may have taken the port while this one was starting, and answer in its place.
            # Java spells a path in its own locale, so that only a plain one can be compared.
            return not str(self._data).isascii() or f"dataDir={self._data}/" in self.ask("conf", patience_s)
        except OSError:
            return False

    def _error(self, what: str) -> ServerError:
        return ServerError(f"ZooKeeper at {self.hosts} {what}; its log:\n{self.log_tail()}")

    def _how_it_ended(self) -> str:
        code = None if self._process is None else self._process.returncode
        if code is None:
            return "was never started"
        return f"was killed by signal {-code}" if code < 0 else f"exited with {code}"

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def join_or_start(directory: Path, *, port: int = DEV_PORT, timeout_s: float = _READY_TIMEOUT_S) -> Server | None:
    """Return None when a ZooKeeper already listens on the loopback's `port`, else one started there.

    It outlives the process that started it, and whoever comes later joins it.
    Processes that come at the same moment agree over a lock in `directory`.
    Raises NoZooKeeperError, and ServerError also where something else has the port.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock", timeout_s):
        if _zookeeper_listens(port):
            return None
        server = Server(directory, port=port)
        try:
            server.start()
            server.wait_ready(timeout_s)
        except BaseException as error:
            server.kill()
            # Another directory's server may have been quicker to the port.
            if isinstance(error, ServerError) and _zookeeper_listens(port):
                return None
            raise
        return server


def _find_java() -> str:
    home = os.environ.get("JAVA_HOME")
    # An empty JAVA_HOME counts as none.
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    java = java or shutil.which("java")
    if java is None:
        raise NoZooKeeperError(
            "ZooKeeper needs Java and there is none: install it "
            "(Debian, Ubuntu: apt install default-jre-headless) or set JAVA_HOME"
        )
    return java


def _find_classpath() -> tuple[str, str]:
    home = os.environ.get("ZOOKEEPER_HOME")
    if home:
        classpath = _classpath_of(Path(home))
        if classpath is None:
            raise NoZooKeeperError(f"ZOOKEEPER_HOME={home} holds no ZooKeeper: no zookeeper*.jar, no lib with one")
        return classpath, f"ZOOKEEPER_HOME={home}"
    jar = _DEBIAN_JARS / "zookeeper.jar"
    if jar.exists():
        # The jar's manifest names what it needs, all but the part that logging goes to, and a part of netty (for TLS).
        parts = (jar, _DEBIAN_JARS / "slf4j-simple.jar", _DEBIAN_JARS / "netty-codec.jar")
        return ":".join(map(str, parts)), f"Debian's package, {jar}"
    for usual in _USUAL_HOMES:
        classpath = _classpath_of(usual)
        if classpath is not None:
            return classpath, str(usual)
    raise NoZooKeeperError(
        "no ZooKeeper on this machine: install one "
        "(Debian, Ubuntu: apt install zookeeper; macOS: brew install zookeeper), "
        "or unpack a release of https://zookeeper.apache.org and set ZOOKEEPER_HOME to where it is"
    )


def _classpath_of(home: Path) -> str | None:
    # Releases from 3.5.5 on have every jar in lib/, earlier ones their own beside it.
    if not any(True for folder in (home / "lib", home) for _ in folder.glob("zookeeper*.jar")):
        return None
    # conf/ for its logging configuration: without one, logback logs everything there is.
    return ":".join(str(home.resolve() / part) for part in ("conf", "lib/*", "*"))


@contextlib.contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    with path.open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ServerError(
                        f"another process has been starting a ZooKeeper for {timeout_s:g} s: it holds {path}"
                    ) from None
            time.sleep(_POLL_S)
        yield


def _zookeeper_listens(port: int) -> bool:
    try:
        answer = _ask(_LOOPBACK, port, "srvr", _ASK_TIMEOUT_S)
    except ConnectionRefusedError:
        return False
    except OSError:
        answer = ""
    # In turn: a server that serves, one that does not yet, and one that answers no such words.
    if answer.startswith("Zookeeper version:") or "ZooKeeper instance" in answer or "whitelist" in answer:
        return True
    raise ServerError(f"{_LOOPBACK}:{port} is taken by something that does not answer like ZooKeeper")


def _ask(host: str, port: int, word: str, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    answer = b""
    with socket.create_connection((host, port), timeout_s) as connection:
        connection.sendall(word.encode("ascii"))
        while len(answer) < _LONGEST_ANSWER:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = connection.recv(65536)
            if not chunk:
                break
            answer += chunk
    return answer.decode(errors="replace")
