"""What users get wrong, through the real command line: one line that says it, the right exit code, no traceback."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.support.nodes import MODULE, SCRIPT, Family
from tests.support.waiting import wait_until
from zkbeat import cli
from zkbeat.__main__ import main
from zkbeat.dev import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NOBODY = 65534


@dataclass(frozen=True)
class Row:
    """One mistake. In `argv` and `file`, {tmp} is the test's directory, and what `files` names is in it."""

    name: str
    argv: tuple[str, ...]
    code: int
    says: str
    env: Mapping[str, str] = field(default_factory=dict)
    file: str | bytes | None = None


def run(argv: Sequence[str], env: Mapping[str, str] | None = None, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run zkbeat with these arguments, and nothing afterwards."""
    family = Family(env)
    try:
        return subprocess.run(
            argv, env=family.env, capture_output=True, text=True, timeout=20, check=False, errors="replace", **keywords
        )
    finally:
        family.kill_everything()


def assert_refused(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    shown = f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, shown
    assert len(done.stderr.splitlines()) == 1, shown
    assert done.stderr.startswith("zkbeat"), shown
    assert says in done.stderr, shown
    assert done.stdout == "", shown


def bad(name: str, *options: str, says: str, code: int = 2) -> Row:
    """Return a row for options of `zkbeat ... -- true`."""
    return Row(name, (*options, "--", "true"), code, says)


def bad_file(name: str, text: str | bytes, *, says: str, code: int = 78) -> Row:
    return Row(name, ("--config", "{tmp}/zkbeat.toml", "--", "true"), code, says, file=text)


def bad_hosts(hosts: str, says: str) -> Row:
    return bad(f"hosts {hosts!r}", "--name", "x", "--hosts", hosts, says=says)


def bad_celery(name: str, *words: str, says: str, code: int = 2) -> Row:
    return Row(name, ("--", *words), code, says)


ROWS = [
    Row("no arguments", (), 2, "no command: write it behind two dashes"),
    Row("nothing behind the dashes", ("--name", "x", "--"), 2, "no command"),
    Row("the dashes forgotten", ("celery", "-A", "proj", "beat"), 2, "as in: zkbeat -- celery -A proj beat"),
    Row("a subcommand misspelt", ("heath",), 2, "did you mean zkbeat health?"),
    Row("a word among the options", ("--name", "x", "proj", "--", "true"), 2, "only options may stand before"),
    bad("unknown option", "--hots", "x", says="--hosts"),
    bad("unknown option with a value", "--leas=3", says="--lease"),
    bad("an option without its value", "--name", "x", "--hosts", says="--hosts"),
    Row("unknown option of a subcommand", ("status", "--wach"), 2, "--watch"),
    # the file
    bad_file("unknown key", 'hots = "a:1"', says="did you mean hosts?"),
    bad_file("unknown key with dashes", "stop-timout = 3", says="did you mean stop-timeout?"),
    bad_file("not TOML", "hosts = [", says="is not valid TOML"),
    bad_file("not UTF-8", b"name = '\xff'", says="is not valid TOML"),
    bad_file("a table", "[hosts]\na = 1", says="hosts must be a plain value"),
    bad_file("no number", 'name = "x"\nsession-timeout = "soon"', says="session-timeout", code=2),
    bad_file("no boolean", 'name = "x"\ntls = "perhaps"', says="tls", code=2),
    bad_file("a NUL in the name", 'name = "a\\u0000b"', says="cannot be an election's name", code=2),
    bad("no such file", "--config", "{tmp}/missing.toml", says="missing.toml: No such file", code=78),
    bad("the file is a directory", "--config", "{tmp}", says="Is a directory", code=78),
    # hosts
    bad_hosts("a b:2181", "cannot understand 'a b:2181'"),
    bad_hosts("zk1:2181,,zk2:2181", "cannot understand ''"),
    bad_hosts("zk1:2181,", "cannot understand ''"),
    bad_hosts("", "cannot understand ''"),
    bad_hosts("zk1:port", "'port' is not a port"),
    bad_hosts("zk1:", "'' is not a port"),
    bad_hosts("zk1:0", "'0' is not a port"),
    bad_hosts("zk1:65536", "'65536' is not a port"),
    bad_hosts("zk1:²", "'²' is not a port"),
    bad_hosts("zk1:1:2", "'1:2' is not a port"),
    bad_hosts("zk://zk1:2181", "is not a port"),
    bad_hosts(":2181", "cannot understand ':2181'"),
    bad_hosts("::1", "cannot understand '::1'"),
    bad_hosts("zk1:2181/a//b", "is not a path"),
    bad_hosts("zk1:2181/a/", "is not a path"),
    # times
    *(
        bad(f"session timeout {value}", "--name", "x", f"--session-timeout={value}", says=says)
        for value, says in {
            "nan": "not nan",
            "inf": "not inf",
            "-5": "positive number of seconds, not -5",
            "0": "positive number of seconds, not 0",
            "1.9": "at least 2 s",
            "1e9": "up to a day",
            "soon": "--session-timeout",
            "": "--session-timeout",
        }.items()
    ),
    bad("lease too long", "--name", "x", "--lease", "6.7", says="at most two thirds of it, 6.667 s"),
    bad("lease too short", "--name", "x", "--lease", "0.5", says="at least 1 s"),
    bad("lease NaN", "--name", "x", "--lease", "nan", says="--lease"),
    bad("stop timeout negative", "--name", "x", "--stop-timeout=-1", says="--stop-timeout"),
    bad("connect timeout zero", "--name", "x", "--connect-timeout", "0", says="--connect-timeout"),
    bad("clock offset NaN", "--name", "x", "--max-clock-offset", "nan", says="--max-clock-offset"),
    Row("from the environment", ("--name", "x", "--", "true"), 2, "SESSION_TIMEOUT", {"ZKBEAT_SESSION_TIMEOUT": "x"}),
    # names and choices
    *(
        bad(f"name {name!r}", "--name", name, says="cannot be an election's name")
        for name in ("a/b", "", ".", "..", "a\nb", "a\x1bb", "x" * 101)
    ),
    bad("no name", says="which election? Give --name"),
    bad("id with a newline", "--name", "x", "--id", "a\nb", says="--id must be printable"),
    bad("relative root", "--name", "x", "--root", "zkbeat", says="--root must be an absolute path"),
    bad("on exit what", "--name", "x", "--on-exit", "restart", says="rejoin, exit"),
    bad("log format", "--name", "x", "--log-format", "xml", says="human, json"),
    bad("log level", "--name", "x", "--log-level", "loud", says="debug"),
    # the command
    Row("not found", ("--name", "x", "--", "no-such-command"), 127, "'no-such-command' is not found"),
    Row("not found by path", ("--name", "x", "--", "{tmp}/missing"), 127, "is not found"),
    Row("an empty word", ("--name", "x", "--", ""), 127, "'' is not found"),
    Row("not executable", ("--name", "x", "--", "{tmp}/text"), 126, "is not executable"),
    Row("a directory", ("--name", "x", "--", "{tmp}"), 126, "is not executable"),
    bad_celery("detached", "celery", "-A", "proj", "beat", "--detach", says="drop --detach"),
    bad_celery("detached worker", "celery", "-A", "proj", "worker", "-D", says="drop --detach"),
    bad_celery("detached module", sys.executable, "-m", "celery", "-A", "p", "beat", "--detach", says="drop --detach"),
    bad_celery("worker -B", "celery", "-A", "proj", "worker", "-B", says="without -B"),
    bad_celery("worker -EB", "celery", "-A", "proj", "worker", "-EB", says="without -B"),
    bad_celery("worker -Bl", "celery", "-A", "proj", "worker", "-Bl", "info", says="without -B"),
    bad_celery("worker --beat", "celery", "-A", "proj", "worker", "--beat", says="without -B"),
    bad_celery("multi", "celery", "multi", "start", "w1", says="celery multi"),
    bad_celery("celery without an app", "celery", "beat", says="which election?"),
    bad_celery("an app that is no name", "celery", "-A", "a/b", "beat", says="cannot be an election's name"),
    # security
    bad("user without password", "--name", "x", "--auth-user", "me", says="need a password", code=78),
    Row("password without user", ("--name", "x", "--", "true"), 78, "--auth-user", {"ZKBEAT_AUTH_PASSWORD": "p"}),
    bad("scheme", "--name", "x", "--auth-scheme", "kerberos", says="digest or sasl", code=78),
    bad("scheme alone", "--name", "x", "--auth-scheme", "digest", says="need a user", code=78),
    bad("password as a flag", "--name", "x", "--auth-password", "p", says="No such option"),
    bad("cert without key", "--name", "x", "--tls-cert", "{tmp}/text", says="belong together", code=78),
    bad("key without cert", "--name", "x", "--tls-key", "{tmp}/text", says="belong together", code=78),
    bad("CA missing", "--name", "x", "--tls-ca", "{tmp}/no.pem", says="--tls-ca: cannot read", code=78),
    bad("CA is no PEM", "--name", "x", "--tls-ca", "{tmp}/text", says="holds no certificates", code=78),
    bad(
        "cert is no PEM",
        *("--name", "x", "--tls-cert", "{tmp}/text", "--tls-key", "{tmp}/text"),
        says="are not a certificate and its key",
        code=78,
    ),
]


def fork_and_run(argv: Sequence[str], env: Mapping[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """As `run`, but with the imports done already: the table is long, and starting Python is what takes the time."""
    family = Family(env)
    with (directory / "out").open("w+b") as out, (directory / "err").open("w+b") as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _be_the_script(["zkbeat", *argv], family.env)
        try:
            status = wait_until(lambda: (ended := os.waitpid(pid, os.WNOHANG))[0] and ended, 20, "it has ended")[1]
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            family.kill_everything()
        texts = [stream.seek(0) or stream.read().decode(errors="replace") for stream in (out, err)]
    return subprocess.CompletedProcess(argv, os.waitstatus_to_exitcode(status), *texts)


def _be_the_script(argv: list[str], env: Mapping[str, str]) -> NoReturn:
    code = 1
    try:
        sys.argv, sys.stdout, sys.stderr = argv, os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(env)
        code = main()
    except BaseException:  # noqa: BLE001
        # As the interpreter itself does.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Have what the command line imports as it goes imported before the first fork."""
    cli.main("run", ["--name", "x", "--hosts", ":"], ["true"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_mistake_gets_one_line_that_says_it(row, tmp_path):
    (tmp_path / "text").write_text("not a program\n")
    (tmp_path / "celery").write_text("#!/bin/sh\n")
    (tmp_path / "celery").chmod(0o755)
    if row.file is not None:
        text = row.file if isinstance(row.file, bytes) else row.file.encode()
        (tmp_path / "zkbeat.toml").write_bytes(text)
    argv = [word.replace("{tmp}", str(tmp_path)) for word in row.argv]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **row.env}
    assert_refused(fork_and_run(argv, env, tmp_path), row.code, row.says)


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["python -m zkbeat", "zkbeat"])
def test_so_it_does_however_it_is_started(program):
    assert_refused(run([*program, "--hots", "x", "--", "true"]), 2, "--hosts")
    assert_refused(run([*program, "--name", "x", "--", "no-such-command"]), 127, "is not found")


@pytest.mark.parametrize("words", [("-nB1",), ("-QBlue",), ("-AMyBeat",)], ids=" ".join)
def test_a_b_that_is_part_of_an_options_value_is_no_beat(words, tmp_path):
    (tmp_path / "celery").write_text("#!/bin/sh\n")
    (tmp_path / "celery").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # Refused for the name, which is looked at after the command.
    done = fork_and_run(["--name", "a/b", "--", "celery", "worker", *words], env, tmp_path)
    assert_refused(done, 2, "cannot be an election's name")


@pytest.mark.parametrize(
    ("flag", "variable", "says"),
    [("1.3", "1.2", "1.3"), (None, "1.2", "1.2"), (None, None, "1.1"), ("1.3", None, "1.3")],
)
def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path, flag, variable, says):
    (tmp_path / "zkbeat.toml").write_text("session-timeout = 1.1\nname = 'x'\n")
    flags = ["--session-timeout", flag] if flag else []
    env = {"ZKBEAT_CONFIG": str(tmp_path / "zkbeat.toml")}
    env |= {"ZKBEAT_SESSION_TIMEOUT": variable} if variable else {}
    assert_refused(fork_and_run([*flags, "--", "true"], env, tmp_path), 2, f"a session timeout of {says} s")


