"""The command line: options, their help, and what becomes of errors.

Each failure that a user can cause ends as one line on standard error and an exit code; see docs/reference.md.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from zkbeat import __version__, start
from zkbeat.access import Access
from zkbeat.command import Launch, check_command, launch
from zkbeat.config import Config, access_from, check_root, election_name, read_file, resolve
from zkbeat.errors import ConfigError
from zkbeat.runtime import default_base

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EXIT_USAGE = 2
EXIT_NO_ENSEMBLE = 69
EXIT_INTERRUPTED = 130


def _read_config(context: typer.Context, path: Optional[Path]) -> Optional[Path]:  # noqa: UP045
    """Let the file stand behind flags and environment: what they lack is looked for in the default map."""
    if path is not None:
        options = (p for command in _commands().values() for p in command.params if p.param_type_name == "option")
        known = {option.name for option in options}
        context.default_map = read_file(path, known - {"config", "version"})
    return path


def _say_version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        print(f"zkbeat {__version__}")
        raise typer.Exit


def _option(flag: str, text: str) -> Any:
    return typer.Option(flag, envvar=f"ZKBEAT_{flag.strip('-').replace('-', '_').upper()}", help=text)


Text = Optional[str]  # noqa: UP045
Number = Optional[float]  # noqa: UP045


def _ensemble_options(
    *,
    hosts: Annotated[
        Text, _option("--hosts", "The ensemble, host:port,host:port[/chroot]. Default: 127.0.0.1:2181.")
    ] = None,
    name: Annotated[
        Text,
        _option(
            "--name", "The election. All nodes with one name share one leader. Default: the app of `celery -A APP`."
        ),
    ] = None,
    root: Annotated[
        Text, _option("--root", "The path in ZooKeeper below which elections are kept. Default: /zkbeat.")
    ] = None,
    session_timeout: Annotated[Number, _option("--session-timeout", "Seconds, at least 2. Default: 10.")] = None,
    auth_scheme: Annotated[
        Text,
        _option(
            "--auth-scheme",
            "digest (the default, with a user) or sasl. The password: ZKBEAT_AUTH_PASSWORD or the file.",
        ),
    ] = None,
    auth_user: Annotated[Text, _option("--auth-user", "The user.")] = None,
    tls: Annotated[
        bool, _option("--tls", "Connect with TLS. The servers' certificates and host names are always verified.")
    ] = False,
    tls_ca: Annotated[Text, _option("--tls-ca", "The CA certificates (PEM). Default: the system's.")] = None,
    tls_cert: Annotated[Text, _option("--tls-cert", "Our certificate (PEM).")] = None,
    tls_key: Annotated[
        Text, _option("--tls-key", "Its key (PEM). The key's password: ZKBEAT_TLS_KEY_PASSWORD or the file.")
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--config",
            envvar="ZKBEAT_CONFIG",
            help="A TOML file with options: flags and environment win over it.",
            callback=_read_config,
            readable=False,  # nor does typer look itself: it would call the same fault a usage error
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Declare the options that all commands share."""


