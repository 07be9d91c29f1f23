"""TLS, credentials and rights, against servers that really ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.events import Posted
from zkbeat import clock
from zkbeat.access import Access
from zkbeat.client import plain_client, stop_within
from zkbeat.core import events
from zkbeat.core.record import Member
from zkbeat.dev import Server, free_ports
from zkbeat.ensemble import Ensemble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ME = Member(id="me", host="here", pid=1, version="0", digest="d", since=1.0)


def _zkbeat(tmp_path: Path, *options: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run zkbeat until it gives up by itself; in tests of what it does not get over."""
    runtime = ["--name", "e", "--runtime-dir", str(tmp_path / "run")]
    return subprocess.run(
        [sys.executable, "-m", "zkbeat", *runtime, *options, "--", "sleep", "100"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _the_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that says what is wrong, and see that there is one only."""
    errors = [line for line in done.stderr.splitlines() if " error: " in line or line.startswith("zkbeat: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


class Certificates:
    """A CA, and what it has signed, in PEM files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca = directory / "ca.pem"
        self._openssl("req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
        self.other_ca = directory / "other.pem"
        self._openssl("req", "-x509", "-nodes", "-keyout", "other.key", "-out", "other.pem", "-subj", "/CN=other")

    def _openssl(self, *arguments: str) -> None:
        key = ["-newkey", "rsa:2048"] if arguments[0] == "req" else []
        days = ["-days", "2"] if "-x509" in arguments or arguments[0] == "x509" else []
        subprocess.run(
            ["openssl", *arguments, *key, *days], cwd=self._directory, check=True, capture_output=True, timeout=60
        )

    def sign(self, name: str, alternative: str) -> tuple[Path, Path]:
        """Return a certificate for that subject alternative name, and its key."""
        (self._directory / "extension").write_text(f"subjectAltName={alternative}")
        self._openssl("req", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extension"]
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signer)
        return self._directory / f"{name}.pem", self._directory / f"{name}.key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that speaks TLS on this port, as `localhost` only, and wants a certificate of its clients."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = certificates.sign("server", "DNS:localhost")
    (directory / "keystore.pem").write_text(key.read_text() + certificate.read_text())
    port = free_ports(1)[0]
    extra = {
        "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
        "secureClientPort": str(port),
        "ssl.keyStore.location": str(directory / "keystore.pem"),
        "ssl.keyStore.type": "PEM",
        "ssl.trustStore.location": str(certificates.ca),
        "ssl.trustStore.type": "PEM",
        "ssl.clientAuth": "need",
    }
    with Server(directory / "zk", extra=extra):
        yield port


def test_a_member_leads_over_tls_with_a_certificate_of_its_own(certificates, tls_port, zk_root):
    certificate, key = certificates.sign("client", "DNS:client")
    access = Access(
        f"localhost:{tls_port}",
        tls=True,
        tls_ca=str(certificates.ca),
        tls_cert=str(certificate),
        tls_key=str(key),
    )
    posted = Posted()
    ensemble = Ensemble(access, zk_root, "e", posted)
    ensemble.open()
    try:
        posted.next(events.Connected)
        ensemble.join(1, ME)
        elected = posted.next(events.Elected)
        ensemble.renew(elected.node, clock.now(), ME)
        posted.next(events.Renewed)
    finally:
        ensemble.close(5.0)


@pytest.mark.parametrize(
    ("host", "ca", "says"),
    [
        pytest.param("127.0.0.1", "ca", "not valid for '127.0.0.1'", id="another host's certificate"),
        pytest.param("localhost", "other_ca", "certificate is not to be trusted", id="a CA that we do not trust"),
    ],
)
def test_a_certificate_that_is_not_to_be_trusted_ends_it_with_77(certificates, tls_port, tmp_path, host, ca, says):
    done = _zkbeat(tmp_path, "--hosts", f"{host}:{tls_port}", "--tls-ca", str(getattr(certificates, ca)))
    assert done.returncode == 77, done.stderr
    assert says in _the_error(done)


def test_a_server_that_wants_a_certificate_is_said_to(certificates, tls_port, tmp_path):
    options = ["--hosts", f"localhost:{tls_port}", "--tls-ca", str(certificates.ca), "--connect-timeout", "4"]
    done = _zkbeat(tmp_path, *options)
    assert done.returncode == 69
    assert "--tls-cert" in done.stderr, done.stderr


def test_a_plain_client_at_a_tls_port_is_told_about_tls(tls_port, tmp_path):
    done = _zkbeat(tmp_path, "--hosts", f"localhost:{tls_port}", "--connect-timeout", "4")
    assert done.returncode == 69
    assert "does it want --tls?" in done.stderr, done.stderr


def test_with_digest_credentials_everything_is_created_for_them_only(zk_hosts, zk_root):
    posted = Posted()
    access = Access(zk_hosts, auth_scheme="digest", auth_user="beat", auth_password="s3cret")
    ensemble = Ensemble(access, zk_root, "e", posted)
    ensemble.open()
    try:
        posted.next(events.Connected)
        ensemble.join(1, ME)
        elected = posted.next(events.Elected)
        ensemble.term_began(1, "me", None, 0.0)
        ensemble.flush_notes(5.0)
        ours = [ensemble.znode(elected.node), f"{zk_root}/e/terms/{1:020d}"]
        ours += [zk_root, *(f"{zk_root}/e{below}" for below in ("", "/election", "/terms", "/control"))]
        client = plain_client(access)
        client.start()
        open_to_all = []
        for path in ours:
            acls, _stat = client.get_acls(path)
            if [acl.id.scheme for acl in acls] != ["digest"]:
                open_to_all.append((path, acls))
        stop_within(client, 5.0)
        assert open_to_all == []
    finally:
        ensemble.close(5.0)


@pytest.fixture
def owned_root(zk_hosts, zk_root) -> Iterator[str]:
    """An election's root that belongs to somebody with credentials."""
    posted = Posted()
    access = Access(zk_hosts, auth_scheme="digest", auth_user="beat", auth_password="s3cret")
    ensemble = Ensemble(access, zk_root, "e", posted)
    ensemble.open()
    posted.next(events.Connected)
    ensemble.join(1, ME)
    posted.next(events.Elected)
    yield zk_root
    ensemble.close(5.0)


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="no credentials"),
        pytest.param({"ZKBEAT_AUTH_USER": "beat", "ZKBEAT_AUTH_PASSWORD": "wrong"}, id="a wrong password"),
    ],
)
def test_refused_credentials_end_it_with_77(zk_hosts, owned_root, tmp_path, env):
    done = _zkbeat(tmp_path, "--hosts", zk_hosts, "--root", owned_root, env=env)
    assert done.returncode == 77, done.stderr
    assert "check the credentials" in _the_error(done)
    assert "wrong" not in done.stderr


