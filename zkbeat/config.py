"""The user's choices: checked once, as a whole, before anything starts.

Where a value comes from: a flag, else the environment (`ZKBEAT_...`), else the file given with --config (TOML, the
flags' names without the dashes), else the default. Secrets come from the environment or the file only.
"""

from __future__ import annotations

import difflib
import math
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zkbeat import __version__
from zkbeat.access import Access
from zkbeat.command import celery_app
from zkbeat.core.lease import LeaseError, agree
from zkbeat.errors import ConfigError
from zkbeat.runtime import default_base

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_HOSTS = "127.0.0.1:2181"

SECRETS = ("auth_password", "tls_key_password")
"""Options that may not stand in an argument vector, where every user of the machine could read them."""

NAME_AT_MOST = 100


EXIT_USAGE = 2
EXIT_CONFIG = 78


@dataclass(frozen=True)
class Config:
    """A configuration that was checked. Times in seconds."""

    access: Access
    root: str
    name: str
    id: str
    runtime_dir: Path
    lease_s: float | None = None
    stop_timeout_s: float = 10.0
    connect_timeout_s: float | None = None
    on_exit: str = "rejoin"
    strict: bool = False
    max_clock_offset_s: float | None = None
    launcher: bool = True
    preload: bool = False
    max_silence_s: float = 20.0
    restart_stuck: bool = False
    log_format: str = "human"
    log_level: str = "info"
    host: str = ""
    version: str = __version__

    @property
    def base(self) -> str:
        """Where in ZooKeeper this election is kept: ROOT/NAME."""
        return base_path(self.root, self.name)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes; to be kept out of logs, it holds the secrets."""
        return {**asdict(self), "runtime_dir": str(self.runtime_dir)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Config:
        """Return the configuration that `to_json` was called on."""
        return cls(**{**data, "access": Access.from_json(data["access"]), "runtime_dir": Path(data["runtime_dir"])})


def read_file(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Return the options of a TOML file, under their names with underscores.

    Raises ConfigError (78) for a file that cannot be read or is not TOML, and for a key that is not an option, with the
    nearest one that is.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}", EXIT_CONFIG) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", EXIT_CONFIG) from None
    names = [*known, *SECRETS]
    options: dict[str, Any] = {}
    for key, value in found.items():
        option = key.replace("-", "_")
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise ConfigError(f"{path}: unknown option {key!r}{hint}", EXIT_CONFIG)
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{path}: {key} must be a plain value", EXIT_CONFIG)
        options[option] = value
    return options


def access_from(given: Mapping[str, Any], file: Mapping[str, Any], environment: Mapping[str, str]) -> Access:
    """Return how to reach the ensemble. Raises ConfigError."""
    hosts = parse_hosts(DEFAULT_HOSTS if given.get("hosts") is None else given["hosts"])
    timeout_s = _seconds(given, "session_timeout", default=10.0)
    secrets = {name: _secret(name, file, environment) for name in SECRETS}
    scheme, user = given.get("auth_scheme"), given.get("auth_user")
    if scheme is None and (user or secrets["auth_password"]):
        scheme = "digest"
    if scheme is not None and scheme not in {"digest", "sasl"}:
        raise ConfigError(f"--auth-scheme must be digest or sasl, not {scheme!r}", EXIT_CONFIG)
    if scheme is not None and not (user and secrets["auth_password"]):
        lacking = "a password (ZKBEAT_AUTH_PASSWORD, or auth-password in the file)" if user else "a user (--auth-user)"
        raise ConfigError(f"{scheme} credentials need {lacking}", EXIT_CONFIG)
    if scheme == "digest" and user and ":" in user:
        raise ConfigError("--auth-user must not contain a colon", EXIT_CONFIG)
    if scheme == "sasl":
        _need_pure_sasl()
    tls = bool(given.get("tls") or given.get("tls_ca") or given.get("tls_cert") or given.get("tls_key"))
    cert, key = given.get("tls_cert"), given.get("tls_key")
    if bool(cert) != bool(key):
        raise ConfigError(
            "--tls-cert and --tls-key belong together: a certificate is of no use without its key", EXIT_CONFIG
        )
    for option in ("tls_ca", "tls_cert", "tls_key"):
        _check_readable(option, given.get(option))
    if tls:
        _check_tls(given.get("tls_ca"), cert, key, secrets["tls_key_password"])
    return Access(
        hosts=hosts,
        session_timeout_s=timeout_s,
        auth_scheme=scheme,
        auth_user=user,
        auth_password=secrets["auth_password"],
        tls=tls,
        tls_ca=given.get("tls_ca"),
        tls_cert=cert,
        tls_key=key,
        tls_key_password=secrets["tls_key_password"],
    )


def resolve(
    given: Mapping[str, Any],
    file: Mapping[str, Any],
    environment: Mapping[str, str],
    command: Sequence[str],
) -> Config:
    """Return the configuration of `zkbeat -- COMMAND`, or raise ConfigError."""
    access = access_from(given, file, environment)
    lease_s = _seconds(given, "lease") if given.get("lease") is not None else None
    try:
        agree(access.session_timeout_s, lease_s)
    except LeaseError as error:
        raise ConfigError(str(error)) from None
    name = election_name(given.get("name"), command)
    max_offset_s = _seconds(given, "max_clock_offset") if given.get("max_clock_offset") is not None else None
    connect_s = _seconds(given, "connect_timeout") if given.get("connect_timeout") is not None else None
    host = socket.gethostname()
    member = given.get("id") or host
    if not member.isprintable() or len(member) > NAME_AT_MOST:
        raise ConfigError(f"--id must be printable and at most {NAME_AT_MOST} characters long")
    for option in ("preload", "restart_stuck"):
        if given.get("no_launcher") and given.get(option):
            raise ConfigError(f"--{option.replace('_', '-')} needs the launcher: drop --no-launcher")
    runtime_dir = given.get("runtime_dir")
    return Config(
        access=access,
        root=check_root(given.get("root") or "/zkbeat"),
        name=name,
        id=member,
        runtime_dir=Path(runtime_dir) if runtime_dir else default_base() / name,
        lease_s=lease_s,
        stop_timeout_s=_seconds(given, "stop_timeout", default=10.0, at_least=0.0),
        connect_timeout_s=connect_s,
        on_exit=_one_of(given, "on_exit", ("rejoin", "exit")),
        strict=bool(given.get("strict")),
        max_clock_offset_s=max_offset_s,
        launcher=not given.get("no_launcher"),
        preload=bool(given.get("preload")),
        max_silence_s=_seconds(given, "max_silence", default=20.0, at_least=1.0),
        restart_stuck=bool(given.get("restart_stuck")),
        log_format=_one_of(given, "log_format", ("human", "json")),
        log_level=_one_of(given, "log_level", ("info", "debug", "warning", "error")),
        host=host,
    )


def parse_hosts(hosts: str) -> str:
    """Return the hosts, checked: `host:port,host:port/chroot`. Raises ConfigError."""
    servers, slash, chroot = hosts.strip().partition("/")
    for server in servers.split(","):
        host, port = split_host(server.strip())
        if not host or re.search(r"[\s\x00/@]", host):
            raise ConfigError(f"--hosts: cannot understand {server.strip()!r} in {hosts!r}; write host:port,host:port")
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:  # noqa: PLR2004
            raise ConfigError(f"--hosts: {port!r} is not a port, in {server.strip()!r}")
    if slash and ("//" in slash + chroot or "\0" in chroot or chroot.endswith("/")):
        raise ConfigError(f"--hosts: {slash + chroot!r} is not a path to work below")
    return hosts.strip()


def split_host(server: str) -> tuple[str, str]:
    """Split `host`, `host:port` or `[v6]:port`; the port is 2181 where none is given."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", server)
    if match:
        return match.group(1), match.group(2) or "2181"
    host, colon, port = server.partition(":")
    return host, port if colon else "2181"