def test_a_key_that_wants_a_password_is_refused_and_not_asked_for(tmp_path):
    from cryptography.hazmat.primitives import serialization  # takes a while
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "key.pem").write_bytes(key)
    options = ["--name", "x", "--tls-cert", str(tmp_path / "key.pem"), "--tls-key", str(tmp_path / "key.pem")]
    assert_refused(run([*MODULE, *options, "--", "true"], {"ZKBEAT_TLS_KEY_PASSWORD": "hunter2"}), 78, "are not a cert")


# the runtime directory


def refused_directory(path: Path, says: str, code: int = 78, **keywords: Any) -> None:
    assert_refused(run([*MODULE, "--name", "x", "--runtime-dir", str(path), "--", "true"], **keywords), code, says)


def test_a_runtime_directory_that_is_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    refused_directory(tmp_path / "link", "is a symbolic link")


def test_a_runtime_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    refused_directory(tmp_path / "file", "is not a directory")


def test_a_runtime_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    refused_directory(tmp_path / "file" / "run", "cannot make the runtime directory")


def test_a_runtime_directory_whose_path_is_too_long_for_a_socket_is_refused(tmp_path):
    refused_directory(tmp_path / ("x" * 100), "too long")


def test_a_runtime_directory_below_somebody_elses_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    refused_directory(tmp_path / "theirs" / "run", "another user (uid 12345) may replace the runtime directory")


