"""Finds out what answers at an address, when kazoo only says that it cannot connect.

A port where something else listens, an untrusted certificate and a server that is down look the same to a client that
tries again for ever; to a person they are three different things to do.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass

PATIENCE_S = 2.0

EXIT_CONFIG = 78
EXIT_NO_PERMISSION = 77


@dataclass(frozen=True)
class Finding:
    """What was found at one server's address."""

    server: str
    sentence: str
    answers: bool = False
    """Something like ZooKeeper is there."""
    hopeless: bool = False
    """Trying again will not help."""
    exit_code: int = EXIT_CONFIG
    took_s: float = 0.0


def servers(hosts: str) -> list[str]:
    """Return the servers of a hosts string, without the chroot."""
    return [server.strip() for server in hosts.partition("/")[0].split(",")]


def look(server: str, tls: ssl.SSLContext | None) -> Finding:
    """Connect to a server and see whether it speaks like ZooKeeper. Takes at most a few seconds; raises nothing."""
    from zkbeat.config import split_host

    host, port = split_host(server)
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), PATIENCE_S) as plain:
            plain.settimeout(PATIENCE_S)
            if tls is None:
                answer = _ask(plain)
            else:
                with tls.wrap_socket(plain, server_hostname=host) as secure:
                    answer = _ask(secure)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.rstrip(".")
        sentence = f"{server}: its certificate is not to be trusted: {why}; check --tls-ca and the host name"
        return Finding(server, sentence, hopeless=True, exit_code=EXIT_NO_PERMISSION)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return Finding(server, f"{server}: TLS fails ({reason}); does it speak TLS, and does it want a --tls-cert?")
    except socket.gaierror:
        return Finding(server, f"{server}: the name {host!r} does not resolve")
    except TimeoutError:
        return Finding(server, f"{server}: no answer within {PATIENCE_S:g} s; is a firewall in between?")
    except ConnectionRefusedError:
        return Finding(server, f"{server}: nothing listens there; is ZooKeeper running?")
    except OSError as error:
        return Finding(server, f"{server}: {error.strerror or error}")
    return _judge(server, answer, time.monotonic() - began, secure=tls is not None)


def _ask(connection: socket.socket) -> bytes:
    connection.sendall(b"srvr\n")
    return connection.recv(200)


def _judge(server: str, answer: bytes, took_s: float, *, secure: bool) -> Finding:
    # Answers without being asked for a session: the version, or that the four letter word is not on the list.
    if answer.startswith(b"Zookeeper version") or b"whitelist" in answer or b"not currently serving" in answer:
        text = "answers" if b"not currently serving" not in answer else "is up, but not part of a quorum"
        return Finding(server, f"{server}: {text}", answers=True, took_s=took_s)
    if not answer:
        hint = "" if secure else "; does it want --tls?"
        return Finding(server, f"{server}: closes the connection at once{hint}")
    shown = answer.splitlines()[0][:40].decode("ascii", "replace") if answer.splitlines() else ""
    return Finding(server, f"{server}: something else than ZooKeeper answers there ({shown!r})", hopeless=True)
