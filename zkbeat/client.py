"""One kazoo client, with what kazoo leaves open closed. Knows nothing of elections or schedules.

What it does about kazoo's traps (measured with kazoo 2.11.0):

- connects are bounded, so that one black-holed server does not use up the session (kazoo waits the whole session
  timeout for each, #756);
- TCP_USER_TIMEOUT ends a connection whose data is not acknowledged: each request that kazoo sends resets its own ping
  timer, so a silent link could stay "connected" for as long as one goes on sending;
- reconnects back off to a second at most (kazoo's default is an hour);
- the negotiated session timeout, which kazoo does not expose, is taken from its connection's `_connect`;
- an answer that kazoo cannot place drops the connection, and does not end kazoo's thread for good.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionDropped, RWServerAvailable
from kazoo.retry import KazooRetry
from kazoo.security import make_acl, make_digest_acl

from zkbeat import clock
from zkbeat.access import Access

# What matters of kazoo's log is said by whoever uses it. Without a handler warnings would go to standard error; and in
# an app's process, which has its log set up, each connect would be told of, and each attempt of an outage. The app's
# own clients are left alone.
logging.getLogger("kazoo").addHandler(logging.NullHandler())
_logger = logging.getLogger("kazoo.zkbeat")
_logger.setLevel(logging.CRITICAL)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's threads, with bounded connects and a bounded silence."""

    def __init__(self, access: Access, on_error: Callable[[Exception], None]) -> None:
        super().__init__()
        self._connect_within_s = max(access.session_timeout_s / (3 * access.servers), 0.25)
        self._silent_for_ms = int(access.session_timeout_s / 6 * 1000)
        self._on_error = on_error

    def create_connection(self, *args: Any, **kwargs: Any) -> socket.socket:
        kwargs["timeout"] = min(kwargs.get("timeout") or self._connect_within_s, self._connect_within_s)
        try:
            connection: socket.socket = super().create_connection(*args, **kwargs)
        except Exception as error:
            self._on_error(error)
            raise
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._silent_for_ms)
        return connection


def plain_client(
    access: Access,
    on_connected: Callable[[float, float], None] = lambda _sent_at, _session_timeout_s: None,
    on_error: Callable[[Exception], None] = lambda _error: None,
) -> KazooClient:
    """Return a client that is not started yet.

    `on_connected` is called in kazoo's thread for each connection, once it is authenticated: with an instant before its
    handshake was sent, and the negotiated session timeout in seconds, which kazoo does not tell otherwise.
    """
    options: dict[str, Any] = {}
    if access.auth_scheme == "digest":
        options["auth_data"] = [("digest", f"{access.auth_user}:{access.auth_password}")]
        options["default_acl"] = [make_digest_acl(access.auth_user, access.auth_password, all=True)]
    elif access.auth_scheme == "sasl":
        options["sasl_options"] = {
            "mechanism": "DIGEST-MD5",
            "username": access.auth_user,
            "password": access.auth_password,
        }
        options["default_acl"] = [make_acl("sasl", access.auth_user, all=True)]
    if access.tls:
        options |= {
            "use_ssl": True,
            "check_hostname": True,
            "ca": access.tls_ca,
            "certfile": access.tls_cert,
            "keyfile": access.tls_key,
            "keyfile_password": access.tls_key_password,
        }
    handler = _Handler(access, on_error)
    client = KazooClient(
        hosts=access.hosts,
        timeout=access.session_timeout_s,
        handler=handler,
        connection_retry=_retry(handler, longest_s=min(1.0, access.session_timeout_s / 12)),
        command_retry=_retry(handler, longest_s=1.0),
        logger=_logger,
        **options,
    )
    client._connection._connect = _connecting(client, on_connected)  # noqa: SLF001
    # A server that is just back may skip a request and answer the next one: "xids do not match" (seen in tests/chaos).
    client._connection._read_socket = _surviving(client._connection._read_socket)  # noqa: SLF001
    client._connection._send_request = _surviving(client._connection._send_request)  # noqa: SLF001
    return client


def _connecting(client: KazooClient, on_connected: Callable[[float, float], None]) -> Callable[..., Any]:
    """Return kazoo's `ConnectionHandler._connect`, which tells the session timeout, and does not end kazoo's thread."""
    connect = client._connection._connect  # noqa: SLF001
    was_accepted = False

    def connect_and_tell(*args: Any) -> tuple[float, float]:
        nonlocal was_accepted
        sent_at = clock.now()
        try:
            read_ms, connect_ms = connect(*args)
        except (ConnectionDropped, KazooTimeoutError, zk.SessionExpiredError):
            raise
        except (zk.AuthFailedError, zk.SessionClosedRequireSaslError):
            # A connection that drops during SASL counts as refused with kazoo, and ends the session. These credentials
            # were good before: rather try again, for as long as the lease allows.
            if was_accepted:
                raise ConnectionDropped("refused the credentials that it has taken before") from None
            raise zk.AuthFailedError from None
        except Exception as error:
            raise ConnectionDropped(describe(error)) from error  # anything else would end kazoo's thread, unnoticed
        was_accepted = True
        # Two thirds of the negotiated timeout are the read timeout (kazoo/protocol/connection.py).
        on_connected(sent_at, round(read_ms * 1.5 / 1000, 3))
        return read_ms, connect_ms

    return connect_and_tell


def _surviving(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step of kazoo's loop whose unexpected failures drop the connection: they would end its thread for good.

    Nobody is told of that, but for LOST, after which kazoo never connects again.
    """

    def take(*args: Any) -> Any:
        try:
            return step(*args)
        except (ConnectionDropped, KazooTimeoutError, zk.SessionExpiredError, zk.AuthFailedError, RWServerAvailable):
            raise
        except Exception as error:
            raise ConnectionDropped(describe(error)) from error

    return take


def _retry(handler: _Handler, longest_s: float) -> KazooRetry:
    return KazooRetry(max_tries=-1, delay=0.05, backoff=1.5, max_delay=longest_s, sleep_func=handler.sleep_func)


def stop_within(client: KazooClient, within_s: float) -> bool:
    """Close the session, if that is possible in time; say whether the client has stopped.

    kazoo's `stop` waits at least ten seconds for a connection that hangs, and for ever after AUTH_FAILED (#582).
    """
    stopper = threading.Thread(target=_stop, args=(client,), daemon=True)
    stopper.start()
    stopper.join(within_s)
    return not stopper.is_alive()


def _stop(client: KazooClient) -> None:
    with contextlib.suppress(Exception):
        client.stop()
        client.close()


def describe(error: BaseException) -> str:
    """Say what an exception of kazoo's means: most of them have no text."""
    return str(error) or type(error).__name__