def _command(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a function a command that also has the shared options, and finds the values of all of them in `given`."""

    def declare(function: Callable[..., int]) -> Callable[..., int]:
        shared = inspect.signature(_ensemble_options, eval_str=True).parameters
        own = inspect.signature(function, eval_str=True).parameters
        passed = [parameter for parameter in own.values() if parameter.name != "given"]

        def command(**values: Any) -> int:
            mine = {key: values[key] for key in own if key in values}
            return function(**mine, given={key: value for key, value in values.items() if key != "context"})

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*shared.values(), *passed])  # type: ignore[attr-defined]
        app.command(name)(command)
        return function

    return declare


@_command("run")
def run(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    id: Annotated[Text, _option("--id", "What this node is called. Default: the host name.")] = None,  # noqa: A002, ARG001
    runtime_dir: Annotated[  # noqa: ARG001
        Text,
        _option("--runtime-dir", "A private directory on this node. Default: /run/zkbeat/NAME, or as your user may."),
    ] = None,
    lease: Annotated[  # noqa: ARG001
        Number,
        _option(
            "--lease",
            "Seconds a leader may go without renewing before its child is dead. "
            "Default, and at most: two thirds of the session timeout.",
        ),
    ] = None,
    stop_timeout: Annotated[  # noqa: ARG001
        Number, _option("--stop-timeout", "Seconds between TERM and KILL when the child is to stop. Default: 10.")
    ] = None,
    connect_timeout: Annotated[  # noqa: ARG001
        Number,
        _option(
            "--connect-timeout", "Give up (69) if there is no ZooKeeper within these seconds. Default: keep trying."
        ),
    ] = None,
    on_exit: Annotated[  # noqa: ARG001
        Text,
        _option(
            "--on-exit",
            "When the child ends by itself: rejoin (back off, at the end of the line) or exit (with its code). "
            "Default: rejoin.",
        ),
    ] = None,
    strict: Annotated[bool, _option("--strict", "Refuse to run beside a leader that runs another command.")] = False,  # noqa: ARG001
    max_clock_offset: Annotated[  # noqa: ARG001
        Number,
        _option(
            "--max-clock-offset",
            "Do not lead while the clock is further off ZooKeeper's, in seconds. Default: no limit.",
        ),
    ] = None,
    no_launcher: Annotated[  # noqa: ARG001
        bool,
        _option(
            "--no-launcher", "Start celery beat just as it is: its ticks are not watched, and it carries no fence."
        ),
    ] = False,
    preload: Annotated[  # noqa: ARG001
        bool,
        _option("--preload", "Load celery and the app on the standby in advance, for the price of their memory."),
    ] = False,
    max_silence: Annotated[  # noqa: ARG001
        Number,
        _option(
            "--max-silence",
            "Seconds that celery beat may owe a tick before it is not ready, and stuck. At least 1. Default: 20.",
        ),
    ] = None,
    restart_stuck: Annotated[  # noqa: ARG001
        bool, _option("--restart-stuck", "End the term of a beat that is stuck, so that another node tries.")
    ] = False,
    log_format: Annotated[Text, _option("--log-format", "human or json. Default: human.")] = None,  # noqa: ARG001
    log_level: Annotated[Text, _option("--log-level", "debug, info, warning or error. Default: info.")] = None,  # noqa: ARG001
    dev: Annotated[bool, _option("--dev", "Start, or join, a ZooKeeper on this machine, to try things out.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Say which zkbeat this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> int:
    """Run COMMAND on exactly one of all nodes that run this: zkbeat [OPTIONS] -- COMMAND [ARGS]...

    Beside it: zkbeat health, status, step-down, pause, resume, reload, doctor, demo, schedule; each has a --help.
    """
    command: list[str] = context.obj
    if context.args:
        raise ConfigError(_explain_words(context.args, command))
    check_command(command)
    dev_pid = None
    if dev:
        hosts, dev_pid = _dev_server()
        given = {**given, "hosts": hosts}
    config = resolve(given, context.default_map or {}, os.environ, command)
    _become_sidecar(config, command, launch(command) if config.launcher else Launch(command), dev_pid)


def _explain_words(words: list[str], command: list[str]) -> str:
    """Say what is wrong with words where only options may stand."""
    start = f"cannot understand {words[0]!r}"
    near = difflib.get_close_matches(words[0], ["health", *(_commands().keys() - {"run"})], n=1)
    if near:
        return f"{start}; did you mean zkbeat {near[0]}?"
    if command:
        return f"{start}: only options may stand before the two dashes"
    return f"{start}: the command goes behind two dashes, as in: zkbeat -- {shlex.join(words)}"


def _become_sidecar(config: Config, command: list[str], how: Launch, dev_pid: int | None) -> NoReturn:
    """Go on as the sidecar, in this process but without what the command line needed: half of the memory.

    The configuration, which holds the secrets, goes through a file without a name.
    """
    order = {"config": config.to_json(), "command": command, "launch": asdict(how), "dev_pid": dev_pid}
    handed_over = json.dumps(order).encode()
    nameless = os.fdopen(os.memfd_create("zkbeat"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()  # noqa: SIM115
    with nameless as file:
        file.write(handed_over)
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        shown = ["--name", config.name, "--", *command]  # for whoever looks at the process list
        arguments = start.command("sidecar", str(file.fileno()), *shown)
        os.execve(sys.executable, arguments, start.environment(os.environ))  # noqa: S606


def _dev_server() -> tuple[str, int | None]:
    """Return the hosts of the development server, and its pid if it was started just now."""
    from zkbeat import dev

    try:
        server = dev.join_or_start(default_base() / "dev-zookeeper")
    except (dev.NoZooKeeperError, dev.ServerError) as error:
        raise ConfigError(str(error), EXIT_NO_ENSEMBLE) from None
    return f"127.0.0.1:{dev.DEV_PORT}", server.pid if server is not None else None


def _where(context: typer.Context, given: Mapping[str, Any]) -> tuple[Access, str, str | None]:
    """Return the ensemble, the root path and the election's name, if one is named."""
    access = access_from(given, context.default_map or {}, os.environ)
    name = given.get("name")
    return access, check_root(given.get("root") or "/zkbeat"), election_name(name, []) if name is not None else None


@_command("status")
def status(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it, until interrupted.")] = False,
) -> int:
    """Show who leads, who stands by, and the last hand-overs. Exits 1 if nobody leads, 69 without ZooKeeper."""
    from zkbeat import operate

    return operate.status(*_where(context, given), as_json=as_json, watch=watch)


@_command("step-down")
def step_down(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until another term has begun.")] = False,
) -> int:
    """Have the leader stop its child and go to the end of the line."""
    from zkbeat import operate

    return operate.step_down(*_where(context, given), wait=wait)


@_command("pause")
def pause(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    reason: Annotated[Text, typer.Option("--reason", help="Why, for whoever looks at the status.")] = None,
) -> int:
    """Have nobody run the command, until `zkbeat resume`."""
    from zkbeat import operate

    return operate.set_paused(*_where(context, given), paused=True, reason=reason)


@_command("resume")
def resume(*, given: Mapping[str, Any], context: typer.Context) -> int:
    """End a pause."""
    from zkbeat import operate

    return operate.set_paused(*_where(context, given), paused=False, reason=None)


@app.command()
def reload(
    *,
    name: Annotated[Text, _option("--name", "Which election, if several run on this node.")] = None,
    runtime_dir: Annotated[Text, _option("--runtime-dir", "Where the sidecar's socket is.")] = None,
) -> int:
    """Load the app anew, after a deploy, in the process that waits with it on this node (--preload)."""
    from zkbeat import operate_here

    return operate_here.reload(name, runtime_dir)


@_command("doctor")
def doctor(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    lease: Annotated[Number, _option("--lease", "The lease that is to be used, in seconds.")] = None,
) -> int:
    """Check everything that zkbeat needs: zkbeat doctor [OPTIONS] [-- COMMAND [ARGS]...].

    Exits 0 if all is well, 1 if something is not; each line that fails says what to do.
    """
    from zkbeat import doctor as checks

    access, root, _ = _where(context, given)
    return checks.examine(access, root, lease, context.obj)


@app.command()
def demo(
    *,
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes.", min=2, max=9)] = 3,
) -> int:
    """Three nodes on this machine round a real ZooKeeper: kill the leader, and watch another take over."""
    from zkbeat import demo as show

    return show.run(nodes)


@app.command("schedule")
def about_schedule(
    what: Annotated[Text, typer.Argument(help="list, show, run, pause, resume or import.", show_default=False)] = None,
) -> int:
    """Look at the schedule that `celery beat -S zookeeper` keeps, and ask for something. Each has a --help of its own.

    \b
    list               all entries, with when each is due next
    show ENTRY         everything about one
    run ENTRY          have it sent once, now
    pause ENTRY...     hold entries back (all of beat: zkbeat pause)
    resume ENTRY...    let them go
    import SOURCE      take over the last runs from another scheduler of celery's
    """  # noqa: D301  # click's own mark: what follows is not folded
    known = [name.partition(" ")[2] for name in _commands() if name.startswith("schedule ")]
    if what is None:
        raise ConfigError(f"zkbeat schedule what? Say {', '.join(known)}")
    near = difflib.get_close_matches(what, known, n=1)
    hint = f"did you mean zkbeat schedule {near[0]}?" if near else f"say {', '.join(known)}"
    raise ConfigError(f"cannot understand {what!r}; {hint}")


_Json = Annotated[bool, typer.Option("--json", help="For machines.")]
_Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="The entry's name.", show_default=False)]
_Entries = Annotated[list[str], typer.Argument(metavar="ENTRY...", help="Their names.", show_default=False)]


