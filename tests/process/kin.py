"""What `child.py` has noted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

_PROGRAM = str(Path(__file__).with_name("child.py"))


class Kin:
    """A child and those it starts, by name; `argv` runs them. With `shell`, behind `sh -c` that stays their parent."""

    def __init__(self, directory: Path, *words: str, shell: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._names = [word.rpartition(":")[2].partition("+")[0] for word in words]
        direct = [sys.executable, "-I", "-S", _PROGRAM, str(directory), *words]
        self.argv = ["sh", "-c", '"$@"; exit $?', "sh", *direct] if shell else direct

    def wait_ready(self, detail: Callable[[], object] | None = None) -> dict[str, int]:
        """Return everyone's pid, by name, once all of them are ready."""
        paths = [self._directory / name for name in self._names]
        wait_until(lambda: all(path.is_symlink() for path in paths), 10, f"{self._names} are ready", detail)
        return {path.name: int(path.readlink().name) for path in paths}

    def signals(self, name: str) -> list[str]:
        """Return the signals that one of them got, in order."""
        return [signal for signal, _ in self._noted(name)]

    def when(self, name: str, signal: str) -> float:
        """Return the instant (CLOCK_BOOTTIME) of the first one of these."""
        return next(at for found, at in self._noted(name) if found == signal)

    def forget(self) -> None:
        """Begin anew, for a child that is started again."""
        for path in self._directory.iterdir():
            path.unlink()

    def _noted(self, name: str) -> list[tuple[str, float]]:
        path = self._directory / "signals"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(signal, float(at)) for who, signal, at in lines if who == name]
