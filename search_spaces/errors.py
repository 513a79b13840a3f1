"""The error for wrong user input, and errors as one line of text.

Commands print the message of an `InputError` without a traceback and exit with code 2.
"""

from __future__ import annotations

import re

UNCUT = 10**6  # characters; for a text that is searched for passwords before it is cut

# The last one is of oneDNN, which multiplies matrices on a CPU.
MEMORY = re.compile(
    r"\bOutOfMemory|MemoryError\b|out of memory|can't allocate memory|cannot allocate|bad_alloc"
    r"|could not create a (primitive|memory)",
    re.IGNORECASE,
)


class InputError(ValueError):
    """A wrong input. The message is one line: the value, the rule it breaks, and what to do."""

    def __init__(self, message: str) -> None:
        """Names in ``message`` may hold line breaks or codes that change a terminal. These are shown escaped."""
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in message))


def one_line(error: object, most: int = 300) -> str:
    """The message of ``error`` in one line of at most ``most`` characters, or its class name if it has none."""
    nameless = type(error).__name__ if isinstance(error, BaseException) else ""
    return " ".join(str(error).split())[:most] or nameless


def named(error: BaseException, most: int = 300) -> str:
    """As `one_line`, with the name of the class first."""
    return one_line(f"{type(error).__name__}: {error}", most)


def lacks_memory(error: BaseException) -> bool:
    """Whether ``error`` is about too little memory, of a GPU or of the host. Each library says it in its own words."""
    return MEMORY.search(named(error)) is not None
