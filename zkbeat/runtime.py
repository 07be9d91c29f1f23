"""The runtime directory of one zkbeat on one node: the host lock, the health socket, the lease, the noted znode.

It is private (0700, ours) because who may write there may speak for this node. Nothing in it needs to survive a reboot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path

EXIT_HELD = 75
EXIT_CONFIG = 78
EXIT_IO = 74

_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What mends itself, or is mended without touching zkbeat: a supervisor should try again."""

LOCK_WAIT_S = 5.0
"""How long to wait for the lock: an earlier life's guard needs about a second to end its child."""

LOCK_POLL_S = 0.05

SOCKET_PATH_AT_MOST = 100
"""sun_path holds 108 bytes on Linux, 104 on macOS."""


class RuntimeDirectoryError(Exception):
    """The runtime directory cannot be used; the message says why and what to do."""

    def __init__(self, message: str, exit_code: int = EXIT_CONFIG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_base() -> Path:
    """Return where runtime directories go by default, one per election's name."""
    if os.geteuid() == 0:
        return Path("/run/zkbeat")
    if "XDG_RUNTIME_DIR" in os.environ:
        return Path(os.environ["XDG_RUNTIME_DIR"]) / "zkbeat"
    return Path(f"/tmp/zkbeat-{os.getuid()}")  # noqa: S108  # checked to be ours, and private


def _failed(what: str, error: OSError) -> RuntimeDirectoryError:
    return RuntimeDirectoryError(f"{what}: {error.strerror}", EXIT_IO if error.errno in _PASSING else EXIT_CONFIG)


class RuntimeDirectory:
    """An open runtime directory. `acquire` must have succeeded before anything is started or deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_fd = -1

    @property
    def socket(self) -> Path:
        """Where `zkbeat health` asks."""
        return self.path / "health.sock"

    @property
    def pid_file(self) -> Path:
        """Who took the lock last; only for what is told to whoever does not get it."""
        return self.path / "pid"

    @property
    def lease(self) -> Path:
        """Where the guard publishes the deadlines."""
        return self.path / "lease"

    @property
    def pulse(self) -> Path:
        """Where a launched beat says how it is."""
        return self.path / "pulse"

    @property
    def place(self) -> Path:
        """Where a launched beat reads how to reach the ensemble: it holds the credentials."""
        return self.path / "place"

    @property
    def note(self) -> Path:
        """Where our election znode is noted."""
        return self.path / "znode.json"

    def prepare(self) -> None:
        """Make the directory, or check the one that is there.

        Raises RuntimeDirectoryError when it is not a directory, not ours, or not writable.
        """
        if len(os.fsencode(self.socket)) > SOCKET_PATH_AT_MOST:
            raise RuntimeDirectoryError(
                f"the runtime directory's path is too long for a socket in it: {self.path}; choose a shorter one"
            )
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            above, found = self.path.parent.stat(), self.path.lstat()
        except OSError as error:
            raise _failed(f"cannot make the runtime directory {self.path}", error) from None
        # Whose it is may put a directory of their own in the place of ours. (Not asked: whether others may write there.
        # A volume of Kubernetes' is root's and open to all, who are the one user of the container.)
        if above.st_uid not in {0, os.geteuid()}:
            raise RuntimeDirectoryError(
                f"another user (uid {above.st_uid}) may replace the runtime directory {self.path}: "
                f"{self.path.parent} must be yours or root's"
            )
        if stat.S_ISLNK(found.st_mode):
            raise RuntimeDirectoryError(f"the runtime directory {self.path} is a symbolic link: name a real directory")
        if not stat.S_ISDIR(found.st_mode):
            raise RuntimeDirectoryError(f"the runtime directory {self.path} is not a directory")
        if found.st_uid != os.geteuid():
            raise RuntimeDirectoryError(
                f"the runtime directory {self.path} belongs to another user (uid {found.st_uid}): choose your own"
            )
        try:
            self.path.chmod(0o700)
            trial = self.path / "trial"
            trial.write_bytes(b"x" * 4096)
            trial.unlink()
        except OSError as error:
            raise _failed(f"cannot write to the runtime directory {self.path}", error) from None

    def acquire(self) -> None:
        """Take the host lock, which proves that sidecar, guard and child of every earlier life are dead.

        It is the directory itself that is locked: a file in it could be deleted by what cleans up /tmp, and then be
        made and locked once more, while systemd-tmpfiles leaves a locked directory alone.
        The descriptor is inherited by guard and child. Raises RuntimeDirectoryError (75) if somebody keeps the lock.
        """
        try:
            self.lock_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(f"cannot open {self.path}", error) from None
        give_up_at = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise self._held() from None
                time.sleep(LOCK_POLL_S)
            else:
                break
        try:
            self.pid_file.write_text(f"{os.getpid()}\n")
            self.socket.unlink(missing_ok=True)  # the lock is ours, so nobody listens there
        except OSError as error:
            where = error.filename or self.pid_file
            raise _failed(f"cannot write to {where}", error) from None

    def _held(self) -> RuntimeDirectoryError:
        pid = "unknown"
        with contextlib.suppress(OSError):
            pid = self.pid_file.read_text(errors="replace")[:32].strip() or pid
        alive = pid.isdigit() and Path(f"/proc/{pid}").exists()
        holder = (
            f"zkbeat with pid {pid}" if alive else f"what is left of zkbeat with pid {pid} (its guard or its child)"
        )
        return RuntimeDirectoryError(
            f"another zkbeat uses the runtime directory {self.path}: {holder} holds its lock; "
            "stop that one, or give this one a --runtime-dir of its own",
            EXIT_HELD,
        )

    def write_place(self, data: bytes) -> None:
        """Write down how to reach the ensemble, for nobody but this user. Raises RuntimeDirectoryError."""
        new = self.place.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            new.touch(mode=0o600, exist_ok=False)
            new.write_bytes(data)
            new.replace(self.place)
        except OSError as error:
            raise _failed(f"cannot write to {self.place}", error) from None

    def write_note(self, znode: str, *, led: bool) -> str | None:
        """Note our election znode, to delete it at the next start if we are all killed; return an error's text."""
        new = self.note.with_suffix(".new")
        try:
            new.write_text(json.dumps({"znode": znode, "led": led, "boot": _boot()}))
            new.replace(self.note)
        except OSError as error:
            return error.strerror
        return None

    def read_note(self) -> tuple[str, bool] | None:
        """Return the znode that an earlier life left behind and whether it led with it, if it noted one.

        Only of this boot of this host: should the directory be on storage that hosts share, the host lock may not be.
        """
        try:
            note = json.loads(self.note.read_text())
            znode, led, boot = note["znode"], note["led"], note["boot"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        ours = isinstance(znode, str) and znode.startswith("/") and boot == _boot()
        return (znode, bool(led)) if ours else None


def _boot() -> str:
    """Return what tells this boot of this host from any other, as far as the platform says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
