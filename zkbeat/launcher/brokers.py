"""Brokers that stop answering: what celery's settings leave silent, and confirms on beat's own connection.

A frozen Redis blocks beat for good without a line in the log, and a frozen RabbitMQ takes messages into the socket's
buffer for minutes, each of them "sent" (measured with celery 5.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.utils.log import get_logger

_logger = get_logger(__name__)

_REDIS = {
    "socket_timeout": "a Redis that stops answering blocks beat for good and without a word",
    "socket_connect_timeout": "a Redis that cannot be reached blocks beat for as long as the kernel tries",
}
_AMQP = {
    "read_timeout": "a RabbitMQ that stops answering blocks beat for as long as it does",
    "write_timeout": "a RabbitMQ that stops reading blocks beat for as long as it does",
}
TIMEOUT_S = 5


def lacks(driver: str, options: Mapping[str, Any]) -> list[str]:
    """Say which transport options are missing, one line each, with the setting to add.

    `driver`: the kombu transport's `driver_type`; `options`: its transport options. Nothing of the broker's URL is
    looked at, so nothing of it can get into the log.
    """
    wanted = {"redis": _REDIS, "amqp": _AMQP}.get(driver, {})
    lines = [
        f"{why}: set broker_transport_options[{name!r}] = {TIMEOUT_S} (seconds)"
        for name, why in wanted.items()
        if options.get(name) is None
    ]
    if driver == "amqp" and not options.get("confirm_publish", True):
        lines.append(
            "confirm_publish is off: a RabbitMQ that stops answering takes messages for minutes that are lost: "
            "set broker_transport_options['confirm_publish'] = True"
        )
    return lines


def warn(app: Any) -> None:
    """Log what this app's settings leave open."""
    connection = app.connection_for_write()  # connects when it is used, which it is not
    for line in lacks(connection.transport.driver_type, connection.transport_options or {}):
        _logger.warning("zkbeat: %s", line)


def confirm(connection: Any) -> None:
    """Have each message confirmed on this connection, unless the user has decided about that.

    Only py-amqp: librabbitmq has no confirms, and refuses options that it does not know.
    """
    if connection.transport.driver_name == "py-amqp":
        connection.transport_options = {"confirm_publish": True, **(connection.transport_options or {})}