@pytest.mark.parametrize("subcommand", ["status", "pause", "step-down"])
def test_operators_without_rights_get_one_line_and_77(zk_hosts, owned_root, subcommand):
    done = subprocess.run(
        [sys.executable, "-m", "zkbeat", subcommand, "--hosts", zk_hosts, "--root", owned_root],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_missing_chroot_ends_it_with_78(zk_hosts, tmp_path):
    done = _zkbeat(tmp_path, "--hosts", f"{zk_hosts}/not-there")
    assert done.returncode == 78, done.stderr
    assert "/not-there" in _the_error(done)


@pytest.fixture(scope="module")
def sasl_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that knows one user by DIGEST-MD5, and takes nobody else."""
    directory = tmp_path_factory.mktemp("sasl")
    jaas = directory / "jaas.conf"
    jaas.write_text(
        'Server { org.apache.zookeeper.server.auth.DigestLoginModule required user_beat="s3cret"; };\n',
    )
    extra = {
        "authProvider.sasl": "org.apache.zookeeper.server.auth.SASLAuthenticationProvider",
        "enforce.auth.enabled": "true",
        "enforce.auth.schemes": "sasl",
    }
    prefix = ["env", f"JAVA_TOOL_OPTIONS=-Djava.security.auth.login.config={jaas}"]
    with Server(directory / "zk", extra=extra, prefix=prefix) as server:
        yield server.hosts


def test_a_member_leads_with_sasl_credentials(sasl_hosts, zk_root):
    posted = Posted()
    access = Access(sasl_hosts, auth_scheme="sasl", auth_user="beat", auth_password="s3cret")
    ensemble = Ensemble(access, zk_root, "e", posted)
    ensemble.open()
    try:
        posted.next(events.Connected)
        ensemble.join(1, ME)
        elected = posted.next(events.Elected)
        ensemble.renew(elected.node, clock.now(), ME)
        posted.next(events.Renewed)
    finally:
        ensemble.close(5.0)


def test_a_wrong_sasl_password_ends_it_with_77(sasl_hosts, tmp_path):
    env = {"ZKBEAT_AUTH_SCHEME": "sasl", "ZKBEAT_AUTH_USER": "beat", "ZKBEAT_AUTH_PASSWORD": "wrong"}
    done = _zkbeat(tmp_path, "--hosts", sasl_hosts, env=env)
    assert done.returncode == 77, done.stderr
    assert "refuses the credentials" in _the_error(done)


def test_no_secret_is_shown_by_what_holds_it():
    access = Access("h:1", auth_scheme="digest", auth_user="u", auth_password="s3cret", tls_key_password="k3y")
    assert "s3cret" not in repr(access)
    assert "k3y" not in repr(access)