def test_a_socket_that_is_a_directory_is_refused(tmp_path):
    (tmp_path / "run" / "health.sock").mkdir(parents=True)
    refused_directory(tmp_path / "run", "health.sock")


def test_a_runtime_directory_that_others_may_read_becomes_private(tmp_path):
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    path.chmod(0o777)
    port = free_ports(1)[0]
    options = ["--hosts", f"127.0.0.1:{port}", "--name", "x", "--runtime-dir", str(path), "--connect-timeout", "0.1"]
    assert run([*MODULE, *options, "--", "true"]).returncode == 69
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_runtime_directory_of_another_user_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", NOBODY, NOBODY)
    refused_directory(tmp_path / "run", f"belongs to another user (uid {NOBODY})")


@pytest.fixture
def weak() -> list[str]:
    """A prefix that takes from root what lets it pass over everybody's rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_a_runtime_directory_that_may_not_be_made_is_refused(weak, tmp_path):
    os.chown(tmp_path, NOBODY, NOBODY)
    tmp_path.chmod(0o755)
    argv = [*weak, *MODULE, "--name", "x", "--runtime-dir", str(tmp_path / "run"), "--", "true"]
    assert_refused(run(argv), 78, "cannot make the runtime directory")


@pytest.mark.parametrize("option", ["--tls-key", "--tls-ca", "--config"])
def test_a_file_that_may_not_be_read_is_refused(weak, tmp_path, option):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    (tmp_path / "cert.pem").touch()
    os.chown(secret, NOBODY, NOBODY)
    argv = [*weak, *MODULE, "--name", "x", "--tls-cert", str(tmp_path / "cert.pem"), option, str(secret)]
    argv += ["--tls-key", str(tmp_path / "cert.pem")] if option != "--tls-key" else []
    assert_refused(run([*argv, "--", "true"]), 78, f"{secret}: Permission denied")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, mounted at the runtime directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "run"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_runtime_directory_on_a_full_disk_is_refused(mounted):
    with contextlib.suppress(OSError), (mounted / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    refused_directory(mounted, "No space left on device", 74)  # that may pass: a supervisor should try again


def test_a_runtime_directory_on_a_read_only_disk_is_refused(mounted):
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    refused_directory(mounted, "Read-only file system")


def test_a_second_zkbeat_on_the_same_runtime_directory_says_which_pid_holds_it(alone):
    with alone() as node:
        node.wait_state("leading")
        began_at = time.monotonic()
        refused_directory(node.runtime_dir, f"zkbeat with pid {node.sidecar} holds its lock", code=75)
        assert 4 < time.monotonic() - began_at < 9
        assert node.state() == "leading", "the first one is not disturbed"


def test_a_second_zkbeat_that_is_started_while_the_first_one_stops_waits_for_it(alone, kin):
    family = kin("child+stubborn")
    with alone("--stop-timeout", "1", command=family.argv) as first:
        family.wait_ready(first.logs)
        os.kill(first.sidecar, signal.SIGTERM)
        wait_until(lambda: family.signals("child"), 5, "TERM", first.logs)
        with alone() as second:
            assert first.wait() == 0
            wait_until(lambda: (second.health() or {}).get("pid") == second.process.pid, 5, "its turn", second.logs)
            second.wait_state("leading")


# what answers at the hosts


def stopped_for_its_hosts(port: int, tmp_path: Path, *options: str, within_s: float = 8.0) -> tuple[int, str]:
    began_at = time.monotonic()
    where = ["--hosts", f"127.0.0.1:{port}", "--name", "x", "--runtime-dir", str(tmp_path / "run")]
    done = run([*MODULE, *where, *options, "--", "touch", str(tmp_path / "started")])
    assert time.monotonic() - began_at < within_s
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "started").exists()
    return done.returncode, done.stderr


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_a_port_where_redis_answers_is_78_with_the_reason(tmp_path):
    port = free_ports(1)[0]
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), 10, "redis listens")
        code, log = stopped_for_its_hosts(port, tmp_path)
    finally:
        server.kill()
        server.wait()
    assert code == 78, log
    assert f"127.0.0.1:{port}: something else than ZooKeeper answers there" in log
    assert "-ERR unknown command" in log


def test_a_port_where_http_answers_is_78_with_the_reason(tmp_path):
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, log = stopped_for_its_hosts(server.server_port, tmp_path)
        server.shutdown()
    assert code == 78, log
    assert "something else than ZooKeeper answers there" in log


def test_with_a_connect_timeout_a_port_where_nothing_listens_is_69(tmp_path):
    code, log = stopped_for_its_hosts(free_ports(1)[0], tmp_path, "--connect-timeout", "2", within_s=4.0)
    assert code == 69, log
    assert "no ZooKeeper within 2 s" in log


def test_with_a_connect_timeout_a_port_that_is_silent_is_69(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, log = stopped_for_its_hosts(silent.getsockname()[1], tmp_path, "--connect-timeout", "1", within_s=6.0)
    assert code == 69, log


def test_without_a_connect_timeout_it_says_what_is_wrong_and_keeps_trying(tmp_path):
    port = free_ports(1)[0]
    family = Family()
    where = ["--hosts", f"127.0.0.1:{port}", "--name", "x", "--runtime-dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*MODULE, *where, "--", "true"], env=family.env, stderr=log)
    try:
        reason = f"127.0.0.1:{port}: nothing listens there"
        wait_until(lambda: reason in (tmp_path / "log").read_text(), 8, reason, (tmp_path / "log").read_text)
        assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 0
    finally:
        family.kill_everything()
        process.wait()


def test_a_command_for_operators_without_a_zookeeper_is_69():
    done = run([*MODULE, "status", "--hosts", f"127.0.0.1:{free_ports(1)[0]}", "--name", "x"])
    assert_refused(done, 69, "nothing listens there")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# health


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("--runtime-dir", "{tmp}/run"), 1, "nobody listens on its socket"),
        (("--runtime-dir", "{tmp}/text"), 1, "cannot ask zkbeat"),
        (("--ready", "--runtime-dir={tmp}/run"), 1, "nobody listens"),
        (("--name", "no-such-election-anywhere"), 1, "nobody listens"),
        (("--runtime-dir", "/" + "x" * 200), 1, "cannot ask zkbeat"),
        (("--raedy",), 2, "cannot understand '--raedy'"),
        (("--runtime-dir",), 2, "cannot understand '--runtime-dir'"),
        (("--ready=1",), 2, "cannot understand '--ready'"),
        (("now",), 2, "cannot understand 'now'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_health_that_cannot_ask_says_no_in_one_line(tmp_path, argv, code, says):
    (tmp_path / "text").touch()
    argv = [word.replace("{tmp}", str(tmp_path)) for word in argv]
    assert_refused(run([*MODULE, "health", *argv]), code, says)


@pytest.mark.parametrize("answer", [b"", b"hello", b"[1, 2]", b'"leading"', b"\xff"], ids=repr)
def test_health_says_no_when_something_else_answers_there(tmp_path, answer):
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(tmp_path / "run" / "health.sock"))
        impostor.listen()

        def serve() -> None:
            asker, _ = impostor.accept()
            asker.sendall(answer)
            asker.close()

        threading.Thread(target=serve, daemon=True).start()
        assert_refused(run([*MODULE, "health", "--runtime-dir", str(tmp_path / "run")]), 1, "cannot ask zkbeat")