@_command("schedule list")
def schedule_list(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    gone: Annotated[bool, typer.Option("--all", help="Also entries that no app has any more.")] = False,
    as_json: _Json = False,
) -> int:
    """Show the entries of the schedule in ZooKeeper, with when each is due next. Exits 1 if there is none."""
    from zkbeat.schedule import operate

    return operate.show_all(*_where(context, given), gone=gone, as_json=as_json)


@_command("schedule show")
def schedule_show(*, given: Mapping[str, Any], context: typer.Context, entry: _Entry, as_json: _Json = False) -> int:
    """Show everything about one entry: what is owed, what was asked for, who holds it back."""
    from zkbeat.schedule import operate

    return operate.show_one(*_where(context, given), entry, as_json=as_json)


@_command("schedule run")
def schedule_run(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    entry: _Entry,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it was sent, for a minute at most.")] = False,
    as_json: _Json = False,
) -> int:
    """Have the leader send an entry's task once, now; its own due times stay as they are."""
    from zkbeat.schedule import operate

    return operate.run(*_where(context, given), entry, wait=wait, as_json=as_json)


@_command("schedule pause")
def schedule_pause(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    entries: _Entries,
    reason: Annotated[Text, typer.Option("--reason", help="Why, for whoever looks at the schedule.")] = None,
    as_json: _Json = False,
) -> int:
    """Hold single entries back: nothing of them is sent when due, until `zkbeat schedule resume`.

    Beat goes on with all others; `zkbeat pause` stops it as a whole.
    """
    from zkbeat.schedule import operate

    return operate.pause(*_where(context, given), entries, reason=reason, as_json=as_json)


