"""The wrapped command: what it is, whether it can be run, and whether it is a beat that the launcher can start."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zkbeat import __version__
from zkbeat.errors import ConfigError

ASK_WITHIN_S = 15.0
"""How long another interpreter may take to say whether it can import zkbeat."""

_VALUED = ("-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir")
"""The options of `celery` itself that take a word of their own (celery/bin/celery.py)."""

_ASK = """\
import sys
del sys.path[0]  # the working directory, which a script does not have there
import celery, zkbeat, zkbeat.launcher
print(zkbeat.__version__, zkbeat.launcher.__path__[0], sep="\\n")
"""


@dataclass(frozen=True)
class Launch:
    """How the child is started: through the launcher, or, with a reason, just as it is."""

    argv: list[str]
    why_not: str | None = None
    """Why not through the launcher, though it is a beat; None if it is, or if that was not to be expected."""
    launched: bool = False


def celery_app(command: Sequence[str]) -> str | None:
    """Return APP of `celery -A APP ...`, however the option is written and celery is called."""
    words = list(command)
    if not _is_celery(words):
        return None
    for at, word in enumerate(words):
        if word in {"-A", "--app"}:
            return words[at + 1] if at + 1 < len(words) else None
        if word.startswith("--app="):
            return word[len("--app=") :]
        if word.startswith("-A") and word != "-A":
            return word[2:]
    return None


def _is_celery(words: Sequence[str]) -> bool:
    if not words:
        return False
    if os.path.basename(words[0]) == "celery":  # noqa: PTH119  # a word, not a path of ours
        return True
    runs_module = re.fullmatch(r"python[\d.]*", os.path.basename(words[0]))  # noqa: PTH119
    return bool(runs_module) and any(pair == ("-m", "celery") for pair in zip(words, words[1:]))  # noqa: B905, RUF007


def check_command(command: Sequence[str]) -> None:
    """Refuse what cannot be run, or would escape from its guard. Raises ConfigError (2, 126, 127).

    Done at the start, on the standby too: not at the first hand-over.
    """
    if not command:
        raise ConfigError("no command: write it behind two dashes, as in: zkbeat -- celery -A proj beat")
    program = command[0]
    if "\0" in "".join(command):
        raise ConfigError("the command contains a NUL byte")
    found = _find(program)
    if found is None:
        raise ConfigError(f"the command {program!r} is not found", 127)
    if not os.access(found, os.X_OK) or Path(found).is_dir():
        raise ConfigError(f"the command {program!r} is not executable", 126)
    if os.geteuid() != 0 and Path(found).stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise ConfigError(
            f"the command {program!r} changes its user, and this one could not kill it when the lease runs out: "
            "run zkbeat itself as that user"
        )
    if not _is_celery(command):
        return
    words = set(command)
    detach = {"--detach", "-D"} if "worker" in words else {"--detach"}
    if words & detach or any(word.startswith("--detach=") for word in command):
        raise ConfigError(
            "with --detach celery leaves for the background, where nobody can stop it when the lease runs out: "
            "drop --detach"
        )
    if "worker" in words and any(word == "--beat" or re.match("-[CDEq]*B", word) for word in command):
        raise ConfigError(
            "celery worker -B runs a beat inside a worker, and only one node would have a worker: "
            "run the workers by themselves, without -B, and `celery beat` under zkbeat"
        )
    if "multi" in words:
        raise ConfigError("celery multi leaves for the background, where nobody can stop it: run `celery beat` itself")


def _find(program: str) -> str | None:
    if "/" in program:
        return program if Path(program).exists() else None
    return shutil.which(program)


def launch(command: Sequence[str]) -> Launch:
    """Say how to start the command: a `celery ... beat` goes through the launcher, where its interpreter has zkbeat.

    Runs that interpreter, if it is not ours, to find that out.
    """
    words = list(command)
    if not _is_celery(words) or _subcommand(words) != "beat":
        return Launch(words)
    interpreter, script, arguments = _interpreter(words)
    if interpreter is None:
        return Launch(words, f"{words[0]} is no Python script whose interpreter could be asked for zkbeat")
    package, why_not = _launcher_of(interpreter[0])
    if package is None:
        return Launch(words, why_not)
    return Launch([*interpreter, str(package / "__main__.py"), script, *arguments], launched=True)


def _subcommand(words: Sequence[str]) -> str | None:
    """Return the subcommand of `celery OPTIONS SUBCOMMAND ...`, or of `python -m celery ...`."""
    rest = list(words[1:])
    if "-m" in rest and os.path.basename(words[0]) != "celery":  # noqa: PTH119  # a word, not a path of ours
        rest = rest[rest.index("-m") + 2 :]
    while rest:
        word = rest.pop(0)
        if word in _VALUED:
            rest = rest[1:]
        elif not word.startswith("-"):
            return word
    return None


def _interpreter(words: list[str]) -> tuple[list[str] | None, str, list[str]]:
    """Return the interpreter with its own options, what is argv[0] to celery, and the arguments that follow."""
    if os.path.basename(words[0]) != "celery":  # noqa: PTH119
        at = words.index("-m")
        found = _find(words[0])
        return [found, *words[1:at]] if found else None, "-m", words[at + 2 :]
    script = _find(words[0])
    if script is None:
        return None, "", []
    try:
        with open(script, "rb") as file:  # noqa: PTH123  # as it was found
            first = file.readline(4096).decode("utf-8", "surrogateescape")
    except OSError:
        return None, "", []
    shebang = first[2:].split() if first.startswith("#!") else []
    if shebang and os.path.basename(shebang[0]) == "env":  # noqa: PTH119
        shebang = [found for word in shebang[1:2] if (found := _find(word))]
    if not shebang or not re.fullmatch(r"(python|pypy)[\d.]*", os.path.basename(shebang[0])):  # noqa: PTH119
        return None, "", []
    return shebang, script, words[1:]


def _launcher_of(interpreter: str) -> tuple[Path | None, str | None]:
    """Return the launcher's directory as that interpreter sees it, or why there is none."""
    if os.path.dirname(interpreter) == os.path.dirname(sys.executable):  # noqa: PTH120  # one environment has one bin
        return Path(__file__).parent / "launcher", None
    try:
        asked = subprocess.run(
            [interpreter, "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{interpreter} cannot be asked for zkbeat: {error}"
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return None, f"{interpreter} cannot import zkbeat ({last}): pip install zkbeat there"
    version, directory = asked.stdout.splitlines()[:2]
    if version != __version__:
        return None, f"{interpreter} has zkbeat {version}, and this is {__version__}: install the same there"
    return Path(directory), None
