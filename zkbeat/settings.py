"""What zkbeat takes from a Celery app: where the ensemble is, and which election the app belongs to.

Beat under zkbeat is told by its sidecar, through a file that only its own user can read. Workers, and a beat without
zkbeat, take it from the environment (`ZKBEAT_HOSTS`, as on zkbeat's own command line) or from the app's settings
(`zkbeat_hosts`); the environment wins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zkbeat.access import Access
from zkbeat.config import EXIT_CONFIG, access_from, base_path, check_root, election_name
from zkbeat.errors import ConfigError

PLACE_FILE = "ZKBEAT_PLACE_FILE"
"""The environment variable that names the file which the sidecar writes for its child."""

_OPTIONS = (
    "hosts",
    "session_timeout",
    "auth_scheme",
    "auth_user",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
)


@dataclass(frozen=True)
class Place:
    """In which ensemble, and where there, an election and what belongs to it is kept."""

    access: Access
    base: str
    """ROOT/NAME."""

    def encode(self) -> bytes:
        """Return what `decode` takes; holds the secrets."""
        return json.dumps({"access": self.access.to_json(), "base": self.base}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Place:
        """Return the place that `encode` was called on. Raises ValueError or KeyError for anything else."""
        raw = json.loads(data)
        return cls(Access.from_json(raw["access"]), raw["base"])


def place(app: Any, environ: Mapping[str, str] = os.environ) -> Place:
    """Return where this app's election is. Raises ConfigError, whose line says what to set."""
    path = environ.get(PLACE_FILE)
    if path is not None:
        try:
            return Place.decode(Path(path).read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot read {path}, which the sidecar writes: {error}", EXIT_CONFIG) from None
    given = {option: value for option in _OPTIONS if (value := _one(app, environ, option)) is not None}
    if "hosts" not in given:
        raise ConfigError("which ZooKeeper? Set zkbeat_hosts in the app, or ZKBEAT_HOSTS", EXIT_CONFIG)
    secrets = {name: app.conf.get(f"zkbeat_{name}") for name in ("auth_password", "tls_key_password")}
    name = _one(app, environ, "name")
    if name is None:
        raise ConfigError("which election? Set zkbeat_name in the app, or ZKBEAT_NAME", EXIT_CONFIG)
    root = check_root(_one(app, environ, "root") or "/zkbeat")
    return Place(access_from(given, secrets, environ), base_path(root, election_name(name, ())))


def _one(app: Any, environ: Mapping[str, str], option: str) -> Any:
    found = environ.get(f"ZKBEAT_{option.upper()}")
    if found is None:
        return app.conf.get(f"zkbeat_{option}")
    return found.lower() in {"1", "true", "yes", "on"} if option == "tls" else found