@_command("schedule resume")
def schedule_resume(
    *, given: Mapping[str, Any], context: typer.Context, entries: _Entries, as_json: _Json = False
) -> int:
    """Let entries go that are held back; what they missed is up to zkbeat_catch_up."""
    from zkbeat.schedule import operate

    return operate.resume(*_where(context, given), entries, as_json=as_json)


@_command("schedule import")
def schedule_import(
    *,
    given: Mapping[str, Any],
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="shelve, django or redbeat.", show_default=False)],
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="FILE", help="Of a shelve: celery's celerybeat-schedule.", show_default=False),
    ] = None,
    app: Annotated[
        Text, typer.Option("--app", "-A", help="The Celery app, as with celery -A; redbeat needs it.")
    ] = None,
    definitions: Annotated[
        bool,
        typer.Option("--definitions", help="Only print the entries as Python, of django and redbeat; write nothing."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be imported.")] = False,
    as_json: _Json = False,
) -> int:
    """Take over last runs and counts from celery's own scheduler, django-celery-beat or RedBeat.

    Stop the old beat first. The first leader with -S zookeeper then goes on from there, skips nothing and repeats
    nothing. An entry whose run in ZooKeeper is later is kept as it is.
    """
    from zkbeat.schedule import moving_in

    order = moving_in.Order(source, file, app, definitions, dry_run, as_json)
    return moving_in.move_in(*_where(context, given), order)


def _commands() -> dict[str, Any]:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def main(what: str, arguments: list[str], command: list[str]) -> int:
    """Run one subcommand, or "run"; return the exit code."""
    selected = _commands()[what]
    name = "zkbeat" if what == "run" else f"zkbeat {what}"
    selected.allow_extra_args = what == "run"  # to say where the command belongs, which ends our options
    selected.allow_interspersed_args = what != "run"
    try:
        code = selected.main(arguments, prog_name=name, standalone_mode=False, obj=command)
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(" ".join(message.split()), EXIT_USAGE)
    except ConfigError as error:
        return _complain(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _complain(message: str, exit_code: int) -> int:
    print(f"zkbeat: {message}", file=sys.stderr)
    return exit_code
