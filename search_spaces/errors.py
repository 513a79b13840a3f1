"""The one error that a user can put right: its message is printed as it stands and the exit code is 2."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong input. The message is one line: the value, the rule it breaks, and the way out."""
