"""The command ``python -m nas.export FOLDER|STUDY --format gguf``: writes an exported model in another format."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from nas.cluster.signals import forget_interruption
from nas.planning.errors import full_disk_named
from nas.planning.parser import Parser
from search_spaces.errors import InputError
from trials.export.errors import ExportError
from trials.storage.redact import redacted

if TYPE_CHECKING:  # torch and transformers take seconds to import, so the arguments are checked first
    from transformers import PreTrainedModel

DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130
FORMATS = ("gguf", "bf16", "fp16", "fp32", "int8", "nf4", "onnx")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
STUDIES = "outputs"  # where nas.search puts the folders of studies, unless told otherwise
EPILOG = """\
FOLDER is an export of nas.search (outputs/STUDY/best), or any checkpoint of a family that can be searched. For a STUDY,
give its name or its folder: its winner is taken. A STUDY with several budgets has several winners: give their folder.
docs/after-the-search.md says what reads which format.
Exit codes: 0 done, 2 wrong input or a result that is not the model it should be, 130 interrupted."""


@dataclass(frozen=True)
class Request:
    """The parsed command line. ``kind`` is the number format inside a GGUF file."""

    folder: Path
    format: str
    kind: str
    output: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    try:
        request = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        with full_disk_named(request.output.parent, after=f"nothing was written to {request.output}"):
            lines = export(request)
        print(*lines, sep="\n")
    except (InputError, ExportError, OSError) as error:  # the last is of a disk that is read-only, for one
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        forget_interruption()
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return DONE


def parse_arguments(arguments: Sequence[str]) -> Request:
    """The request. Raises InputError for every mistake that can be found without loading anything."""
    parser = Parser(
        prog="python -m nas.export",
        description="Write the winner of a search, or another checkpoint, in a format that people serve.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="FOLDER|STUDY", help="a checkpoint, or a study whose winner is taken")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--type", choices=GGUF_TYPES, help="number format of a GGUF file [f16]")
    parser.add_argument("--output", metavar="PATH", type=Path, help="where to [beside the checkpoint]")
    given = parser.parse_args(arguments)
    if given.type and given.format != "gguf":
        raise InputError(f"--type {given.type}: is for --format gguf; leave it out")
    folder, kind = find_checkpoint(given.model), given.type or "f16"
    ending = f"{kind}.gguf" if given.format == "gguf" else given.format
    output = given.output or folder.with_name(f"{folder.name}-{ending}")
    return Request(folder, given.format, kind, output.absolute())


def find_checkpoint(model: str) -> Path:
    """The folder of a checkpoint: ``model`` itself, or the winner of the study of that name or in that folder.

    Raises InputError when there is none, and when there are several.
    """
    places = [Path(model).expanduser(), Path(STUDIES, model)]
    for place in filter(Path.is_dir, places):
        if (place / "config.json").is_file():
            return place.resolve()
        winners = sorted(one.parent for one in (*place.glob("best/config.json"), *place.glob("*/best/config.json")))
        if len(winners) > 1:
            raise InputError(f"study {model}: has several winners, {', '.join(map(str, winners))}; give one of them")
        if winners:
            return winners[0].resolve()
    raise InputError(
        f"model {model!r}: neither a checkpoint nor a study with a winner, here or in {STUDIES}/; "
        "give the folder of one"
    )


def export(request: Request) -> list[str]:
    """Write what was asked for; returns what to tell the user. Raises InputError and ExportError."""
    from trials.export.load import load_checkpoint

    model = load_checkpoint(request.folder)
    return _gguf(request, model) if request.format == "gguf" else _folder(request, model)


def _folder(request: Request, model: PreTrainedModel) -> list[str]:
    from trials.export.formats import write_format

    written = write_format(model, request.folder, request.output, request.format)
    return [
        f"{written.path}: {written.bytes / 1e6:,.1f} MB in {request.format}",
        f"loaded again; logits differ by at most {written.difference:.2g} from those before, of which the largest is "
        f"{written.largest:.3g}",
    ]


def _gguf(request: Request, model: PreTrainedModel) -> list[str]:
    from trials.export.gguf.writer import write_gguf

    written = write_gguf(model, request.folder, request.output, request.kind)
    lines = [
        f"{written.path}: {written.bytes / 1e6:,.1f} MB, {written.tensors} tensors in {request.kind}, "
        f"llama.cpp's {written.architecture}"
    ]
    if written.left_tensors:
        lines.append(
            f"{written.left_tensors} tensors ({written.left_bytes / 1e6:,.1f} MB) stay in f16: their rows are no "
            "multiple of 32"
        )
    return [*lines, f"serve it:   llama-server -m {written.path}"]


if __name__ == "__main__":
    sys.exit(main())