def election_name(name: str | None, command: Sequence[str]) -> str:
    """Return the election's name: the one given, else that of the Celery app. Raises ConfigError."""
    if name is None:
        name = celery_app(command)
        if name is None:
            raise ConfigError(
                "which election? Give --name NAME: all nodes with one name share one leader "
                "(only for `celery -A APP ...` it is taken from APP)"
            )
    if not name or len(name) > NAME_AT_MOST or not name.isprintable() or "/" in name or name in {".", ".."}:
        raise ConfigError(
            f"{name!r} cannot be an election's name: it must be 1 to {NAME_AT_MOST} printable characters, no slash"
        )
    return name


def check_root(root: str) -> str:
    """Return the path below which elections are kept. Raises ConfigError."""
    if not root.startswith("/") or "//" in root or not root.isprintable() or (root.endswith("/") and root != "/"):
        raise ConfigError(f"--root must be an absolute path without a slash at its end, not {root!r}")
    return root


def base_path(root: str, name: str) -> str:
    """Return where in ZooKeeper an election is kept: ROOT/NAME."""
    return f"{root.rstrip('/')}/{name}"


def _one_of(given: Mapping[str, Any], option: str, choices: tuple[str, ...]) -> str:
    value = given.get(option) or choices[0]
    if value not in choices:
        raise ConfigError(f"--{option.replace('_', '-')} must be one of {', '.join(choices)}, not {value!r}")
    return str(value)


def _seconds(given: Mapping[str, Any], option: str, default: float = 0.0, at_least: float | None = None) -> float:
    value = given.get(option)
    seconds = default if value is None else float(value)
    flag = f"--{option.replace('_', '-')}"
    if not math.isfinite(seconds) or seconds > 86_400:  # noqa: PLR2004
        raise ConfigError(f"{flag} must be a number of seconds up to a day, not {seconds:g}")
    if seconds < 0 or (at_least is None and seconds == 0):
        raise ConfigError(f"{flag} must be a positive number of seconds, not {seconds:g}")
    if at_least is not None and seconds < at_least:
        raise ConfigError(f"{flag} must be at least {at_least:g} seconds, not {seconds:g}")
    return seconds


def _secret(name: str, file: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    value = environment.get(f"ZKBEAT_{name.upper()}") or file.get(name)
    return str(value) if value else None


def _need_pure_sasl() -> None:
    try:
        import puresasl  # noqa: F401
    except ImportError:
        raise ConfigError("SASL needs a package more: pip install 'zkbeat[sasl]'", EXIT_CONFIG) from None


def _check_readable(option: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        flag = option.replace("_", "-")
        raise ConfigError(f"--{flag}: cannot read {path}: {error.strerror}", EXIT_CONFIG) from None


def _check_tls(ca: str | None, cert: str | None, key: str | None, password: str | None) -> None:
    """Load what kazoo will load with each connect, where a failure would be retried for ever."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"--tls-ca: {ca} holds no certificates in PEM form", EXIT_CONFIG) from None
    try:
        if cert and key:
            context.load_cert_chain(cert, key, password or "")
    except (ssl.SSLError, OSError, ValueError):
        raise ConfigError(
            f"--tls-cert, --tls-key: {cert} and {key} are not a certificate and its key, "
            "or the key's password (ZKBEAT_TLS_KEY_PASSWORD) is wrong",
            EXIT_CONFIG,
        ) from None
