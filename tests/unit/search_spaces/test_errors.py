"""What every error for a wrong input has in common."""

from __future__ import annotations

import pickle

from search_spaces.errors import InputError


def test_a_message_is_one_line_of_printable_text() -> None:
    error = InputError("corpus a\nb\r\x1b[31m\u2028ü: no such file")
    assert str(error) == r"corpus a\nb\r\x1b[31m\u2028ü: no such file"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
