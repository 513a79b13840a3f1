"""The command ``python -m nas.report STUDY [OTHER]``: the page of a study, made from the study alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nas.cluster.signals import forget_interruption
from nas.planning.parser import Parser
from nas.report.html.data import page_of
from nas.report.html.page import PAGE, REPORT, write
from nas.study.snapshot import open_study, snapshot
from search_spaces.errors import InputError
from trials.storage.redact import redacted

DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130
EPILOG = """\
A study is given by its name, or by its folder (outputs/mini-60pct-7a99a8). The page of one study goes to
report/report.html in its folder; that of two goes to report/beside-OTHER.html in the folder of the first.
NAS_OUTPUT and NAS_STORAGE are read as by nas.search. Exit codes: 0 done, 2 wrong input, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    try:
        given = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        print(make(given.study, given.other, given.output, given.storage, given.to))
    except InputError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        forget_interruption()
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return DONE


def make(study: str, other: str | None, output: str, storage: str | None, to: str | None) -> Path:
    """Write the page of one study, or of two beside each other, and return its path. Raises InputError."""
    places = [_place(one, output, storage) for one in (study, other) if one is not None]
    found = [snapshot(open_study(url, folder.name)) for folder, url in places]
    name = PAGE if other is None else f"beside-{places[1][0].name}.html"
    path = Path(to).expanduser() if to else places[0][0] / REPORT / name
    try:
        return write(page_of(found), path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give another file with --to") from error


def _place(study: str, output: str, storage: str | None) -> tuple[Path, str]:
    """The folder of ``study``, a name or a folder, and the URL of its database."""
    named = Path(study).expanduser()
    folder = (named if len(named.parts) > 1 else Path(output).expanduser() / study).resolve()
    return folder, storage or f"sqlite:///{folder.parent / 'studies.db'}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m nas.report",
        description="Make the page of a search again, or one that sets two searches beside each other.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    output, storage = os.environ.get("NAS_OUTPUT") or "outputs", os.environ.get("NAS_STORAGE") or None
    parser.add_argument("study", metavar="STUDY", help="name or folder of a study")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a second study, to compare with the first")
    parser.add_argument("--output", default=output, help="folder of all results [%(default)s]")
    parser.add_argument("--storage", default=storage, help="Optuna storage URL (SQLite in the output folder)")
    parser.add_argument("--to", metavar="FILE.html", help="where the page goes (the folder of the study)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
