"""How to reach an ensemble, and as whom."""

from __future__ import annotations

import ssl
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Access:
    """How to reach an ensemble, and as whom. Holds secrets, which its repr does not show."""

    hosts: str
    session_timeout_s: float = 10.0
    auth_scheme: str | None = None
    """None, "digest" or "sasl" (DIGEST-MD5)."""
    auth_user: str | None = None
    auth_password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_key_password: str | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes; to be kept out of logs, it holds the secrets."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Access:
        """Return the access that `to_json` was called on."""
        return cls(**data)

    @property
    def servers(self) -> int:
        """How many servers are named."""
        return self.hosts.partition("/")[0].count(",") + 1

    @property
    def chroot(self) -> str | None:
        """The path behind the hosts, or None."""
        _, slash, path = self.hosts.partition("/")
        return slash + path if path else None

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what kazoo's own context amounts to, or None without TLS."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert and self.tls_key:
            context.load_cert_chain(self.tls_cert, self.tls_key, self.tls_key_password)
        return context
