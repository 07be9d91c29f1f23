"""What a user can mend: one line that says what to do, and the exit code."""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration, or the command, cannot be used; the message is one line and says what to do."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
