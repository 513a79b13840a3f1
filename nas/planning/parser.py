"""What all commands share: a parser that refuses a wrong flag in one line, and libraries that start quietly."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from search_spaces.errors import InputError

for _library in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # they tell of kernels when transformers starts
    logging.getLogger(_library).setLevel(logging.ERROR)


class Parser(argparse.ArgumentParser):
    """Raises InputError, one line with a suggestion, where argparse prints the usage and exits."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = unknown.split()[0].partition("=")[0]
            if not flag.startswith("-"):
                raise InputError(f"{flag}: one argument too many; see --help")
            raise InputError(f"{flag}: unknown flag{suggestion(flag, self._option_string_actions)}; see --help")
        raise InputError(f"{message}; see --help")


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` with the one of ``known`` that is nearest to ``name``, or nothing when none is near."""
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
