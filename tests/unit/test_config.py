from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkbeat.config import (
    Config,
    access_from,
    check_root,
    election_name,
    parse_hosts,
    read_file,
    resolve,
    split_host,
)
from zkbeat.errors import ConfigError

CELERY = ["celery", "-A", "proj", "beat"]


def refused(code, says, function, *arguments):
    with pytest.raises(ConfigError, match=says) as caught:
        function(*arguments)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "hosts",
    [
        "a",
        "a/",
        "a:1",
        "a:65535,b:2181",
        " a:1 , b:2 ",
        "[::1]:2181",
        "[::1]",
        "10.0.0.1:2181,zk/chroot",
        "a/b/c",
        "a_b-c.d:1",
    ],
)
def test_hosts_that_are_understood(hosts):
    assert parse_hosts(hosts) == hosts.strip()


@pytest.mark.parametrize(
    "hosts",
    [
        *("", " ", ",", "a,", ",a", ":2181", "a:", "a:x", "a:0", "a:65536", "a:-1", "a:1:2", "a b", "http://a"),
        *("a//b", "a/b/", "user@a", "a\0b", "a/b\0", "[]:1", "a:²", "a:٣", "a:" + "9" * 5000),
    ],
)
def test_hosts_that_are_not(hosts):
    refused(2, "--hosts", parse_hosts, hosts)


@given(st.text(max_size=30))
def test_no_text_makes_the_parsing_of_hosts_fail(hosts):
    with contextlib.suppress(ConfigError):
        assert parse_hosts(hosts) == hosts.strip()


@pytest.mark.parametrize(
    ("server", "split"),
    [
        ("a", ("a", "2181")),
        ("a:1", ("a", "1")),
        ("[::1]", ("::1", "2181")),
        ("[::1]:1", ("::1", "1")),
        ("a:", ("a", "")),
    ],
)
def test_a_server_is_split_into_host_and_port(server, split):
    assert split_host(server) == split


def test_a_name_is_taken_from_the_app_unless_it_is_given():
    assert election_name(None, CELERY) == "proj"
    assert election_name("other", CELERY) == "other"


@pytest.mark.parametrize("name", ["", "/", "a/b", ".", "..", "a\0", "a\n", "x" * 101])
def test_a_name_that_cannot_be_a_znode(name):
    refused(2, "cannot be an election's name", election_name, name, CELERY)


def test_no_name_is_no_default():
    refused(2, "Give --name", election_name, None, ["sleep", "1"])


@pytest.mark.parametrize("root", ["", "zkbeat", "/a/", "//", "/a//b", "/a\0"])
def test_a_root_that_is_no_path(root):
    refused(2, "--root", check_root, root)


def test_a_file_gives_options_under_the_flags_names(tmp_path):
    path = tmp_path / "zkbeat.toml"
    path.write_text('session-timeout = 5\nhosts = "a:1"\nauth-password = "s"\n')
    assert read_file(path, ["session_timeout", "hosts"]) == {"session_timeout": 5, "hosts": "a:1", "auth_password": "s"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"session-timeuot = 5", "unknown option 'session-timeuot'; did you mean session-timeout?"),
        (b"xyzzy = 5", "unknown option 'xyzzy'$"),
        (b"session-timeout = [5]", "must be a plain value"),
        (b"[session-timeout]\na = 1", "must be a plain value"),
        (b"= 5", "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used(content, says, tmp_path):
    path = tmp_path / "zkbeat.toml"
    path.write_bytes(content)
    refused(78, says, read_file, path, ["session_timeout"])


def test_a_file_that_is_not_there(tmp_path):
    refused(78, "cannot read the configuration file", read_file, tmp_path / "none", [])
    refused(78, "Is a directory", read_file, tmp_path, [])


@pytest.mark.parametrize(
    ("code", "says", "given"),
    [
        (2, "--session-timeout must be a number", {"session_timeout": float("nan")}),
        (2, "--session-timeout must be a number", {"session_timeout": float("inf")}),
        (2, "--session-timeout must be a positive", {"session_timeout": -1}),
        (2, "--session-timeout must be a positive", {"session_timeout": 0}),
        (2, "needs at least 2 s", {"session_timeout": 1.5}),
        (2, "at most two thirds", {"lease": 9.0}),
        (2, "at least 1 s", {"lease": 0.5}),
        (2, "--stop-timeout", {"stop_timeout": -1}),
        (2, "--connect-timeout", {"connect_timeout": float("nan")}),
        (2, "--on-exit must be one of rejoin, exit", {"on_exit": "stop"}),
        (2, "--log-format", {"log_format": "xml"}),
        (2, "--id", {"id": "a\nb"}),
        (2, "--root", {"root": "x"}),
        (78, "--auth-scheme", {"auth_scheme": "kerberos"}),
        (78, "need a password", {"auth_user": "u"}),
        (78, "belong together", {"tls_cert": "/etc/passwd"}),
        (78, "--tls-ca: cannot read", {"tls_ca": "/no/such/file"}),
        (78, "holds no certificates", {"tls_ca": "/etc/passwd"}),
    ],
)
def test_choices_that_cannot_be(code, says, given):
    refused(code, says, resolve, given, {}, {}, CELERY)


def test_zero_seconds_to_stop_is_a_choice():
    assert resolve({"stop_timeout": 0}, {}, {}, CELERY).stop_timeout_s == 0


def test_secrets_come_from_the_environment_or_the_file_and_the_environment_wins():
    given = {"auth_user": "u", "auth_password": "from an argument"}
    refused(78, "need a password", access_from, given, {}, {})
    assert access_from(given, {"auth_password": "f"}, {}).auth_password == "f"
    both = access_from(given, {"auth_password": "f"}, {"ZKBEAT_AUTH_PASSWORD": "e"})
    assert (both.auth_password, both.auth_scheme) == ("e", "digest")


def test_a_configuration_survives_being_handed_over():
    given = {"hosts": "a:1,b:2/x", "auth_user": "u", "lease": 3.0, "runtime_dir": "/run/x"}
    config = resolve(given, {"auth_password": "p"}, {}, CELERY)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.runtime_dir == Path("/run/x")
