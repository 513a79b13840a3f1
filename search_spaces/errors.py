"""The error for wrong user input. Commands print its message without a traceback and exit with code 2."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input. The message is one line: the value, the rule it breaks, and what to do."""

    def __init__(self, message: str) -> None:
        """Names in ``message`` may hold line breaks or codes that change a terminal. These are shown escaped."""
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in message))
