"""The error for wrong user input. Commands print its message without a traceback and exit with code 2."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input. The message is one line: the value, the rule it breaks, and what to do."""
